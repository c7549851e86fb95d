"""Tokens that are drawn by what was attended to, against slow loops and worked-out chances."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mim3d.config.encoder import EncoderConfig
from mim3d.foundation.errors import ConfigError
from mim3d.models.classifier import FIRST_LOOK, VolumeClassifier
from mim3d.models.looks import kept_tokens, received, spread
from mim3d.models.vit import VolumeViT
from mim3d.tokens.grid import TokenGrid
from mim3d.tokens.masking import Picked
from mim3d.tokens.patches import cut_crop

SIZE, PATCH = (11, 13, 7), (4, 4, 2)  # 3 x 4 x 4 tokens


def _network(**fields) -> VolumeClassifier:
    torch.manual_seed(0)
    config = EncoderConfig(width=24, depth=2, heads=2, patch=PATCH, channels=1,
                           default_spacing_mm=(1.0, 1.0, 2.0))  # fmt: skip
    network = VolumeClassifier(VolumeViT(config), 3, **fields).eval()
    torch.nn.init.normal_(network.decoder.linear.weight, std=0.5)
    for block in network.encoder.blocks:  # attention far from even
        block.attention.qkv.weight.data.mul_(6)
    return network


def _voxels(count: int = 2) -> torch.Tensor:
    return torch.randn((count, 1, *SIZE), generator=torch.Generator().manual_seed(2))


def test_each_token_weighs_what_the_nearest_seen_one_got_by_a_slow_loop():
    grid = TokenGrid.over(SIZE, PATCH)
    index = torch.tensor([[6, 20, 47, 0], [5, 11, 30, 42]])  # 0 fills up
    real = torch.tensor([[True, True, True, False], [True] * 4])
    weights = torch.tensor([[1.0, 3.0, 2.0, 99.0], [0.0, 4.0, 2.0, 6.0]])

    found = spread(weights, Picked(index, real), grid)

    places = list(np.ndindex(3, 4, 4))
    for b in range(2):
        seen = [k for k in range(4) if real[b, k]]
        mean = np.mean([float(weights[b, k]) for k in seen])
        for t, place in enumerate(places):
            away = {k: sum((p - q) ** 2 for p, q in zip(place, places[index[b, k]], strict=True))
                    for k in seen}  # fmt: skip
            nearest = [k for k in seen if away[k] == min(away.values())]
            allowed = [max(float(weights[b, k]), 1e-4 * mean) for k in nearest]
            assert any(abs(float(found[b, t]) - one) < 1e-6 for one in allowed)


@pytest.mark.parametrize("polarity", ["high", "low"])
def test_tokens_are_seen_or_left_out_in_proportion_to_their_weights(polarity):
    """One token of four seen, or one left out, 4,000 times: within 4 standard errors."""
    cut = cut_crop(torch.zeros(4000, 1, 8, 8, 2), None, PATCH)
    keys = torch.from_numpy(np.random.default_rng(3).integers(-(2**63), 2**63, 4000))
    weights = torch.tensor([1.0, 2.0, 5.0, 8.0]).expand(4000, -1)

    split = kept_tokens(cut, keys, 0.25 if polarity == "high" else 0.75, weights, polarity=polarity)

    chosen = split.visible if polarity == "high" else split.dropped
    share = np.bincount(chosen.flatten().numpy(), minlength=4) / 4000
    expected = np.array([1, 2, 5, 8]) / 16
    assert (np.abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000)).all()


def test_counts_are_exact_whatever_the_weights():
    valid = torch.ones((2, *SIZE), dtype=torch.bool)
    valid[1, 4:] = False  # 16 of 48 tokens
    cut = cut_crop(_voxels(), valid, PATCH)
    weights = torch.zeros(2, 48)
    weights[:, 40:] = 7.0  # the heaviest of the second crop are padding

    split = kept_tokens(cut, torch.tensor([5, 6]), 0.25, weights)

    assert split.visible_valid.sum(dim=1).tolist() == [12, 4]
    assert cut.crop.token_valid[1, split.visible[1][split.visible_valid[1]]].all()
    assert set(range(40, 48)) <= set(split.visible[0].tolist())


@torch.no_grad()
def test_at_test_a_first_even_look_says_what_is_seen_next():
    network, voxels = _network(keep=0.25, keep_by="attention", keep_at_test=True), _voxels()
    lengths = []
    network.encoder.blocks[0].register_forward_hook(
        lambda module, given, made: lengths.append(given[0].shape[1])
    )

    looked = network.look(voxels)

    assert lengths == [12, 12]  # of 48 tokens, twice
    cut, keys = cut_crop(voxels, None, PATCH), torch.zeros(2, dtype=torch.int64)
    first = kept_tokens(cut, keys ^ FIRST_LOOK, 0.25)
    states = network.encoder(voxels, split=first, attention_maps=(2,))
    weights = spread(received(states, "patches"), first.seen, cut.crop.grid)
    expected = kept_tokens(cut, keys, 0.25, weights)
    assert torch.equal(looked.split.visible, expected.visible)
    assert not torch.equal(looked.split.visible, first.visible)
    alone = torch.cat([network(one[None]) for one in voxels])
    assert torch.allclose(alone, looked.outputs, atol=1e-5)


def test_the_second_look_neither_seeks_nor_avoids_what_the_first_has_seen():
    """Of equal weights the two share what chance lets them share: 128 of 512 twice, 32 each."""
    cut = cut_crop(torch.zeros(64, 1, 16, 16, 16), None, (2, 2, 2))
    weights = torch.ones(64, 512)
    keys = torch.arange(64)

    first = kept_tokens(cut, keys ^ FIRST_LOOK, 0.25)
    second = kept_tokens(cut, keys, 0.25, weights)

    both = [len(set(a.tolist()) & set(b.tolist()))
            for a, b in zip(first.visible, second.visible, strict=True)]  # fmt: skip
    # Hypergeometric: variance 128 * 0.25 * 0.75 * 384 / 511.
    assert abs(np.mean(both) - 32) < 4 * np.sqrt(128 * 0.25 * 0.75 * 384 / 511 / 64)


@torch.no_grad()
def test_out_of_training_all_tokens_are_seen_unless_it_is_asked_for():
    plain, guided = _network(), _network(keep=0.25, keep_by="attention")

    assert torch.equal(plain(_voxels()), guided(_voxels()))


def test_attention_has_nothing_to_choose_where_all_is_seen():
    with pytest.raises(
        ConfigError, match="keep_by attention` is about the tokens that are seen, and all are"
    ):
        _network(keep_by="attention")
