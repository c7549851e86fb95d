"""The levels between tokens and voxels, which decoders climb and a stem descends."""

from __future__ import annotations

from mim3d.foundation.errors import ConfigError
from mim3d.tokens.grid import Triple


def level_strides(patch: Triple) -> list[Triple]:
    """Strides of upsampling from the token grid to voxels, coarsest first.

    Every axis starts at once and stops when it has reached full resolution, so that the levels of
    a thick-slice patch such as 16 x 16 x 4 become isotropic in millimetres early.

    Raises:
        ConfigError: a side of the patch is no power of two.
    """
    if any(edge < 1 or edge & (edge - 1) for edge in patch):
        raise ConfigError(
            f"`encoder.patch` {patch} has a side that is no power of two",
            remedy="take 1, 2, 4, 8 or 16 along each axis, or another decoder",
            code="bad-patch",
        )
    doublings = [edge.bit_length() - 1 for edge in patch]
    x, y, z = ([2] * have + [1] * (max(doublings) - have) for have in doublings)
    return list(zip(x, y, z, strict=True))
