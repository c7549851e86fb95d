"""The config of `mim3d embed`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mim3d.config.data import Triple
from mim3d.config.read import ReadConfig


@dataclass(frozen=True)
class EmbeddingConfig:
    """Which features are kept."""

    level: Literal["volume", "patches", "both"] | None = None
    """One row of features a volume, the mean of its patches (and the class token where there is
    one); one a patch, with where its middle lies in millimetres; or both. None is `both` in `.h5`
    and `volume` in `.csv`."""
    part: Literal["training", "validation", "test"] | None = None
    """Of a store, CSV or archive only the cases of this list; none is all."""
    window: Triple | None = None
    """Voxels of a window, rounded up to whole patches; none takes the training's crop."""
    overlap: float = 0.0
    """Share of a window that the next one covers again, 0 to below 1. A patch that several windows
    saw has the mean of its features."""
    windows_per_batch: int = 4
    """Windows that pass the encoder at once."""
    skip_air: bool = True
    """Leave out windows without any voxel of the body; their patches have no features."""


@dataclass(frozen=True)
class EmbedConfig:
    """From any run with an encoder and scans or a store to features."""

    embed: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    read: ReadConfig = field(default_factory=ReadConfig)
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint of the run."""
    align_channels: bool = False
    """Resample the channels of a case to the first one's grid instead of refusing the case."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` is bf16 where the device does it in hardware."""
