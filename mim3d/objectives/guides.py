"""What leads masks to some tokens rather than others: a weight for every token of a crop.

A guide weighs tokens in the crop's own grid, whatever shape is masked; `objectives.masks` makes
scores of weights. A new one is a class with `weights` and a line in `GUIDES`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from mim3d.config.objective import GuideConfig, PretextConfig
from mim3d.data.batch import CropBatch
from mim3d.data.classes import IGNORE_INDEX
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.objectives.guide import Guide
from mim3d.objectives.learnt_guide import AttentionGuide, LossGuide
from mim3d.objectives.questions import is_air
from mim3d.tokens.patches import PaddedCrop, patchify

GUIDED = ("mae", "simmim", "smit")
"""Pretext tasks whose masks can be guided."""


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


GUIDES: dict[str, Callable[[VolumeViT, PretextConfig], Guide]] = {
    "body": lambda encoder, config: BodyGuide(),
    "map": lambda encoder, config: LabelGuide(),
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
