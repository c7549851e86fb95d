"""The supervised task: a class for every voxel, or overlapping regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim3d.config.sections import SegmentationConfig
from mim3d.data.batch import IGNORE_INDEX, BatchNeeds, CropBatch
from mim3d.data.regions import RegionScheme
from mim3d.models.unetr import UNETR
from mim3d.objectives.base import Moment, Outcome, Task
from mim3d.objectives.losses import (
    DiceOptions,
    Overlap,
    dice_ce,
    dice_ce_regions,
    monai_loss,
    on_valid_voxels,
)
from mim3d.tokens.grid import TokenGrid, Triple


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

    needs = BatchNeeds(labels=True)
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

    def forward(self, batch: CropBatch, moment: Moment) -> Outcome:
        """The loss of a batch with labels; logs the soft Dice of what is labelled in it."""
        if batch.labels is None:
            raise ValueError("segmentation needs a batch with labels")
        labels = batch.labels
        if batch.valid is not None:
            labels = labels.masked_fill(~batch.valid, IGNORE_INDEX)
        finest, *coarser = self._logits(batch)
        loss, overlap = self._loss(finest, labels)
        total = 1.0
        for level, logits in enumerate(coarser, start=1):
            weight = 0.5**level
            pooled = coarsened(labels, logits, self.network.encoder.patch)
            loss = loss + weight * self._loss(logits, pooled)[0]
            total += weight
        return Outcome(loss / total, {"dice": overlap.dice(skip_first=self.members is None)})

    def _logits(self, batch: CropBatch) -> list[Tensor]:
        """Of the voxels' own size, and behind them those of coarser levels that are supervised."""
        network = self.network
        if isinstance(network, UNETR):
            return network.pyramid(batch.voxels, batch.spacing_mm, valid=batch.valid)
        return [network(batch.voxels, batch.spacing_mm, valid=batch.valid)]

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
