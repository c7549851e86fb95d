"""The running mean of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mim3d.training.ema import MeanWeights


def test_mean_follows_the_recursion_with_its_warm_up() -> None:
    net = nn.Linear(3, 2, bias=False)
    mean = MeanWeights(dict(net.named_parameters()), 0.3)
    expected = net.weight.detach().clone()

    for update in range(8):
        with torch.no_grad():
            net.weight += torch.arange(6.0).view(2, 3) * (update + 1)
        mean.update()
        # 0.1, 2/11, 3/12, 4/13 = 0.308 > 0.3, from then on 0.3.
        decay = min(0.3, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * net.weight.detach()

    torch.testing.assert_close(mean.tensors["weight"], expected)
    assert mean.updates == 8


def test_inside_the_block_the_mean_is_in_place_and_afterwards_the_weights_bit_for_bit() -> None:
    net = nn.Linear(3, 2)
    mean = MeanWeights(dict(net.named_parameters()), 0.9)
    with torch.no_grad():
        net.weight.mul_(1.7)
    mean.update()
    own = net.weight.detach().clone()

    with pytest.raises(RuntimeError, match="inside"), mean.in_place():
        inside = net.weight.detach().clone()
        raise RuntimeError("inside")

    assert torch.equal(inside, mean.tensors["weight"])
    assert not torch.equal(inside, own)
    assert torch.equal(net.weight, own)


def test_a_saved_mean_comes_back_with_its_count() -> None:
    net = nn.Linear(3, 2)
    mean = MeanWeights(dict(net.named_parameters()), 0.9)
    saved = {name: torch.randn_like(t) for name, t in mean.tensors.items()}

    mean.restore(saved, 41)

    assert mean.updates == 41
    assert all(torch.equal(mean.tensors[name], saved[name]) for name in saved)
