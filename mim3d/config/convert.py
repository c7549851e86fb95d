"""The config of `mim3d convert`."""

from __future__ import annotations

from dataclasses import dataclass, field

from mim3d.config.sections import EncoderConfig


@dataclass(frozen=True)
class ConversionConfig:
    """Which tensors of a foreign file are taken, and what they are called."""

    section: str | None = None
    """Table of the checkpoint that holds the weights, by its keys with dots between them:
    `state_dict`, `teacher.backbone`; none takes the only one there is."""
    key_map: str | None = None
    """YAML or JSON file that says how keys are changed: `strip`, `drop`, `rename`."""
    max_gib: float = 16.0
    """Largest file that is opened."""
    seconds: float = 600.0
    """How long the process that reads it may take."""


@dataclass(frozen=True)
class ConvertConfig:
    """From another program's checkpoint to weights without code."""

    convert: ConversionConfig = field(default_factory=ConversionConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
