"""A store's line on one case: what the manifest says of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

PARTS = ("training", "validation", "test")


MOST_CLASSES = 100
"""Distinct values of a target beyond which they are no classes."""


def target_classes(values: Iterable[float]) -> tuple[float, ...]:
    """The distinct values of a target, rising, where they are whole and few; else none."""
    distinct = sorted(set(values))
    few = len(distinct) <= MOST_CLASSES
    return tuple(distinct) if few and all(value == round(value) for value in distinct) else ()


def sidecar_fields(sidecar: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of a case, from the case's sidecar."""
    file = sidecar["file"]
    names = ("case_id", "subject_id", "part", "shape", "spacing_mm", "image_key", "key", "targets")
    return {
        **{name: sidecar[name] for name in names},
        "has_label": sidecar["class_values"] is not None,
        "bytes": file["bytes"],
        "sha256": file["sha256"],
    }


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
        """The entry a manifest holds.

        Raises:
            ValueError: it describes no case; also `TypeError` and `KeyError`.
        """
        c, x, y, z = map(int, stored["shape"])
        sx, sy, sz = map(float, stored["spacing_mm"])
        entry = cls(**{**stored, "shape": (c, x, y, z), "spacing_mm": (sx, sy, sz)})
        words = (entry.case_id, entry.subject_id, entry.image_key, entry.key, entry.sha256)
        is_one = (
            all(isinstance(word, str) for word in words)
            and bool(entry.case_id)
            and entry.part in PARTS
            and min(entry.shape) > 0
            and all(0 < side < math.inf for side in entry.spacing_mm)
            and type(entry.has_label) is bool
            and type(entry.bytes) is int
            and isinstance(entry.targets, dict)
            and all(_is_number(value) for value in entry.targets.values())
        )
        if not is_one:
            raise ValueError("no case of a store")
        return entry


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
