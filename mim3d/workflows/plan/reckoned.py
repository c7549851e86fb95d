"""Configs as they can be reckoned with: what nobody knows beforehand is assumed, and said."""

from __future__ import annotations

import math
from dataclasses import replace

from mim3d.config.data import DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import GuideConfig, PretextConfig
from mim3d.data.store import Store
from mim3d.objectives.contrast_masks import masks_contrasts
from mim3d.objectives.masks import ratio_range, resting_ratio
from mim3d.workflows.case_facts import with_classes

_PATCHES = (
    "tokens, FLOP and time are means over `objective.patches`, memory is that of the patch with "
    "which most is held"
)


def of_one_size(data: DataConfig, assumptions: list[str]) -> DataConfig:
    """Crops of several sizes as if all had the largest: what they need at most."""
    if not data.crop_sizes:
        return data
    assumptions.append("every crop has the largest of `data.crop_sizes`")
    return replace(data, crop_size=max(data.crop_sizes, key=math.prod), crop_sizes=())


def reckoned(
    objective: PretextConfig, encoder: EncoderConfig, store: Store | None, assumptions: list[str]
) -> PretextConfig:
    """A pretext task whose steps all cost alike, or come in so many kinds.

    Args:
        objective: as the training will have it.
        encoder: complete.
        store: what is trained on, if one is named.
        assumptions: gets a line for each thing that was assumed.
    """
    objective = _with_air(objective, assumptions)
    objective = _with_masks(objective, assumptions)
    objective = _with_classes(objective, store, assumptions)
    objective = _with_contrasts(objective, encoder, assumptions)
    if objective.patches:
        assumptions.append(_PATCHES)
    return objective


def _with_air(objective: PretextConfig, assumptions: list[str]) -> PretextConfig:
    """How much of the crops is air nobody knows beforehand."""
    if not objective.drop_air:
        return objective
    assumptions.append("`objective.drop_air` drops nothing")
    return replace(objective, drop_air=False)


def _with_masks(objective: PretextConfig, assumptions: list[str]) -> PretextConfig:
    """Masks that cost as every step's: unguided, at the ratio with most tokens to encode."""
    lowest, highest = ratio_range(objective)
    if lowest < highest:
        assumptions.append(f"every step has the lowest mask ratio, {lowest:g}")
    if objective.guide.by != "none":
        assumptions.append("guided masks cost nothing")
    return replace(objective, mask_ratio=lowest, mask_ratio_end=None, guide=GuideConfig())


def _with_classes(
    objective: PretextConfig, store: Store | None, assumptions: list[str]
) -> PretextConfig:
    """With the classes of a supervised target; without a store two stand for them."""
    supervised = objective.supervised
    if supervised.target is None or supervised.classes is not None:
        return objective
    if store is not None:
        return with_classes(objective, store)
    assumptions.append("the supervised target has two classes")
    return replace(objective, supervised=replace(supervised, classes=(0.0, 1.0)))


def _with_contrasts(
    objective: PretextConfig, encoder: EncoderConfig, assumptions: list[str]
) -> PretextConfig:
    """Masks of each contrast as masks of tokens: hidden are those that show none."""
    if not masks_contrasts(objective):
        return objective
    assumptions.append("no contrast is dropped; every token is decoded")
    ratio = resting_ratio(objective)
    if objective.masks_per_contrast:
        ratio = round(ratio ** (encoder.channels or 1), 6)
        assumptions.append(f"{ratio:.0%} of the tokens show no contrast")
    return replace(
        objective, mask_ratio=ratio, masks_per_contrast=False, contrast_dropout=0.0,
        visible_weight=1.0,
    )  # fmt: skip
