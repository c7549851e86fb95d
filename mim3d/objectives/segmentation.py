"""The supervised task: a class for every voxel, or overlapping regions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim3d.config.task import SegmentationConfig
from mim3d.data.batch import BatchNeeds, CropBatch, MicroBatch
from mim3d.data.classes import IGNORE_INDEX
from mim3d.data.regions import RegionScheme
from mim3d.foundation.errors import ConfigError
from mim3d.models.encoder_input import Crops
from mim3d.models.unetr import UNETR
from mim3d.objectives.base import Moment, Outcome, Task
from mim3d.objectives.contrast_masks import check_dropout, left_out
from mim3d.objectives.losses import (
    DiceOptions,
    Overlap,
    dice_ce,
    dice_ce_regions,
    monai_loss,
    on_valid_voxels,
)
from mim3d.objectives.trimming import trimmed
from mim3d.tokens.grid import TokenGrid, Triple
from mim3d.tokens.masking import noise

LossOf = Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, Overlap]]
"""From logits and labels of crops of each size."""


class Segmentation(Task):
    """A network and its loss. The `state_dict` is the network's: `encoder.…` and `decoder.…`.

    Args:
        network: `(voxels, spacing_mm, valid=…) -> logits b k x y z`, made of `.encoder` and
            `.decoder` alone.
        config: the loss.
        classes: classes of the label maps, background included.
        regions: scheme of overlapping regions, one logit each; None is a softmax over classes.
        values: label value of each class index, needed with regions.
    """

    needs = BatchNeeds(labels=True, several_sizes=True)
    members: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        config: SegmentationConfig,
        classes: int,
        regions: RegionScheme | None = None,
        values: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        # In a tuple the network is no submodule, so that its parts keep their own names.
        self._network = (network,)
        self.encoder = network.encoder
        self.decoder = network.decoder
        self.classes = classes
        _check_contrasts(self.encoder, config.contrast_dropout)
        self.contrast_dropout = config.contrast_dropout
        members = None
        if regions is not None:
            if values is None or len(values) != classes:
                raise ValueError("regions need the label value of every class")
            members = regions.to_regions(torch.tensor(list(values)))
        self.register_buffer("members", members, persistent=False)
        self.options = DiceOptions(
            squared=config.squared,
            smooth_numerator=config.smooth_numerator,
            smooth_denominator=config.smooth_denominator,
            batch_dice=config.batch_dice,
            # Regions have no background among them.
            include_background=config.include_background or regions is not None,
            cross_entropy=1.0 if config.loss == "dice_ce" else 0.0,
        )
        self._monai = None
        if config.loss not in ("dice_ce", "dice"):
            self._monai = monai_loss(config.loss, self.options, has_regions=regions is not None)

    @property
    def network(self) -> Any:
        """The network, for prediction: a `UNETR`, or another made of an encoder and a decoder."""
        return self._network[0]

    def train(self, mode: bool = True) -> Segmentation:
        """Sets the mode of the network too."""
        self.network.train(mode)
        super().train(mode)
        return self

    def forward(self, batch: MicroBatch, moment: Moment) -> Outcome:
        """The loss of crops with labels; logs the soft Dice of what is labelled in them.

        Args:
            batch: crops of one size; or of several, which are encoded as one sequence, each cut to
                what is not padding. Their loss is the mean of what each crop has by itself.
            moment: the keys of contrasts that are left out follow from it and the crops' ids.
        """
        parts = [self._with_some_contrasts(part, moment) for part in batch.parts]
        if isinstance(batch, CropBatch):
            return self._outcome([self._logits(parts[0])], parts, self._loss_of_one)
        parts = [cut for part in parts for cut in trimmed(part)]
        return self._outcome(self._logits_packed(parts), parts, self._loss_of_each)

    def _outcome(
        self, logits: Sequence[list[Tensor]], parts: Sequence[CropBatch], loss_of: LossOf
    ) -> Outcome:
        """The loss over all levels, each half the weight of the next finer.

        Args:
            logits: of each part, its own size first and coarser levels behind.
            parts: crops of one size each.
            loss_of: from logits and labels of each part to the loss of a level.
        """
        labels = [_truth(part) for part in parts]
        finest, *coarser = zip(*logits, strict=True)
        loss, overlap = loss_of(finest, labels)
        total = 1.0
        for level, coarse in enumerate(coarser, start=1):
            weight = 0.5**level
            patch = self.network.encoder.patch
            pairs = zip(labels, coarse, strict=True)
            pooled = [coarsened(truth, answer, patch) for truth, answer in pairs]
            loss = loss + weight * loss_of(coarse, pooled)[0]
            total += weight
        return Outcome(loss / total, {"dice": overlap.dice(skip_first=self.members is None)})

    def _with_some_contrasts(self, batch: CropBatch, moment: Moment) -> CropBatch:
        """In training, without those that `contrast_dropout` leaves out."""
        if not (self.training and self.contrast_dropout):
            return batch
        present = batch.present
        if present is None:
            everything = batch.voxels.shape[:2]
            present = torch.ones(everything, dtype=torch.bool, device=batch.voxels.device)
        chance = noise(moment.keys(batch, "contrasts"), present.shape[1])
        gone = left_out(present, chance, self.contrast_dropout)
        return replace(batch, present=present & ~gone)

    def _logits(self, batch: CropBatch) -> list[Tensor]:
        """Of the voxels' own size, and behind them those of coarser levels that are supervised."""
        network = self.network
        if isinstance(network, UNETR):
            return network.pyramid(
                batch.voxels, batch.spacing_mm, valid=batch.valid, present=batch.present
            )
        return [network(batch.voxels, batch.spacing_mm, valid=batch.valid)]

    def _logits_packed(self, parts: Sequence[CropBatch]) -> list[list[Tensor]]:
        """`_logits` of each part, encoded as one sequence where the network can."""
        network = self.network
        if not isinstance(network, UNETR):
            return [self._logits(part) for part in parts]
        crops = []
        for part in parts:
            voxels, shown = network.encoder.placed(part.voxels, part.present)
            if part.valid is not None:
                voxels = torch.where(part.valid[:, None], voxels, voxels.new_zeros(()))
            crops.append(Crops(voxels, part.spacing_mm, part.valid, shown=shown))
        return network.pyramids_packed(crops)

    def _loss_of_one(
        self, logits: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> tuple[Tensor, Overlap]:
        """Of crops of one size together."""
        (answer,), (truth,) = logits, labels
        return self._loss(answer, truth)

    def _loss_of_each(
        self, logits: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> tuple[Tensor, Overlap]:
        """The mean over crops; with `batch_dice` that of all their voxels as one crop."""
        if self.options.batch_dice:
            columns = torch.cat([part.transpose(0, 1).flatten(1) for part in logits], dim=1)
            row = torch.cat([part.flatten() for part in labels])
            return self._loss(columns[None, :, :, None, None], row[None, :, None, None])
        pairs = [
            (answer[i : i + 1], truth[i : i + 1])
            for answer, truth in zip(logits, labels, strict=True)
            for i in range(len(answer))
        ]
        losses, overlaps = zip(*(self._loss(*pair) for pair in pairs), strict=True)
        return torch.stack(losses).mean(), sum(overlaps[1:], start=overlaps[0])

    def _loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Overlap]:
        counted = labels != IGNORE_INDEX
        if self.members is None:
            loss, overlap = dice_ce(logits, labels, self.options, counted)
        else:
            regions = self._regions(labels, counted)
            loss, overlap = dice_ce_regions(logits, regions, self.options, counted)
        if self._monai is not None:
            target = labels.unsqueeze(1) if self.members is None else regions.float()
            loss = on_valid_voxels(
                self._monai, logits, target, counted, batch_dice=self.options.batch_dice
            )
        return loss, overlap

    def _regions(self, labels: Tensor, counted: Tensor) -> Tensor:
        """Class indices `b x y z` to regions `b k x y z` bool."""
        assert self.members is not None
        indices = torch.where(counted, labels, 0).long()
        return self.members[:, indices].movedim(0, 1)


def _check_contrasts(encoder: object, dropout: float) -> None:
    check_dropout(dropout)
    if dropout and not getattr(encoder, "contrasts", ()):
        raise ConfigError(
            "`objective.contrast_dropout` needs an encoder with a map for each contrast",
            remedy="start from a run with `--encoder.embedding per_contrast`, or leave it out",
            code="contrasts",
        )


def _truth(batch: CropBatch) -> Tensor:
    """Class indices `b x y z`, with padding among what is ignored."""
    if batch.labels is None:
        raise ValueError("segmentation needs a batch with labels")
    if batch.valid is None:
        return batch.labels
    return batch.labels.masked_fill(~batch.valid, IGNORE_INDEX)


def coarsened(labels: Tensor, logits: Tensor, patch: Triple) -> Tensor:
    """The labels on the grid of coarser logits, which is that of whole patches in boxes."""
    size = (labels.shape[1], labels.shape[2], labels.shape[3])
    padded = TokenGrid.over(size, patch).padded
    x, y, z = (side // few for side, few in zip(padded, logits.shape[2:], strict=True))
    return commonest_labels(labels, padded, (x, y, z))


def commonest_labels(labels: Tensor, size: Triple, box: Triple) -> Tensor:
    """The most frequent label of every box; of equally frequent ones the lowest.

    Args:
        labels: `b x y z`, class indices; `IGNORE_INDEX` is a label like any other here.
        size: voxels that the labels are filled up to with `IGNORE_INDEX`, whole boxes.
        box: voxels of a box along x, y, z.

    Returns:
        `b` and one label a box.
    """
    far = [more - side for more, side in zip(size, labels.shape[1:], strict=True)]
    filled = F.pad(labels, [0, far[2], 0, far[1], 0, far[0]], value=IGNORE_INDEX)
    (x, y, z), (i, j, k) = size, box
    boxes = filled.reshape(-1, x // i, i, y // j, j, z // k, k).permute(0, 1, 3, 5, 2, 4, 6)
    return boxes.flatten(4).mode(dim=-1).values
