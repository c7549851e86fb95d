"""What goes into an encoder: crops, and what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mim3d.foundation.errors import ShapeError
from mim3d.tokens.masking import TokenSplit
from mim3d.tokens.patches import CutCrop

Spacing = Tensor | Sequence[float] | None


class Replacement(NamedTuple):
    """Tokens that the encoder gets instead of embedded patches (SimMIM)."""

    masked: Tensor
    """`b n` bool, where; with a split `b v`, of its visible tokens."""
    token: Tensor
    """`d`, what."""


class Crops(NamedTuple):
    """Crops of one size and what is known of them: a group of a packed sequence."""

    voxels: Tensor
    """`b c x y z`, normalised, any size; padded inside to whole patches."""
    spacing_mm: Spacing = None
    """`b 3` or three numbers; none takes the config's default."""
    valid: Tensor | None = None
    """`b x y z` bool, False at padding; none is all valid. What stands in padding does not matter,
    and positions are measured from the box of what is valid."""
    split: TokenSplit | None = None
    """Only its visible tokens are embedded and encoded."""
    replaced: Replacement | None = None
    """Tokens that are exchanged before positions are added."""
    cut: CutCrop | None = None
    """The same voxels as patches, where the caller has cut them already; of any size."""
    shown: Tensor | None = None
    """`b n c` or `b 1 c` bool, which contrasts of a token are looked at; voxels are as
    `VolumeViT.placed` gives them then. None is all that are there."""


def spacing_of(given: Spacing, default: Spacing, voxels: Tensor) -> Tensor | None:
    """The spacing of crops, `b 3` or `1 3`, float32, where their voxels lie; None if unknown.

    Args:
        given: `b 3` or three numbers; none takes the default.
        default: likewise.
        voxels: `b c x y z`.

    Raises:
        ShapeError: another shape, or a spacing that is not above 0.
    """
    given = default if given is None else given
    if given is None:
        return None
    # A tensor is not looked at: it may lie on a device.
    if not isinstance(given, Tensor) and not torch.compiler.is_compiling():
        sides = np.asarray(given, dtype=float)
        if not (np.isfinite(sides).all() and (sides > 0).all()):
            raise ShapeError(f"VolumeViT expects a spacing above 0, got {given}")
    spacing = torch.as_tensor(given, dtype=torch.float32, device=voxels.device)
    spacing = spacing[None] if spacing.ndim == 1 else spacing
    if spacing.shape[0] not in (1, voxels.shape[0]) or spacing.shape[1:] != (3,):
        raise ShapeError(f"VolumeViT expects spacing `b 3` or `3`, got {tuple(spacing.shape)}")
    return spacing
