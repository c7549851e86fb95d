"""Which hidden states a decoder reads, and these as maps."""

from __future__ import annotations

import pytest
import torch

from mim3d.config.encoder import EncoderConfig
from mim3d.config.task import DecoderConfig
from mim3d.foundation.errors import ConfigError
from mim3d.models.taps import Taps, cut_back, padded, tap_numbers
from mim3d.models.vit import VolumeViT
from mim3d.tokens.grid import TokenGrid


@pytest.mark.parametrize(
    ("depth", "taps"),
    [(12, (3, 6, 9, 12)), (6, (2, 3, 5, 6)), (2, (1, 1, 2, 2)), (1, (1, 1, 1, 1))],
)
def test_taps_lie_at_the_quarters_by_default(depth: int, taps: tuple[int, ...]) -> None:
    assert tap_numbers(DecoderConfig(), depth) == taps


@pytest.mark.parametrize("taps", [(0, 1, 2, 3), (1, 2, 3, 5), (3, 2, 1, 4)])
def test_taps_that_do_not_fit_are_refused(taps: tuple[int, int, int, int]) -> None:
    with pytest.raises(ConfigError, match="taps"):
        tap_numbers(DecoderConfig(taps=taps), 4)


def test_tokens_of_padding_are_zero_in_the_decoders_maps() -> None:
    torch.manual_seed(0)
    network = VolumeViT(EncoderConfig(width=24, depth=4, heads=2, patch=(4, 4, 4)))
    valid = torch.ones(1, 22, 13, 19, dtype=torch.bool)
    valid[:, 12:] = False
    states = network(torch.randn(1, 1, 22, 13, 19), (1, 1, 1), valid=valid, taps=(1, 2, 3, 4))

    maps = Taps((1, 2, 3, 4), 4, 24, "layer")(states)

    for one in maps:
        assert (one[:, :, 3:] == 0).all()
        assert (one[:, :, :3] != 0).any()


def test_maps_have_the_tokens_in_their_places() -> None:
    torch.manual_seed(0)
    network = VolumeViT(EncoderConfig(width=24, depth=2, heads=2, patch=(4, 8, 2)))
    states = network(torch.randn(1, 1, 11, 13, 7), (1, 1, 1), taps=(1, 1, 2, 2))

    first, *_, last = Taps((1, 1, 2, 2), 2, 24, "none")(states)

    assert first.shape == (1, 24, 3, 2, 4)
    # token (2, 1, 3) is number (2 * 2 + 1) * 4 + 3
    assert torch.equal(first[0, :, 2, 1, 3], states.taps[0][0, 23])
    assert torch.equal(last[0, :, 2, 1, 3], states.tokens[0, 23])


def test_padding_and_cutting_back_leave_the_voxels() -> None:
    voxels = torch.randn(1, 2, 11, 13, 7)

    whole = padded(voxels, TokenGrid.over((11, 13, 7), (4, 4, 4)))

    assert whole.shape == (1, 2, 12, 16, 8)
    assert torch.equal(cut_back(whole, voxels), voxels)
