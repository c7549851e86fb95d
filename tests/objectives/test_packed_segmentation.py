"""Fine-tuning on crops of several sizes: the mean of what each crop gives by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mim3d.config.encoder import EncoderConfig
from mim3d.config.task import DecoderConfig, SegmentationConfig
from mim3d.data.batch import CropBatch, CropBatches
from mim3d.data.classes import IGNORE_INDEX
from mim3d.data.regions import SCHEMES
from mim3d.foundation.randomness import RandomStream
from mim3d.models.decoders import DECODERS
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.objectives.segmentation import Segmentation

PATCH = (4, 4, 2)
SIZES = ((11, 13, 7), (16, 8, 4), (6, 12, 12))
INSIDE = ((2, 9), (1, 12), (3, 6))
"""First valid voxel of the first crop and the one past the last, along x, y and z."""
MOMENT = Moment(3, 10, RandomStream(0, 3))


def task(name: str = "light", direct: Any = "none", deep: int = 0, **fields: Any) -> Segmentation:
    torch.manual_seed(0)
    encoder = VolumeViT(EncoderConfig(width=24, depth=2, heads=2, patch=PATCH, channels=2))
    decoder = DecoderConfig(
        name=name,  # type: ignore[arg-type]
        taps=(1, 2),
        feature_size=4,
        direct=direct,
        deep_supervision=deep,
    )
    if name in ("unetr", "half", "interpolate"):
        decoder = replace(decoder, taps=(1, 1, 2, 2))
    return Segmentation(UNETR(encoder, 3, decoder), SegmentationConfig(**fields), 3)


def part(size: tuple[int, int, int], first: int, classes: int = 3) -> CropBatch:
    """Two crops with the places `first` and following, their labels in blocks of two voxels."""
    source = torch.Generator().manual_seed(first)
    places = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij"))
    labels = (places // 2 * torch.tensor([1, 2, 1])[:, None, None, None]).sum(0) % classes
    affine = torch.diag(torch.tensor([0.5 + first, 1.0, 3.0, 1.0], dtype=torch.float64))
    return CropBatch(
        torch.randn(2, 2, *size, generator=source),
        affine.repeat(2, 1, 1),
        (f"{first}", f"{first + 1}"),
        torch.arange(first, first + 2),
        labels=torch.stack([labels, (labels + 1) % classes]).to(torch.uint8),
    )


def in_padding(batch: CropBatch, around: int = 0) -> CropBatch:
    """The first crop valid in a box alone; and both with so many voxels of padding around them."""
    size = batch.voxels.shape[2:]
    valid = torch.ones(2, *size, dtype=torch.bool)
    (a, b), (c, d), (e, f) = INSIDE
    valid[0] = False
    valid[0, a:b, c:d, e:f] = True
    margins = [around] * 6
    labels = batch.labels
    assert labels is not None
    return replace(
        batch,
        voxels=nn.functional.pad(batch.voxels, margins, value=37.0),
        valid=nn.functional.pad(valid, margins),
        labels=nn.functional.pad(labels, margins, value=1),
    )


def several(classes: int = 3, around: int = 0) -> CropBatches:
    """Two crops of each size; of the first size one is padded."""
    parts = [part(size, 2 * i, classes) for i, size in enumerate(SIZES)]
    return CropBatches((in_padding(parts[0], around), *parts[1:]))


def crops_alone(classes: int = 3) -> list[CropBatch]:
    """The same crops one by one, the padded one as what there is of it."""
    found = []
    for i, size in enumerate(SIZES):
        whole = part(size, 2 * i, classes)
        assert whole.labels is not None
        for row in range(2):
            voxels, labels = whole.voxels[row : row + 1], whole.labels[row : row + 1]
            if i == row == 0:
                (a, b), (c, d), (e, f) = INSIDE
                voxels, labels = voxels[:, :, a:b, c:d, e:f], labels[:, a:b, c:d, e:f]
            found.append(
                CropBatch(
                    voxels,
                    whole.affine[row : row + 1],
                    whole.case_ids[row : row + 1],
                    whole.crop_ids[row : row + 1],
                    labels=labels,
                )
            )
    return found


def gradients(made: Segmentation, loss: Tensor) -> list[Tensor]:
    parameters = [p for p in made.parameters() if p.requires_grad]
    return list(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize(
    ("name", "deep", "direct"),
    [(name, 0, "none") for name in DECODERS] + [("unetr", 1, "none"), ("light", 0, "ridge")],
)
def test_loss_and_gradient_are_the_mean_of_each_crop_alone(
    name: str, deep: int, direct: str
) -> None:
    """Seen to fail with sizes averaged alike and with padding left around the first crop."""
    made = task(name, direct, deep)

    outcome = made(several(), MOMENT)

    losses = [made(crop, MOMENT).loss for crop in crops_alone()]
    truth = torch.stack(losses).mean()
    torch.testing.assert_close(outcome.loss, truth, atol=0, rtol=1e-5)
    pairs = zip(gradients(made, outcome.loss), gradients(made, truth), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-3)


@pytest.mark.parametrize("loss", ["dice", "dice_focal", "tversky", "generalised_dice"])
@pytest.mark.parametrize("squared", [False, True])
def test_every_loss_is_averaged_over_crops(loss: str, squared: bool) -> None:
    made = task(loss=loss, squared=squared)

    found = made(several(), MOMENT).loss

    truth = torch.stack([made(crop, MOMENT).loss for crop in crops_alone()]).mean()
    torch.testing.assert_close(found, truth, atol=0, rtol=1e-5)


def test_overlapping_regions_are_averaged_over_crops() -> None:
    torch.manual_seed(0)
    encoder = VolumeViT(EncoderConfig(width=24, depth=1, heads=2, patch=PATCH, channels=2))
    network = UNETR(encoder, 3, DecoderConfig(name="light", feature_size=4))
    config = SegmentationConfig(regions="brats2021")
    made = Segmentation(network, config, 4, SCHEMES["brats2021"], values=(0, 1, 2, 4))

    found = made(several(classes=4), MOMENT).loss

    truth = torch.stack([made(crop, MOMENT).loss for crop in crops_alone(classes=4)]).mean()
    torch.testing.assert_close(found, truth, atol=0, rtol=1e-5)


@pytest.mark.parametrize("loss", ["dice_ce", "dice"])
def test_batch_dice_counts_all_voxels_as_one_crop(loss: str) -> None:
    """Against the quotients written out, with overlaps summed over all crops."""
    made = task(loss=loss, batch_dice=True)

    found = made(several(), MOMENT).loss

    likely, hot = [], []
    for crop in crops_alone():
        logits = made.network(crop.voxels, crop.spacing_mm)
        assert crop.labels is not None
        likely.append(logits.softmax(1)[0].flatten(1))
        hot.append(torch.eye(3)[crop.labels[0].long()].flatten(0, 2).T)
    p, t = torch.cat(likely, 1), torch.cat(hot, 1)
    dice = 1 - (2 * (p * t).sum(1) + 1e-5) / (p.sum(1) + t.sum(1) + 1e-5)
    entropy = -(p.log() * t).sum(0).mean() if loss == "dice_ce" else 0.0
    torch.testing.assert_close(found, dice.mean() + entropy, atol=0, rtol=1e-5)


def test_the_logged_dice_is_that_of_all_voxels() -> None:
    made = task()

    logged = made(several(), MOMENT).logs["dice"]

    both, each = torch.zeros(3), torch.zeros(3)
    for crop in crops_alone():
        p = made.network(crop.voxels, crop.spacing_mm).softmax(1)[0].flatten(1)
        assert crop.labels is not None
        t = torch.eye(3)[crop.labels[0].long()].flatten(0, 2).T
        both, each = both + (p * t).sum(1), each + p.sum(1) + t.sum(1)
    torch.testing.assert_close(logged, (2 * both / each)[1:].mean(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", list(DECODERS))
def test_how_much_padding_there_is_changes_no_bit(name: str) -> None:
    made = task(name)

    little, much = made(several(), MOMENT).loss, made(several(around=5), MOMENT).loss

    assert torch.equal(little, much)


def test_one_size_without_padding_is_that_batch() -> None:
    made, batch = task(), part(SIZES[0], 0)

    alone, packed = made(batch, MOMENT), made(CropBatches((batch,)), MOMENT)

    torch.testing.assert_close(packed.loss, alone.loss, atol=0, rtol=1e-6)
    torch.testing.assert_close(packed.logs["dice"], alone.logs["dice"], atol=1e-6, rtol=0)


def test_what_nobody_labelled_counts_nowhere() -> None:
    made, batches = task(), several()
    labels = batches.parts[1].labels
    assert labels is not None
    labels[:, 3:] = IGNORE_INDEX

    before = made(batches, MOMENT).loss
    labels[:, 2:] = IGNORE_INDEX
    after = made(batches, MOMENT).loss

    assert bool(before.isfinite())
    assert not torch.equal(after, before)


class Convolution(nn.Module):
    """A network of another kind: it cannot encode several sizes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv3d(2, 4, 3, padding=1)
        self.decoder = nn.Conv3d(4, 3, 1)

    def forward(self, voxels: Tensor, spacing_mm: Tensor, *, valid: Tensor | None = None) -> Tensor:
        logits: Tensor = self.decoder(self.encoder(voxels).relu())
        return logits


def test_other_networks_take_the_sizes_one_after_the_other() -> None:
    torch.manual_seed(0)
    made = Segmentation(Convolution(), SegmentationConfig(), 3)

    found = made(several(), MOMENT).loss

    truth = torch.stack([made(crop, MOMENT).loss for crop in crops_alone()]).mean()
    torch.testing.assert_close(found, truth, atol=0, rtol=1e-6)
