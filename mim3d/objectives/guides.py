"""What leads masks to some tokens rather than others: a weight for every token of a crop.

A guide weighs tokens in the crop's own grid, whatever shape is masked; `objectives.masks` makes
scores of weights. A new one is a class with `weights` and a line in `GUIDES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim3d.config.objective import GuideConfig, PretextConfig
from mim3d.data.batch import CropBatch
from mim3d.data.classes import IGNORE_INDEX
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.objectives.guide import Guide
from mim3d.objectives.learnt_guide import LEARNT, AttentionGuide, LossGuide
from mim3d.objectives.questions import is_air
from mim3d.objectives.weight_maps import VolumeGrid, WeightMaps
from mim3d.tokens.grid import Triple
from mim3d.tokens.patches import PaddedCrop, patchify

GUIDED = ("mae", "simmim", "smit")
"""Pretext tasks whose masks can be guided."""
REMEMBERING = (*LEARNT, "prior")
"""Guides that must be told of the cases, by the config's word."""


class BodyGuide(Guide):
    """By the share of a token's valid voxels that are not air."""

    def weights(self, batch: CropBatch, crop: PaddedCrop, moment: Moment) -> Tensor:
        """As `Guide.weights`.

        Raises:
            UserError: it is not known what is air.
        """
        if batch.air is None:
            raise UserError(
                "`objective.guide.by body` is on and the store does not know what is air in some "
                "case",
                remedy="leave `objective.guide.by` out, or prepare the cohort again",
                code="no-air",
            )
        return _share(~is_air(crop.voxels, batch.air), crop)


class LabelGuide(Guide):
    """By the share of a token's valid voxels that the label map has in a class other than 0."""

    needs_labels = True

    def weights(self, batch: CropBatch, crop: PaddedCrop, moment: Moment) -> Tensor:
        """As `Guide.weights`.

        Raises:
            UserError: the crops have no label maps.
        """
        if batch.labels is None:
            raise UserError(
                "`objective.guide.by map` needs crops with label maps",
                remedy="leave `objective.guide.by` out, or pre-train on labelled cases alone",
                code="no-labels",
            )
        is_foreground = (batch.labels != 0) & (batch.labels != IGNORE_INDEX)
        sides = zip(crop.grid.padded, crop.grid.size, strict=True)
        far = [padded - side for padded, side in sides]
        return _share(F.pad(is_foreground, [0, far[2], 0, far[1], 0, far[0]]), crop)


class PriorGuide(Guide):
    """By weights that were given for every place of every case.

    Stores `maps.*` once it was told of the cases.

    Args:
        encoder: whose tokens they are.
    """

    def __init__(self, encoder: VolumeViT) -> None:
        super().__init__()
        self._cell = encoder.patch
        self.maps: WeightMaps | None = None

    def remember(self, task: nn.Module, grids: Mapping[str, VolumeGrid]) -> None:
        """Makes room for the weights of these cases."""
        self.maps = WeightMaps(grids, self._cell)

    def give(self, case_id: str, weights: Tensor) -> None:
        """What the places of a case weigh.

        Args:
            case_id: one of those it was told of.
            weights: `x y z` of the case's voxels, finite and not negative.
        """
        self._told().fill(case_id, cell_means(weights, self._cell))

    def weights(self, batch: CropBatch, crop: PaddedCrop, moment: Moment) -> Tensor:
        """As `Guide.weights`.

        Raises:
            UserError: it was not told of the cases, or a crop is of none of them.
        """
        return self._told().read(batch, crop.grid).values

    def _told(self) -> WeightMaps:
        if self.maps is None:
            raise UserError(
                "`objective.guide.by prior` was not told which cases there are",
                remedy="call `task.remember(grids)` and `give` each case's weights before training",
                code="guide",
            )
        return self.maps


def cell_means(values: Tensor, cell: Triple) -> Tensor:
    """Means over cells, `x y z -> gx gy gz`; of those at the far ends over what lies inside."""
    far = [-side % edge for side, edge in zip(values.shape, cell, strict=True)]
    both = torch.stack([values, torch.ones_like(values)])[:, None]
    padded = F.pad(both, [0, far[2], 0, far[1], 0, far[0]])
    means: Tensor = F.avg_pool3d(padded, cell, stride=cell)[:, 0]
    return means[0] / means[1]


GUIDES: dict[str, Callable[[VolumeViT, PretextConfig], Guide]] = {
    "body": lambda encoder, config: BodyGuide(),
    "map": lambda encoder, config: LabelGuide(),
    "prior": lambda encoder, config: PriorGuide(encoder),
    "attention": AttentionGuide,
    "loss": LossGuide,
}
"""By the config's word; `none` is no guide."""


def guide_of(encoder: VolumeViT, config: PretextConfig) -> Guide | None:
    """The guide that the config asks for, or None."""
    return None if config.guide.by == "none" else GUIDES[config.guide.by](encoder, config)


def check_guide(config: PretextConfig) -> None:
    """Refuses a guide of a pretext task that masks nothing, and numbers that mean nothing.

    Raises:
        ConfigError: as said.
    """
    guide = config.guide
    if guide.by != "none" and config.name not in GUIDED:
        raise ConfigError(
            f"`objective.guide.by {guide.by}` is not for `objective.name {config.name}`",
            remedy="use `objective.name mae`, `simmim` or `smit`, or leave it out",
            code="guide",
        )
    if (guide.priors is None) == (guide.by == "prior"):
        raise ConfigError(
            "`objective.guide.by prior` and the folder `objective.guide.priors` go together, and "
            "one of the two is missing",
            remedy="name the folder with a volume of weights for each case, or leave both out",
            code="guide",
        )
    wrong = {
        "share": (guide.share, "two numbers from 0 to 1", all(0 <= x <= 1 for x in guide.share)),
        "temperature": (guide.temperature, "0 or more", guide.temperature >= 0),
        "warmup": (guide.warmup, "0 to below 1", 0 <= guide.warmup < 1),
    }
    for name, (value, expected, is_right) in wrong.items():
        if not is_right:
            raise ConfigError(
                f"`objective.guide.{name}` is {value}, expected {expected}", code="guide"
            )


def guided_share(guide: GuideConfig, moment: Moment) -> float:
    """Share of the masked tokens that the guide picks at this step; 0 before its warm-up ends."""
    first = guide.warmup * moment.steps
    if guide.by == "none" or moment.step < first:
        return 0.0
    start, end = guide.share
    progress = (moment.step - first) / max(1.0, moment.steps - 1 - first)
    return start + (end - start) * min(1.0, progress)


def _share(is_marked: Tensor, crop: PaddedCrop) -> Tensor:
    """Share of each token's valid voxels that are marked, `b x y z -> b n`; 0 where none is."""
    if crop.valid is None:
        return patchify(is_marked[:, None].float(), crop.grid.patch).mean(dim=-1)
    marked, inside = (
        patchify(one[:, None].float(), crop.grid.patch).sum(dim=-1)
        for one in (is_marked & crop.valid, crop.valid)
    )
    return marked / inside.clamp_min(1)
