"""Invariant 2: a split is a partition, and what is masked is unseen.

Tried with these breaks, each of which fails here: masked counted by floats (`int(ratio * n)`);
the visible tokens one too early in rank; the encoder gathering positions but not patches; SimMIM
adding its mask token to the embedded patch instead of replacing it; the convolutional stem in its
dense form.
"""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.randomness import RandomStream
from mim3d.models.encoder_input import Replacement
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.objectives.mae import MaskedAutoencoder
from mim3d.objectives.simmim import SimMIM
from mim3d.tokens.grid import TokenGrid
from mim3d.tokens.masking import count, is_masked, split_tokens
from mim3d.tokens.strategies import STRATEGIES

PATCH = (4, 4, 2)
SIZE = (11, 13, 7)
GRID = TokenGrid.over(SIZE, PATCH)
KINDS = ["learned", "sincos_index", "sincos_mm", "rotary_mm", "rotary_index"]
STEMS = ["patches", "convolutional"]


def keys(number: int) -> torch.Tensor:
    return torch.from_numpy(RandomStream(0, 0).keys(range(number), "mask"))


@pytest.mark.parametrize("name", list(STRATEGIES))
@pytest.mark.parametrize("counts", [(1, 1, 196), (6, 6, 6), (8, 8, 8), (3, 5, 7)])
def test_parts_are_disjoint_complete_and_of_exact_size_at_every_ratio(
    name: str, counts: tuple[int, int, int]
) -> None:
    grid = TokenGrid.over(counts, (1, 1, 1))
    scores = STRATEGIES[name]((2, 2, 2), "y")(grid, keys(2), None, None)
    for sixty_fourths in range(64):
        ratio = sixty_fourths / 64
        masked = int(Fraction(sixty_fourths, 64) * grid.n + Fraction(1, 2))
        if masked == grid.n:
            continue
        dropped = (grid.n - masked) // 3

        split = split_tokens(scores, count(ratio, grid.n), dropped)

        assert split.masked.shape == (2, masked)
        assert split.dropped.shape == (2, dropped)
        together = torch.cat([split.visible, split.masked, split.dropped], dim=1)
        assert torch.equal(together.sort(dim=1).values, torch.arange(grid.n).expand(2, -1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dropped", [0, 10])
@pytest.mark.parametrize("stem", STEMS)
def test_changing_masked_or_dropped_voxels_leaves_the_encoders_output_unchanged(
    kind: str, dropped: int, stem: str
) -> None:
    encoder, voxels = _encoder(kind, stem), _voxels()
    split = split_tokens(torch.rand(2, GRID.n), 30, dropped)
    unseen = torch.ones(2, GRID.n, dtype=torch.bool).scatter(1, split.visible, False)

    before = encoder(voxels, split=split, taps=(1, 2))
    after = encoder(_changed(voxels, unseen), split=split, taps=(1, 2))

    assert torch.equal(after.tokens, before.tokens)
    assert all(torch.equal(a, b) for a, b in zip(after.taps, before.taps, strict=True))
    seen = encoder(_changed(voxels, ~unseen), split=split).tokens
    assert not torch.equal(seen, before.tokens)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stem", STEMS)
def test_voxels_behind_mask_tokens_leave_the_encoders_output_unchanged(
    kind: str, stem: str
) -> None:
    encoder, voxels = _encoder(kind, stem), _voxels()
    masked = is_masked(split_tokens(torch.rand(2, GRID.n), 30), GRID.n)
    replaced = Replacement(masked, torch.randn(24))

    before = encoder(voxels, replaced=replaced).tokens

    assert torch.equal(encoder(_changed(voxels, masked), replaced=replaced).tokens, before)
    assert not torch.equal(encoder(_changed(voxels, ~masked), replaced=replaced).tokens, before)


@pytest.mark.parametrize("make", [MaskedAutoencoder, SimMIM])
@pytest.mark.parametrize("stem", STEMS)
def test_changing_masked_voxels_changes_no_prediction(
    make: type[MaskedAutoencoder] | type[SimMIM], stem: str
) -> None:
    torch.manual_seed(0)
    config = PretextConfig(
        name="mae" if make is MaskedAutoencoder else "simmim",
        decoder_width=12, decoder_depth=1, decoder_heads=2,
    )  # fmt: skip
    task = make(_encoder("sincos_mm", stem), config)
    affine = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    voxels = _voxels()
    batch = CropBatch(voxels, affine, ("a", "b"), torch.arange(2))
    moment = Moment(0, 1, RandomStream(0, 0), wants_pictures=True)

    before = task(batch, moment).pictures
    assert before is not None
    hidden = before["mask"][:, None].expand_as(voxels)
    other = CropBatch(
        torch.where(hidden, voxels * 3 - 7, voxels), affine, ("a", "b"), torch.arange(2)
    )
    after = task(other, moment).pictures

    assert after is not None
    assert torch.equal(after["mask"], before["mask"])
    assert torch.equal(after["reconstructed"], before["reconstructed"])


def _encoder(kind: str, stem: str = "patches") -> VolumeViT:
    torch.manual_seed(0)
    return VolumeViT(
        EncoderConfig(
            width=24, depth=2, heads=2, patch=PATCH, channels=2, positions=kind,  # type: ignore[arg-type]
            learned_grid=(3, 4, 4), default_spacing_mm=(1.0, 2.0, 0.5), class_token=True,
            stem=stem, stem_width=4,  # type: ignore[arg-type]
        )
    )  # fmt: skip


def _voxels() -> torch.Tensor:
    return torch.randn(2, 2, *SIZE, generator=torch.Generator().manual_seed(1))


def _changed(voxels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Voxels with all voxels behind some tokens replaced, written as a loop."""
    changed = voxels.clone()
    for i, n in tokens.nonzero().tolist():
        x, y, z = (int(place) * edge for place, edge in zip(GRID.indices()[n], PATCH, strict=True))
        changed[i, :, x : x + 4, y : y + 4, z : z + 2] = 1e6
    return changed
