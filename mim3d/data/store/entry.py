"""A store's line on one case: what the manifest says of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class StoreEntry:
    """What the manifest says about a case.

    Args:
        case_id: its name.
        subject_id: whose it is; splits are by subject.
        part: training, validation or test.
        shape: `c x y z`, as stored.
        spacing_mm: voxel size along x, y, z, as stored.
        has_label: whether there is a label map.
        image_key: hash of the image files' content.
        key: hash of all source files' content and the preparation.
        bytes: size of the case's file.
        sha256: checksum of the case's file.
        targets: numbers to predict, by name.
    """

    case_id: str
    subject_id: str
    part: str
    shape: tuple[int, int, int, int]
    spacing_mm: tuple[float, float, float]
    has_label: bool
    image_key: str
    key: str
    bytes: int
    sha256: str
    targets: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> StoreEntry:
        """The entry a manifest holds."""
        c, x, y, z = map(int, stored["shape"])
        sx, sy, sz = map(float, stored["spacing_mm"])
        return cls(**{**stored, "shape": (c, x, y, z), "spacing_mm": (sx, sy, sz)})
