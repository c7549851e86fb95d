"""Targets that are the voxels themselves: as they are, or normalised patch by patch."""

from __future__ import annotations

import torch
from torch import Tensor

from mim3d.foundation.errors import ConfigError
from mim3d.models.patch_head import Answer
from mim3d.objectives.targets.base import Look, PatchTarget, Target
from mim3d.tokens.grid import Triple

EPSILON = 1e-6
"""Added to a patch's variance (He et al., arXiv:2111.06377, and SelfMedMAE)."""
KINDS = ("raw", "normalised", "normalised_per_channel")


class Voxels(Target):
    """The voxels of each patch; `patch_target` says how they are normalised.

    Args:
        channels: c, of the crops.
        kind: one of `KINDS`.
    """

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__(Answer(channels))
        self.kind = kind
        self.is_like_voxels = kind == "raw"

    @torch.no_grad()
    def of(self, look: Look) -> PatchTarget:
        """`b q (c p)`; predictions go back by each patch's own mean and deviation."""
        return patch_target(look.patches, self.kind, look.inside, look.channels)

    def weigh(self, weights: Tensor | None, patch: Triple) -> Tensor | None:
        """As the voxels count."""
        return weights


def patch_target(
    patches: Tensor, kind: str, valid: Tensor | None = None, channels: int = 1
) -> PatchTarget:
    """The target of every patch.

    Args:
        patches: `b m (c p)`, c slowest.
        kind: `raw`; `normalised`: each patch to mean 0 and deviation 1 over all its voxels and
            channels together, biased variance, as SelfMedMAE; `normalised_per_channel`: likewise,
            each channel of a patch by itself.
        valid: `b m (c p)` bool; statistics leave padding out. None is all valid.
        channels: c, which `normalised_per_channel` asks for.

    Raises:
        ConfigError: another kind.
    """
    if kind == "raw":
        return PatchTarget(patches)
    if kind not in KINDS:
        raise ConfigError(f"`objective.target {kind}` is not one of {', '.join(KINDS)}")
    groups = channels if kind == "normalised_per_channel" else 1
    b, m, length = patches.shape
    values = patches.reshape(b, m, groups, length // groups)
    weight = torch.ones_like(values)
    if valid is not None:
        weight = valid.reshape(values.shape).to(patches.dtype)
    total = weight.sum(dim=-1, keepdim=True).clamp_min(1)
    mean = (values * weight).sum(dim=-1, keepdim=True) / total
    variance = ((values - mean).square() * weight).sum(dim=-1, keepdim=True) / total
    deviation = (variance + EPSILON).sqrt()

    def back(predicted: Tensor) -> Tensor:
        return (predicted.reshape(values.shape) * deviation + mean).reshape(patches.shape)

    return PatchTarget(((values - mean) / deviation).reshape(patches.shape), back)
