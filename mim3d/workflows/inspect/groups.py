"""Volumes of one modality together: counts, sizes, spacings, orientations, types."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim3d.data.cohort import Cohort
from mim3d.data.cohort.cases import modality_of
from mim3d.data.files import Geometry
from mim3d.workflows.inspect.headers import CaseHeaders

DICOM = {"CT": "ct", "MR": "mr"}
NAMES = {"ct": "CT", "mr": "MR", "other": "other"}


@dataclass(frozen=True)
class Group:
    """What the headers of some volumes say.

    Attributes:
        modality: `ct`, `mr`, `other` or `unknown`.
        channel: what the source calls the channel; empty where it does not.
        volumes: how many.
        shape: smallest, median and largest side along x, y, z, in voxels.
        spacing_mm: the same of the voxels' sides.
        orientations: by the axes of the file, `LPS`.
        types: by the type of a voxel.
        notes: what is odd about headers, by code.
    """

    modality: str
    channel: str
    volumes: int
    shape: dict[str, list[float]]
    spacing_mm: dict[str, list[float]]
    orientations: dict[str, int]
    types: dict[str, int]
    notes: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def grouped(cohort: Cohort, headers: Sequence[CaseHeaders], tried: Sequence[str]) -> list[Group]:
    """The volumes by modality and channel, the most frequent first.

    Args:
        cohort: may name its channels.
        headers: of all cases.
        tried: modality of each channel by the values of a few cases, or empty.
    """
    names = cohort.channel_names or ()
    by_kind: dict[tuple[str, str], list[Geometry]] = defaultdict(list)
    for one in headers:
        place = 0
        for image in one.images:
            for _ in range(image.channels):
                name = names[place] if place < len(names) else ""
                by_value = tried[place] if place < len(tried) else "unknown"
                said = DICOM.get(image.modality, "other") if image.modality else modality_of(name)
                by_kind[said or by_value, name].append(image)
                place += 1
    return [
        _group(modality, name, by_kind[modality, name])
        for modality, name in sorted(by_kind, key=lambda kind: (-len(by_kind[kind]), kind))
    ]


def group_lines(group: Group) -> Iterator[str]:
    """A group for a person."""
    named = f", channel `{group.channel}`" if group.channel else ""
    modality = NAMES.get(group.modality, group.modality)
    yield f"{modality}{named}: {group.volumes} volume(s)"
    yield f"  size         {_spread(group.shape)} voxels"
    yield f"  spacing      {_spread(group.spacing_mm)} mm"
    yield f"  orientation  {_counts(group.orientations)}"
    yield f"  type         {_counts(group.types)}"
    if group.notes:
        yield f"  notes        {_counts(group.notes)}"


def _group(modality: str, name: str, images: Sequence[Geometry]) -> Group:
    notes = Counter(note.code for image in images for note in image.notes)
    return Group(
        modality,
        name,
        len(images),
        _extent(np.array([image.shape for image in images], np.float64)),
        _extent(np.array([image.spacing_mm for image in images])),
        dict(Counter(image.orientation for image in images).most_common()),
        dict(Counter(image.dtype for image in images).most_common()),
        dict(notes.most_common()),
    )


def _extent(sides: NDArray[np.float64]) -> dict[str, list[float]]:
    return {
        "min": sides.min(axis=0).tolist(),
        "median": np.median(sides, axis=0).tolist(),
        "max": sides.max(axis=0).tolist(),
    }


def _spread(extent: dict[str, list[float]]) -> str:
    low, middle, high = (
        " x ".join(f"{s:.4g}" for s in extent[k]) for k in ("min", "median", "max")
    )
    return middle if low == high else f"{low} to {high}, median {middle}"


def _counts(counts: dict[str, int]) -> str:
    if len(counts) == 1:
        return f"{next(iter(counts))} in all" if sum(counts.values()) > 1 else next(iter(counts))
    return ", ".join(f"{name} in {count}" for name, count in counts.items())
