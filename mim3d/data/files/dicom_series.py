"""From a folder of DICOM files to one series whose slices make a volume, or to the reason why not.

Slices are put in order by their position along the normal of the image plane; names and instance
numbers count for nothing. Distances must be equal within 0.05 mm or 1 percent, and all slices must
agree in orientation, size, pixel spacing and type.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim3d.data.files.dicom_slices import check_equal, check_slice, is_neutral
from mim3d.data.files.dicom_tags import DIRECTORY, Tags, has_preamble, read_tags
from mim3d.data.volume import Note
from mim3d.foundation.errors import VolumeError

MOST_FILES = 50_000
SAME_PLACE_MM = 1e-3
GAP_MM, GAP_RATIO, MOST_GAP_RATIO = 0.05, 0.01, 0.1


@dataclass(frozen=True)
class Series:
    """The slices of one series that have passed all checks that need no pixels.

    Attributes:
        uid: its identifier, possibly empty.
        places: for each position along the normal, the files that claim it (mostly one).
        directions: (3, 3) LPS millimetres a step along column, row and slice index.
        origin: (3,) LPS millimetres of the first pixel.
        modality: as the files say.
        notes: what was odd.
    """

    uid: str
    places: list[list[Tags]]
    directions: NDArray[np.float64]
    origin: NDArray[np.float64]
    modality: str
    notes: list[Note]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        first = self.places[0][0]
        return (first.whole("columns"), first.whole("rows"), len(self.places))


@dataclass(frozen=True)
class Summary:
    """One line of the list of series in a folder."""

    uid: str
    slices: int
    rows: int
    columns: int
    modality: str


def find_series(path: Path) -> tuple[dict[str, list[Tags]], list[Note]]:
    """All images of a folder (or one file) by series, and a note on what else lay there.

    Raises:
        VolumeError: no images, or a file that is damaged.
    """
    files, strays = dicom_files(path)
    objects = [read_tags(file) for file in files]
    images = [tags for tags in objects if tags.pixels is not None or "rows" in tags.numbers]
    uids = {tags.text("series") for tags in images}
    for tags in objects:
        # Plans and reports have series of their own; what names none is a damaged slice.
        other = tags.text("series") and tags.text("series") not in uids
        if tags.pixels is None and not (other or tags.text("media_class") == DIRECTORY):
            raise VolumeError(
                f"its slice `{tags.path.name}` has no pixels",
                remedy="export the series again",
                code="damaged",
            )
    if not images:
        raise VolumeError("it holds no DICOM images", code="format")
    groups: dict[str, list[Tags]] = {}
    for tags in images:
        groups.setdefault(tags.text("series"), []).append(tags)
    others = len(strays) + len(objects) - len(images)
    text = f"{others} files in the folder are no slices and were ignored"
    return dict(sorted(groups.items())), [Note("dicom-stray", text)] if others else []


def summaries(groups: dict[str, list[Tags]]) -> list[Summary]:
    """What there is to choose from, in the order of the numbers that `read.series` takes."""
    return [
        Summary(
            uid,
            len(slices),
            slices[0].whole("rows"),
            slices[0].whole("columns"),
            slices[0].text("modality"),
        )
        for uid, slices in groups.items()
    ]


def choose(groups: dict[str, list[Tags]], series: str | None) -> tuple[str, list[Tags]]:
    """The one series, or the one asked for by UID, number, modality or as `largest`.

    Raises:
        VolumeError: several and none asked for, or none of that name; lists them.
    """
    listed = "; ".join(
        f"{number}: {each.slices} slices of {each.columns} x {each.rows}, {each.uid or 'no UID'}"
        for number, each in enumerate(summaries(groups), start=1)
    )
    if series is None:
        if len(groups) == 1:
            return next(iter(groups.items()))
        raise VolumeError(
            f"the folder holds {len(groups)} series",
            remedy=f"choose one with `--read.series NUMBER` or its UID: {listed}",
            code="several-series",
        )
    if series in groups:
        return series, groups[series]
    if (largest := _largest(groups, series)) is not None:
        return largest
    if series.isdecimal() and 1 <= int(series) <= len(groups):
        return list(groups.items())[int(series) - 1]
    raise VolumeError(
        "the folder does not hold the series asked for",
        remedy=f"choose one with `--read.series NUMBER` or its UID: {listed}",
        code="several-series",
    )


def _largest(groups: dict[str, list[Tags]], rule: str) -> tuple[str, list[Tags]] | None:
    """What a rule takes: the series of most pixels, of all (`largest`) or of a modality (`CT`)."""
    word = rule.upper()
    fitting = [
        (uid, slices)
        for uid, slices in groups.items()
        if word == "LARGEST" or slices[0].text("modality").upper() == word
    ]
    if not word.isalpha() or not fitting:
        return None
    # Of equals the first, in the order of their numbers.
    return max(fitting, key=lambda one: sum(t.whole("rows") * t.whole("columns") for t in one[1]))


def check_series(uid: str, slices: list[Tags], notes: list[Note]) -> Series:
    """Puts the slices in order and refuses what makes no volume.

    Raises:
        VolumeError: slices that do not belong together, or are missing, uneven or turned.
    """
    first = slices[0]
    for tags in slices:
        check_slice(tags)
    check_equal(slices)
    row, column = _orientation(first)
    between_rows, between_columns = first.several("spacing", 2)
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    places, positions = _ordered(slices, normal)
    notes = [*notes, *_photometric_note(slices)]
    if len(places) == 1:
        step = normal * _thickness(first)
        notes.append(Note("one-slice", "a single slice: its thickness was taken as its distance"))
    else:
        step = _step(places, positions, normal)
    directions = np.column_stack([row * between_columns, column * between_rows, step])
    return Series(uid, places, directions, positions[0], first.text("modality"), notes)


def dicom_files(path: Path) -> tuple[list[Path], list[Path]]:
    """The DICOM files of a folder, sorted by name, and the other files."""
    if not path.is_dir():
        return [path], []
    entries: list[Path] = []
    folders = 0
    with os.scandir(path) as listing:
        for entry in listing:
            if len(entries) >= MOST_FILES:
                raise VolumeError(f"the folder holds more than {MOST_FILES} files", code="format")
            mode = _mode(entry)
            folders += stat.S_ISDIR(mode)
            if stat.S_ISREG(mode):
                entries.append(path / entry.name)
    entries.sort()
    slices = [entry for entry in entries if has_preamble(entry)]
    strays = [entry for entry in entries if entry not in set(slices)]
    if not slices:
        within = ", but further folders" if folders else ""
        raise VolumeError(
            f"the folder holds no DICOM files{within}",
            remedy="give the folder of one series, or the file of a volume",
            code="format",
        )
    patterns = {_pattern(entry.name) for entry in slices}
    for stray in strays:
        if _pattern(stray.name) in patterns or stray.suffix.lower() == ".dcm":
            raise VolumeError(
                f"its slice `{stray.name}` is damaged: it does not begin as DICOM does",
                remedy="copy or export the series again",
                code="damaged",
            )
    return slices, strays


def _mode(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_mode
    except OSError:
        return 0


def _pattern(name: str) -> str:
    """A name with its numbers masked: the names of one export look alike."""
    return re.sub(r"\d+", "#", name) if re.search(r"\d", name) else ""


def _orientation(tags: Tags) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    numbers = np.array(tags.numbers["orientation"])
    row, column = numbers[:3], numbers[3:]
    for vector in (row, column):
        if abs(float(np.linalg.norm(vector)) - 1) > 0.01:
            raise VolumeError("the directions of its rows and columns are no unit vectors",
                              remedy="export the series again", code="geometry")  # fmt: skip
    row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
    if abs(float(row @ column)) > 0.01:
        raise VolumeError(
            "its rows and columns are not at right angles",
            remedy="resample it to an orthogonal grid with a tool you trust",
            code="shear",
        )
    return row, column


def _ordered(
    slices: list[Tags], normal: NDArray[np.float64]
) -> tuple[list[list[Tags]], NDArray[np.float64]]:
    """Slices by place along the normal; those at one place together. Positions are `n 3`."""
    along = [float(np.array(tags.numbers["position"]) @ normal) for tags in slices]
    order = sorted(range(len(slices)), key=lambda index: (along[index], slices[index].path))
    places: list[list[Tags]] = []
    last = -np.inf
    for index in order:
        if along[index] - last > SAME_PLACE_MM:
            places.append([])
            last = along[index]
        places[-1].append(slices[index])
    positions = np.array([group[0].numbers["position"] for group in places])
    return places, positions


def _step(
    places: list[list[Tags]], positions: NDArray[np.float64], normal: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The way from one slice to the next.

    Raises:
        VolumeError: a gap is larger or smaller than the others, or a slice lies off the line.
    """
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    allowed = min(max(GAP_MM, GAP_RATIO * usual), MOST_GAP_RATIO * usual)
    odd = np.flatnonzero(np.abs(gaps - usual) > allowed)
    if odd.size:
        at = int(odd[0])
        raise VolumeError(
            f"its slices are {usual:.4g} mm apart, but {gaps[at]:.4g} mm between"
            f" `{places[at][0].path.name}` and `{places[at + 1][0].path.name}`",
            remedy="get the missing slices, or resample with a tool you trust",
            code="slice-gap",
        )
    step: NDArray[np.float64] = (positions[-1] - positions[0]) / (len(places) - 1)
    away = positions - (positions[0] + np.arange(len(places))[:, None] * step)
    if float(np.sqrt((away**2).sum(axis=1)).max()) > max(allowed, GAP_RATIO * usual):
        raise VolumeError(
            "its slices do not lie on one line",
            remedy="resample it to an orthogonal grid with a tool you trust",
            code="slice-gap",
        )
    return step


def _thickness(tags: Tags) -> float:
    for name in ("between", "thickness"):
        found = tags.several(name, 1)
        if found and found[0] > 0:
            return found[0]
    raise VolumeError(
        "it is a single slice without thickness",
        remedy="export the whole series",
        code="spacing",
    )


def _photometric_note(slices: list[Tags]) -> list[Note]:
    kinds = {tags.text("photometric") for tags in slices}
    if len(kinds) > 1:
        raise VolumeError("its slices differ in what is bright", code="slices-differ")
    if kinds == {"MONOCHROME1"}:
        text = "MONOCHROME1: the values are as rescaled, they were not inverted"
        return [Note("monochrome1", text)]
    return []


def describe(series: Series) -> dict[str, Any]:
    """What the reading process sends before any pixel, in JSON's types."""
    tags = [each for place in series.places for each in place]
    bits, signed = tags[0].whole("bits_allocated"), tags[0].whole("signed")
    stored = f"{'int' if signed else 'uint'}{bits}"
    dtype = stored if all(map(is_neutral, tags)) else "float32"
    return {
        "shape": series.shape,
        "dtype": dtype,
        "directions": series.directions.tolist(),
        "origin": series.origin.tolist(),
        "modality": series.modality,
        "compressed": not all(each.is_native for each in tags),
        "notes": [[note.code, note.text] for note in series.notes],
    }
