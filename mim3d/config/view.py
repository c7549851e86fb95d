"""The config of `mim3d view`."""

from __future__ import annotations

from dataclasses import dataclass, field

from mim3d.config.read import ReadConfig


@dataclass(frozen=True)
class ViewingConfig:
    """Where the page is served, and how much of a volume it gets."""

    port: int = 0
    """Port on the loopback address; 0 takes any free one."""
    browser: bool | None = None
    """Open the page in a browser. Where it is not set, if this machine has a display."""
    max_mvoxels: float = 128.0
    """Largest volume that the page gets whole, in millions of voxels: it needs 8 bytes a voxel on
    the graphics card. Of larger ones it gets every second, third ... voxel, and says so."""


@dataclass(frozen=True)
class ViewConfig:
    """Volumes, label maps and pictures in the browser of this machine."""

    view: ViewingConfig = field(default_factory=ViewingConfig)
    read: ReadConfig = field(default_factory=ReadConfig)
