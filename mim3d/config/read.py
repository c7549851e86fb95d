"""The section `read`: how files of volumes are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GeometryChoice = Literal["strict", "sform", "qform"]


@dataclass(frozen=True)
class ReadConfig:
    """Limits and choices of the reader.

    Attributes:
        max_gib: largest volume taken, in GiB of voxels; larger declarations are refused unread.
        geometry: `strict` compares the two forms of a NIfTI file and refuses a contradiction;
            `sform` or `qform` takes that form alone, for cohorts whose other form is known bad.
        series: which series of each DICOM folder to take where it holds several: `largest` takes
            that of most pixels, a modality (`CT`, `MR`) the largest of that, a number or UID the
            one so listed by `mim3d inspect`. None makes a case of each series.
    """

    max_gib: float = 8.0
    geometry: GeometryChoice = "strict"
    series: str | None = None

    @property
    def max_bytes(self) -> int:
        """The limit in bytes."""
        return int(self.max_gib * 2**30)
