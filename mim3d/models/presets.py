"""The sizes of the encoder by name, and a config with its open fields filled in."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from mim3d.config.data import Triple
from mim3d.config.encoder import EncoderConfig
from mim3d.foundation.errors import ConfigError
from mim3d.tokens.grid import TokenGrid


class Size(NamedTuple):
    """Width of a token, blocks, attention heads."""

    width: int
    depth: int
    heads: int


PRESETS: dict[str, Size] = {
    "tiny": Size(192, 12, 3),
    "small": Size(384, 12, 6),
    "base": Size(768, 12, 12),
    "large": Size(1024, 24, 16),
}
"""Heads are 64 wide everywhere, the MLP four times the token."""


WIDEST, DEEPEST = 2**16, 1000
"""Ten times what anyone trained: a number that was meant for something else ends here."""


def size_of(config: EncoderConfig) -> Size:
    """The preset's size with the config's own fields in place.

    Raises:
        ConfigError: an unknown preset, or a width that is no multiple of the heads.
    """
    if config.preset not in PRESETS:
        names = ", ".join(PRESETS)
        raise ConfigError(f"`encoder.preset {config.preset}` is not one of {names}")
    preset = PRESETS[config.preset]
    size = Size(
        config.width or preset.width, config.depth or preset.depth, config.heads or preset.heads
    )
    if not (0 < size.heads <= size.width <= WIDEST and 0 < size.depth <= DEEPEST):
        raise ConfigError(
            f"an encoder {size.width} wide, {size.depth} deep and of {size.heads} heads cannot be "
            f"built",
            remedy=f"width up to {WIDEST:,}, depth up to {DEEPEST:,}, and heads up to the width",
            code="bad-size",
        )
    if size.width % size.heads:
        raise ConfigError(
            f"`encoder.width` {size.width} is no multiple of `encoder.heads` {size.heads}",
            remedy="choose them so that each head gets the same number of channels",
            code="bad-heads",
        )
    return size


def check_numbers(config: EncoderConfig) -> None:
    """Refuses numbers with which an encoder cannot be built or would give no numbers.

    Raises:
        ConfigError: naming the setting, its value and what it may be.
    """
    shortest, longest = config.wavelengths_mm
    grid, spacing_mm = config.learned_grid or (1,), config.default_spacing_mm or (1.0,)
    checks = {
        "patch": (min(config.patch) >= 1, "1 voxel or more along each axis"),
        "learned_grid": (min(grid) >= 1, "1 token or more along each axis"),
        "default_spacing_mm": (all(0 < side < math.inf for side in spacing_mm), "above 0"),
        "wavelengths_mm": (0 < shortest < longest < math.inf, "above 0, the shortest first"),
        "mlp_ratio": (0 < config.mlp_ratio < math.inf, "above 0"),
        "norm_epsilon": (0 < config.norm_epsilon < 1, "above 0 and below 1"),
        "registers": (config.registers >= 0, "0 or more"),
        "drop_path": (0 <= config.drop_path < 1, "0 to below 1"),
        "attention_dropout": (0 <= config.attention_dropout < 1, "0 to below 1"),
    }
    for name, (is_fine, expected) in checks.items():
        if not is_fine:
            raise ConfigError(
                f"`encoder.{name}` is {getattr(config, name)}, expected {expected}",
                code="bad-number",
            )


def completed(
    config: EncoderConfig,
    *,
    channels: int,
    crop_size: Triple,
    spacing_mm: tuple[float, float, float],
) -> EncoderConfig:
    """The config with what it leaves to the data: channels, learned grid and default spacing.

    Args:
        config: as the user wrote it.
        channels: channels of the store; an encoder that names its contrasts has as many as these.
        crop_size: voxels of a training crop.
        spacing_mm: median spacing of the cohort.

    Raises:
        ConfigError: a number with which no encoder can be built.
    """
    check_numbers(config)
    return replace(
        config,
        channels=config.channels or len(config.contrasts) or channels,
        learned_grid=config.learned_grid or TokenGrid.over(crop_size, config.patch).counts,
        default_spacing_mm=config.default_spacing_mm or spacing_mm,
    )
