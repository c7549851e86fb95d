"""The config of `mim3d inspect`."""

from __future__ import annotations

from dataclasses import dataclass, field

from mim3d.config.read import ReadConfig
from mim3d.config.verbs import PreparationConfig


@dataclass(frozen=True)
class InspectionConfig:
    """How closely a source is looked at."""

    tried: int = 3
    """Cases that are prepared in a temporary folder, for the estimates and for what headers do not
    say; 0 reads headers alone."""
    shown: int = 5
    """Cases named for each problem."""


@dataclass(frozen=True)
class InspectConfig:
    """What files of scans hold, before they are prepared."""

    inspect: InspectionConfig = field(default_factory=InspectionConfig)
    prepare: PreparationConfig = field(default_factory=PreparationConfig)
    read: ReadConfig = field(default_factory=ReadConfig)
