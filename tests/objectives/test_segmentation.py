"""The supervised task around a small network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss, TverskyLoss
from torch import Tensor, nn

from mim3d.config.encoder import EncoderConfig
from mim3d.config.task import DecoderConfig, SegmentationConfig
from mim3d.data.batch import CropBatch
from mim3d.data.classes import IGNORE_INDEX
from mim3d.data.regions import SCHEMES
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.randomness import RandomStream
from mim3d.models.decoders import SUPERVISED
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.objectives.losses import DiceOptions, dice_ce
from mim3d.objectives.segmentation import Segmentation, commonest_labels

SHAPE = (6, 5, 4)
MOMENT = Moment(0, 10, RandomStream(0, 0))


class SmallNetwork(nn.Module):
    """One convolution either side of the middle; notes what it was called with."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.encoder = nn.Conv3d(2, 4, 3, padding=1)
            self.decoder = nn.Sequential(nn.GELU(), nn.Conv3d(4, outputs, 1))
        self.calls: list[tuple[Tensor, Tensor | None]] = []

    def forward(self, voxels: Tensor, spacing_mm: Tensor, *, valid: Tensor | None = None) -> Tensor:
        self.calls.append((spacing_mm, valid))
        return self.decoder(self.encoder(voxels))


def batch_of(values: Sequence[int], *, valid: Tensor | None = None) -> CropBatch:
    """Two crops whose labels run through `values` along x."""
    generator = torch.Generator().manual_seed(0)
    x = torch.arange(SHAPE[0]).view(1, -1, 1, 1).expand(2, *SHAPE)
    affine = torch.diag(torch.tensor([0.5, 1.0, 3.0, 1.0], dtype=torch.float64))
    return CropBatch(
        voxels=torch.randn((2, 2, *SHAPE), generator=generator),
        affine=affine.expand(2, 4, 4),
        case_ids=("a", "b"),
        crop_ids=torch.arange(2),
        labels=torch.tensor(list(values), dtype=torch.uint8)[x % len(values)],
        valid=valid,
    )


def test_state_dict_and_weights_are_the_networks() -> None:
    network = SmallNetwork(3)
    task = Segmentation(network, SegmentationConfig(), 3)

    assert task.state_dict().keys() == network.state_dict().keys()
    assert task.weights().keys() == network.state_dict().keys()
    assert task.network is network


def test_loss_is_dice_ce_of_the_networks_logits() -> None:
    batch = batch_of([0, 1, 2])
    task = Segmentation(SmallNetwork(3), SegmentationConfig(squared=True), 3)

    outcome = task(batch, MOMENT)

    logits = task.network(batch.voxels, batch.spacing_mm)
    reference = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True)
    torch.testing.assert_close(outcome.loss, reference(logits, batch.labels[:, None]))
    assert outcome.loss.requires_grad
    assert not outcome.logs["dice"].requires_grad


def test_spacing_and_valid_reach_the_network() -> None:
    valid = torch.ones((2, *SHAPE), dtype=torch.bool)
    valid[:, 4:] = False
    task = Segmentation(SmallNetwork(3), SegmentationConfig(), 3)

    task(batch_of([0, 1, 2], valid=valid), MOMENT)

    spacing, given = task.network.calls[0]
    assert spacing.tolist() == [[0.5, 1.0, 3.0]] * 2
    assert given is valid


@pytest.mark.parametrize("loss", ["dice_ce", "dice", "dice_focal", "tversky", "generalised_dice"])
def test_labels_at_padding_and_ignored_voxels_change_nothing(loss: str) -> None:
    valid = torch.ones((2, *SHAPE), dtype=torch.bool)
    valid[:, 4:] = False
    batch = batch_of([0, 1, 2], valid=valid)
    batch.labels[:, :, 3] = IGNORE_INDEX
    task = Segmentation(SmallNetwork(3), SegmentationConfig(loss=loss), 3)

    before = task(batch, MOMENT).loss
    batch.labels[:, 4:] = 1
    after = task(batch, MOMENT).loss
    batch.labels[:, :4, :3] = 1
    elsewhere = task(batch, MOMENT).loss

    assert torch.equal(before, after)
    assert not torch.equal(before, elsewhere)


def test_regions_are_made_from_the_values_behind_the_indices() -> None:
    # BraTS 2021: 1 necrosis, 2 oedema, 4 enhancing; TC = 1 + 4, WT = all, ET = 4.
    task = Segmentation(
        SmallNetwork(3),
        SegmentationConfig(regions="brats2021", include_background=False),
        4,
        SCHEMES["brats2021"],
        values=(0, 1, 2, 4),
    )
    batch = batch_of([0, 1, 2, 3])

    loss = task(batch, MOMENT).loss

    i = batch.labels
    regions = torch.stack([(i == 1) | (i == 3), i > 0, i == 3], 1).float()
    logits = task.network(batch.voxels, batch.spacing_mm)
    # TC is no background: it counts whatever `include_background` says.
    torch.testing.assert_close(loss, DiceCELoss(sigmoid=True)(logits, regions))
    assert task.state_dict().keys() == task.network.state_dict().keys()


def test_regions_without_values_are_refused() -> None:
    with pytest.raises(ValueError, match="label value"):
        Segmentation(SmallNetwork(3), SegmentationConfig(), 4, SCHEMES["brats2021"])


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (SegmentationConfig(loss="dice"), DiceLoss(to_onehot_y=True, softmax=True)),
        (
            SegmentationConfig(loss="tversky", batch_dice=True),
            TverskyLoss(to_onehot_y=True, softmax=True, batch=True),
        ),
        (
            SegmentationConfig(include_background=False, smooth_numerator=0.5),
            DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, smooth_nr=0.5),
        ),
    ],
)
def test_settings_of_the_loss_do_what_they_say(
    config: SegmentationConfig, reference: nn.Module
) -> None:
    batch = batch_of([0, 1, 2])
    task = Segmentation(SmallNetwork(3), config, 3)

    loss = task(batch, MOMENT).loss

    logits = task.network(batch.voxels, batch.spacing_mm)
    torch.testing.assert_close(loss, reference(logits, batch.labels[:, None]))


def test_modes_reach_the_network_itself() -> None:
    task = Segmentation(SmallNetwork(3), SegmentationConfig(), 3)

    assert not task.eval().network.training
    assert task.train().network.training


def test_a_crop_is_overfitted_within_200_steps() -> None:
    # RULINGS R47: below a tenth of the start.
    batch = batch_of([0, 1, 2])
    task = Segmentation(SmallNetwork(3), SegmentationConfig(), 3)
    # What is to be learned is visible: the label stands in the first channel.
    batch.voxels[:, 0] = batch.labels.float()
    optimiser = torch.optim.AdamW(task.parameters(), lr=0.05)
    losses = []

    for _ in range(200):
        optimiser.zero_grad()
        loss = task(batch, MOMENT).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())

    assert losses[-1] < 0.1 * losses[0]


def test_a_batch_without_labels_is_refused() -> None:
    batch = batch_of([0, 1])
    task = Segmentation(SmallNetwork(2), SegmentationConfig(), 2)
    object.__setattr__(batch, "labels", None)

    with pytest.raises(ValueError, match="labels"):
        task(batch, MOMENT)


def deep(name: str, levels: int) -> UNETR:
    torch.manual_seed(0)
    encoder = EncoderConfig(
        width=24, depth=4, heads=2, channels=2, patch=(8, 8, 4), default_spacing_mm=(1.0, 2.0, 0.5)
    )
    decoder = DecoderConfig(name=name, feature_size=4, deep_supervision=levels)  # type: ignore[arg-type]
    return UNETR(VolumeViT(encoder), 3, decoder)


def crops(size: tuple[int, int, int] = (11, 13, 7)) -> CropBatch:
    generator = torch.Generator().manual_seed(0)
    valid = torch.ones((2, *size), dtype=torch.bool)
    valid[1, 9:] = False
    return CropBatch(
        torch.randn((2, 2, *size), generator=generator),
        torch.eye(4, dtype=torch.float64).expand(2, 4, 4),
        ("a", "b"),
        torch.arange(2),
        torch.randint(0, 3, (2, *size), generator=generator, dtype=torch.uint8),
        valid,
    )


@pytest.mark.parametrize("name", SUPERVISED)
def test_coarser_levels_are_supervised_with_half_the_weight_of_the_level_above(name: str) -> None:
    network, batch = deep(name, 2), crops()
    task = Segmentation(network, SegmentationConfig(), 3)

    outcome = task(batch, MOMENT)

    logits = network.pyramid(batch.voxels, batch.spacing_mm, valid=batch.valid)
    assert [tuple(one.shape[2:]) for one in logits[1:]] == (
        [(4, 4, 4), (2, 2, 2)] if name == "half" else [(8, 8, 8), (4, 4, 4)]
    )
    losses = []
    for one in logits:
        labels = torch.full((2, *one.shape[2:]), IGNORE_INDEX)
        box = [side // few for side, few in zip((16, 16, 8), one.shape[2:], strict=True)]
        if one is logits[0]:
            box = [1, 1, 1]
        for place in itertools.product(range(2), *map(range, one.shape[2:])):
            sample, *start = place
            inside = tuple(slice(s * n, (s + 1) * n) for s, n in zip(start, box, strict=True))
            found = batch.labels[sample][inside].masked_fill(~batch.valid[sample][inside], 255)
            lacking = math.prod(box) - found.numel()
            counts = torch.bincount(found.flatten().long(), minlength=256)
            counts[255] += lacking
            labels[place] = int(counts.argmax())
        losses.append(dice_ce(one, labels, DiceOptions(), labels != IGNORE_INDEX)[0])
    expected = (losses[0] + losses[1] / 2 + losses[2] / 4) / 1.75
    torch.testing.assert_close(outcome.loss, expected)


@pytest.mark.parametrize("name", SUPERVISED)
def test_coarser_heads_learn_and_leave_prediction_alone(name: str) -> None:
    network, batch = deep(name, 1), crops()
    task = Segmentation(network, SegmentationConfig(), 3)
    before = network(batch.voxels, valid=batch.valid)

    task(batch, MOMENT).loss.backward()
    head = network.decoder.coarse[0]
    with torch.no_grad():
        head.weight.zero_()

    assert head.weight.grad.any()
    assert torch.equal(network(batch.voxels, valid=batch.valid), before)


@pytest.mark.parametrize(
    ("name", "levels"), [("light", 1), ("hybrid", 1), ("unetr", 4), ("half", -1)]
)
def test_levels_that_are_not_there_cannot_be_supervised(name: str, levels: int) -> None:
    with pytest.raises(ConfigError, match="coarser"):
        deep(name, levels)


def test_of_equally_frequent_labels_the_lowest_wins_and_padding_counts_as_one() -> None:
    labels = torch.tensor([[[[2, 1, 1, 2, 0]]]], dtype=torch.uint8)

    coarse = commonest_labels(labels, (1, 1, 6), (1, 1, 2))

    assert coarse.flatten().tolist() == [1, 1, 0]
