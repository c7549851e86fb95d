"""Cases and stores whose voxels and labels tell their positions, for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mim3d.data.classes import ClassTable
from mim3d.data.intensity import Normalisation
from mim3d.data.store import FORMAT, PreparedCase, Store, write_case

SLOPES = np.array([[0.7, -0.4, 0.25], [-0.2, 0.5, 0.9]])
"""Value of channel c at a point p in mm: SLOPES[c] @ p. Linear: interpolation is exact."""


def oblique_affine(spacing: Sequence[float]) -> np.ndarray:
    """Anisotropic, turned by 20 degrees around z, off the origin."""
    c, s = np.cos(np.deg2rad(20)), np.sin(np.deg2rad(20))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * np.asarray(spacing)
    affine[:3, 3] = (-12.0, 7.5, 31.0)
    return affine


@dataclass
class MemoryCase:
    """Stored voxels are hundredths of the value."""

    case_id: str
    affine: np.ndarray
    stored: np.ndarray
    labels: np.ndarray | None
    reads: list[tuple[tuple[int, ...], tuple[int, ...], bool]] = field(default_factory=list)
    air: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        return tuple(np.linalg.norm(self.affine[:3, :3], axis=0).tolist())

    def read(self, start, size, *, labels):
        assert all(s >= 0 and n > 0 for s, n in zip(start, size, strict=True))
        assert all(s + n <= m for s, n, m in zip(start, size, self.shape[1:], strict=True))
        self.reads.append((tuple(start), tuple(size), labels))
        box = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
        label_map = self.labels[box] if labels and self.labels is not None else None
        return self.stored[(slice(None), *box)], label_map

    def normalise(self, stored):
        return stored.astype(np.float32) / 100

    def classes_present(self) -> tuple[int, ...]:
        return tuple(index for index in np.unique(self.labels).tolist() if index > 0)

    def label_voxels(self, index: int) -> np.ndarray:
        return np.argwhere(self.labels == index)[:2000]

    def body_voxels(self) -> np.ndarray:
        return np.argwhere(np.abs(self.stored[0]) > 500)[:2000]


def make_case(shape=(31, 23, 17), spacing=(1.0, 1.5, 3.0), case_id="case", classes=5) -> MemoryCase:
    """A case whose value, class and position say each other."""
    affine = oblique_affine(spacing)
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    points = voxels @ affine[:3, :3].T + affine[:3, 3]
    stored = np.moveaxis(points @ SLOPES.T * 100, -1, 0).round().astype(np.int16)
    # Boxes of 4 x 3 x 2 voxels, so that the class tells the position too.
    labels = (voxels // (4, 3, 2) @ (1, 2, 3) % classes).astype(np.uint8)
    return MemoryCase(case_id, affine, stored, labels)


def value_at(affine: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Values `c x y z` at the voxels of an affine, for a crop of some size."""
    voxels = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
    return np.moveaxis((voxels @ affine[:3, :3].T + affine[:3, 3]) @ SLOPES.T, -1, 0)


def make_store(folder: Path, shapes: Sequence[Sequence[int]], *, labels: bool = True) -> Store:
    """A store on disk of cases whose voxels tell positions: int16 hundredths, `other` modality."""
    classes = ClassTable.from_values([0, 1, 2, 4, 7]) if labels else None
    rule = Normalisation("zscore", -400.0, 400.0, 0.0, 1.0, air=-3.0)
    cases = []
    (folder / "cases").mkdir(parents=True, exist_ok=True)
    for number, shape in enumerate(shapes):
        case = make_case(tuple(shape), (1.0, 1.5, 3.0), f"case_{number}")
        prepared = PreparedCase(
            case.case_id,
            case.stored,
            scale=(0.01, 0.01),
            offset=(0.0, 0.0),
            affine=case.affine,
            normalisation=(rule, rule),
            labels=case.labels if labels else None,
            class_values=classes.values if classes else None,
            body_voxels=case.body_voxels().astype(np.uint16),
        )
        written = write_case(folder, prepared, {}, f"key {number}", "blosc")
        cases.append(
            {
                "case_id": case.case_id,
                "subject_id": f"subject {number // 2}",
                "part": "training",
                "shape": written["shape"],
                "spacing_mm": written["spacing_mm"],
                "has_label": labels,
                "image_key": f"image {number}",
                "key": written["key"],
                **written["file"],
            }
        )
    manifest = {
        "format": FORMAT,
        "name": "positions",
        "cases": cases,
        "classes": classes.as_json() if classes else None,
        "channel_names": ["one", "two"],
        "modalities": ["other", "other"],
        "preparation": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return Store(folder)
