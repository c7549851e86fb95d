"""How many tokens of a crop the encoder sees, and how many are decoded."""

from __future__ import annotations

from dataclasses import replace

from mim3d.config.data import Triple
from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig
from mim3d.objectives.masks import resting_ratio
from mim3d.tokens.grid import TokenGrid
from mim3d.tokens.masking import count


def tokens_of(
    encoder: EncoderConfig, crop: Triple, objective: PretextConfig | None
) -> dict[str, int]:
    """Tokens of a crop by name: `all`, `visible` to the encoder, `decoded`.

    Args:
        encoder: complete.
        crop: voxels along x, y, z.
        objective: the pretext task; None is a supervised one, which takes all.
    """
    if objective is not None and objective.patches:
        return _mean_tokens(encoder, crop, objective)
    n = TokenGrid.over(crop, encoder.patch).n
    if objective is None or objective.name not in ("mae", "simmim", "smit"):
        return {"all": n, "visible": n, "decoded": n}
    masked = count(resting_ratio(objective), n, objective.rounding)
    decoded = count(objective.decode_fraction, masked)
    there = n - count(objective.drop_ratio, n, objective.rounding)
    if objective.visible_weight > 0:
        decoded += there - masked
    return {"all": n, "visible": there - masked if objective.name == "mae" else there,
            "decoded": decoded}  # fmt: skip


def _mean_tokens(encoder: EncoderConfig, crop: Triple, objective: PretextConfig) -> dict[str, int]:
    """Over the patches that are drawn, rounded."""
    alone = replace(objective, patches=())
    each = [tokens_of(replace(encoder, patch=one), crop, alone) for one in objective.patches]
    return {name: round(sum(one[name] for one in each) / len(each)) for name in each[0]}
