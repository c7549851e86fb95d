"""A head that predicts patches, at its own size and at others."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mim3d.models.patch_head import Answer, PatchHead, TokenHead, head_for

PATCH = (4, 6, 2)


def head() -> PatchHead:
    torch.manual_seed(0)
    made = PatchHead(10, 3, PATCH)
    nn.init.normal_(made.bias)
    return made


def test_at_its_own_size_it_is_a_linear_layer_bit_for_bit() -> None:
    made = head()
    plain = nn.Linear(10, 3 * 4 * 6 * 2)
    plain.load_state_dict(made.state_dict(), strict=True)
    tokens = torch.randn(2, 5, 10)

    assert torch.equal(made(tokens), plain(tokens))
    assert torch.equal(made(tokens, PATCH), plain(tokens))


@pytest.mark.parametrize("patch", [(8, 6, 2), (4, 3, 4), (5, 7, 3), (2, 12, 1)])
def test_at_another_size_it_predicts_its_own_patch_interpolated(
    patch: tuple[int, int, int],
) -> None:
    """Seen to fail with axes exchanged and with the bias left as it was."""
    made = head()
    tokens = torch.randn(2, 5, 10)

    found = made(tokens, patch)

    own = made(tokens).reshape(10, 3, *PATCH)
    resized = F.interpolate(own, patch, mode="trilinear", align_corners=False)
    torch.testing.assert_close(found, resized.reshape(2, 5, -1), atol=2e-6, rtol=1e-5)


def test_gradients_at_another_size_reach_the_stored_weights() -> None:
    made = head()

    made(torch.randn(2, 5, 10), (8, 3, 4)).square().sum().backward()

    assert made.weight.grad is not None
    assert made.bias.grad is not None
    assert made.weight.grad.abs().min() > 0
    assert made.bias.grad.abs().min() > 0


def test_an_answer_by_token_has_one_head_for_every_patch() -> None:
    torch.manual_seed(0)
    made = head_for(10, Answer(7, by_voxel=False), PATCH)
    tokens = torch.randn(2, 3, 10)

    assert isinstance(made, TokenHead)
    assert torch.equal(made(tokens, (2, 2, 2)), tokens @ made.weight.T + made.bias)
    assert isinstance(head_for(10, Answer(3), PATCH), PatchHead)
