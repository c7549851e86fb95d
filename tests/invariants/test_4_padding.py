"""Invariant 4: padding does not matter.

A volume alone, padded at the near and the far end, beside a larger one, and packed with others
gives the same hidden states and loss. Tried with these breaks, each of which fails here: no mask in
attention; positions from the padded crop's centre; noise of the mask counted over the padded grid;
padding that is not blanked; filled-up indices of a shorter sample that are attended to;
convolutions of the stem over positions that hold no valid voxel; a pack whose segments are one.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.randomness import RandomStream
from mim3d.models.encoder_input import Crops
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.objectives.mae import MaskedAutoencoder
from mim3d.objectives.simmim import SimMIM
from mim3d.tokens.grid import TokenGrid

PATCH = (4, 4, 2)
SIZE = (10, 13, 5)
"""No side is a multiple of the patch's."""
WHOLE = (24, 20, 12)
NEAR = {"far end": (0, 0, 0), "both ends": (8, 4, 2)}
KINDS = ["learned", "sincos_index", "sincos_mm", "rotary_mm", "rotary_index"]
STEMS = ["patches", "convolutional"]
SPACING = (0.5, 1.0, 3.0)


def encoder(kind: str, prefix: bool = False, stem: str = "patches") -> VolumeViT:
    torch.manual_seed(0)
    return VolumeViT(
        EncoderConfig(
            width=24, depth=3, heads=2, patch=PATCH, channels=2, positions=kind,  # type: ignore[arg-type]
            learned_grid=(2, 3, 5), class_token=prefix, registers=2 * prefix,
            stem=stem, stem_width=4,  # type: ignore[arg-type]
        )
    ).eval()  # fmt: skip


def small() -> Tensor:
    return torch.randn(1, 2, *SIZE, generator=torch.Generator().manual_seed(1))


def padded(near: tuple[int, int, int], content: float = 99.0) -> tuple[Tensor, Tensor]:
    """The volume in the middle of what is no volume, beside one that fills the crop."""
    voxels = torch.randn(2, 2, *WHOLE, generator=torch.Generator().manual_seed(2))
    valid = torch.ones(2, *WHOLE, dtype=torch.bool)
    valid[0] = False
    voxels[0] = content
    box = tuple(slice(start, start + side) for start, side in zip(near, SIZE, strict=True))
    voxels[(0, slice(None), *box)] = small()[0]
    valid[(0, *box)] = True
    return voxels, valid


def inside(tokens: Tensor, near: tuple[int, int, int]) -> Tensor:
    """The tokens of the volume within those of the padded crop."""
    start = [edge // patch for edge, patch in zip(near, PATCH, strict=True)]
    gx, gy, gz = TokenGrid.over(SIZE, PATCH).counts
    cells = tokens.reshape(*TokenGrid.over(WHOLE, PATCH).counts, -1)
    x, y, z = start
    return cells[x : x + gx, y : y + gy, z : z + gz].reshape(gx * gy * gz, -1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("near", list(NEAR))
@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("stem", STEMS)
def test_a_volume_alone_and_padded_beside_another_has_the_same_hidden_states(
    kind: str, near: str, prefix: bool, stem: str
) -> None:
    network = encoder(kind, prefix, stem)
    voxels, valid = padded(NEAR[near])

    alone = network(small(), SPACING, taps=(1,))
    beside = network(voxels, SPACING, valid=valid, taps=(1,))

    ours = inside(beside.tokens[0], NEAR[near])
    torch.testing.assert_close(ours, alone.tokens[0], atol=2e-5, rtol=1e-4)
    tapped = inside(beside.taps[0][0], NEAR[near])
    torch.testing.assert_close(tapped, alone.taps[0][0], atol=2e-5, rtol=1e-4)
    if prefix:
        assert alone.prefix is not None
        assert beside.prefix is not None
        torch.testing.assert_close(beside.prefix[0], alone.prefix[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("stem", STEMS)
def test_a_volume_alone_and_packed_with_others_has_the_same_hidden_states(
    kind: str, prefix: bool, stem: str
) -> None:
    network = encoder(kind, prefix, stem)
    voxels, valid = padded(NEAR["both ends"])

    alone = network(small(), SPACING, taps=(1,))
    others = Crops(voxels, (1.0, 2.0, 0.4), valid)
    _, packed = network.forward_packed([others, Crops(small(), SPACING)], taps=(1,))

    torch.testing.assert_close(packed.tokens, alone.tokens, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(packed.taps[0], alone.taps[0], atol=2e-5, rtol=1e-4)
    if prefix:
        torch.testing.assert_close(packed.prefix, alone.prefix, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stem", STEMS)
def test_what_stands_in_padding_changes_no_bit(kind: str, stem: str) -> None:
    network = encoder(kind, stem=stem)
    zero, valid = padded(NEAR["both ends"], 0.0)
    nan, _ = padded(NEAR["both ends"], float("nan"))

    assert torch.equal(
        network(nan, SPACING, valid=valid).tokens, network(zero, SPACING, valid=valid).tokens
    )


@pytest.mark.parametrize("make", [MaskedAutoencoder, SimMIM])
@pytest.mark.parametrize("masking", ["uniform", "block"])
@pytest.mark.parametrize("near", list(NEAR))
@pytest.mark.parametrize("target", ["raw", "normalised"])
@pytest.mark.parametrize("stem", STEMS)
def test_a_volume_alone_and_padded_has_the_same_loss_and_gradient(
    make: type[MaskedAutoencoder] | type[SimMIM], masking: str, near: str, target: str, stem: str
) -> None:
    torch.manual_seed(0)
    config = PretextConfig(
        name="mae" if make is MaskedAutoencoder else "simmim",
        masking=masking, target=target, decoder_width=12, decoder_depth=2, decoder_heads=2,  # type: ignore[arg-type]
    )  # fmt: skip
    task = make(encoder("sincos_mm", stem=stem), config)
    voxels, valid = padded(NEAR[near])

    alone = _loss(task, small(), None)
    beside = _loss(task, voxels[:1], valid[:1])

    torch.testing.assert_close(beside[0], alone[0], atol=0, rtol=2e-5)
    torch.testing.assert_close(beside[1], alone[1], atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("make", [MaskedAutoencoder, SimMIM])
def test_the_loss_of_a_batch_is_the_mean_over_the_voxels_of_its_samples(
    make: type[MaskedAutoencoder] | type[SimMIM],
) -> None:
    torch.manual_seed(0)
    name = "mae" if make is MaskedAutoencoder else "simmim"
    config = PretextConfig(name=name, decoder_width=12, decoder_depth=2, decoder_heads=2)  # type: ignore[arg-type]
    task = make(encoder("rotary_mm"), config)
    voxels, valid = padded(NEAR["both ends"])

    single = [_loss(task, voxels[i : i + 1], valid[i : i + 1], i) for i in range(2)]
    together = _loss(task, voxels, valid)

    counts = [_masked_voxels(task, voxels[i : i + 1], valid[i : i + 1], i) for i in range(2)]
    expected = sum(n * one[0] for n, one in zip(counts, single, strict=True)) / sum(counts)
    torch.testing.assert_close(together[0], expected, atol=0, rtol=2e-5)


def _batch(voxels: Tensor, valid: Tensor | None, first: int = 0) -> CropBatch:
    b = len(voxels)
    affine = torch.diag(torch.tensor([*SPACING, 1.0], dtype=torch.float64)).repeat(b, 1, 1)
    ids = torch.arange(first, first + b)
    return CropBatch(voxels, affine, tuple(map(str, ids)), ids, valid=valid)


def _loss(
    task: MaskedAutoencoder | SimMIM, voxels: Tensor, valid: Tensor | None, first: int = 0
) -> tuple[Tensor, Tensor]:
    loss = task(_batch(voxels, valid, first), Moment(0, 1, RandomStream(0, 0))).loss
    (gradient,) = torch.autograd.grad(loss, task.encoder.blocks[0].attention.qkv.weight)
    return loss.detach(), gradient


def _masked_voxels(
    task: MaskedAutoencoder | SimMIM, voxels: Tensor, valid: Tensor, first: int
) -> int:
    moment = Moment(0, 1, RandomStream(0, 0), wants_pictures=True)
    pictures = task(_batch(voxels, valid, first), moment).pictures
    assert pictures is not None
    return int((pictures["mask"] & valid).sum())
