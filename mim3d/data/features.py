"""Files of frozen features, for other programs: HDF5 with volumes and patches, or a flat CSV.

HDF5 (`.h5`), `n` volumes, `m` patches of all of them, `d` numbers each:

    case_id, subject_id, list   n          text
    features                    n d        float32, the mean of a volume's patches
    class_token                 n d        float32, where the encoder has one
    targets/<name>              n          float64, NaN where a case has no such number
    patches/features            m d        float32
    patches/centres_mm          m 3        float64, middle of the patch, RAS+ millimetres
    patches/first               n + 1      int64: case i has the patches first[i] to first[i + 1]

CSV: one row a volume with the same columns, or one row a patch.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

import h5py
import numpy as np
from numpy.typing import NDArray

from mim3d.foundation.atomic import whole_file
from mim3d.foundation.errors import UserError

Level = Literal["volume", "patches", "both"]
FORMAT = 1
CHUNK = 256
"""Rows of features that HDF5 keeps together."""
WORDS = ("case", "subject", "list")
"""The first columns of a CSV."""


@dataclass(frozen=True, eq=False)
class CaseFeatures:
    """The features of one case.

    Attributes:
        case_id: its name.
        volume: `d`, the mean of its patches.
        class_token: `d`; None where the encoder has none.
        patches: `m d`; None where they are not kept.
        centres_mm: `m 3`, RAS+ millimetres.
        subject_id: whose it is.
        part: the list it belongs to; empty where nobody says.
        targets: numbers that are known of it, by name.
    """

    case_id: str
    volume: NDArray[np.float32]
    class_token: NDArray[np.float32] | None = None
    patches: NDArray[np.float32] | None = None
    centres_mm: NDArray[np.float64] | None = None
    subject_id: str = ""
    part: str = ""
    targets: Mapping[str, float] = field(default_factory=dict)


def write_features(
    path: Path | str, cases: Iterable[CaseFeatures], *, level: Level, about: Mapping[str, Any]
) -> int:
    """Writes a file of features, whole or not at all, while they are being made.

    Args:
        path: ends in `.h5` or `.csv`.
        cases: one after the other; patches are not held in memory.
        level: what is kept. Of a CSV it decides what a row is, and `both` is an error.
        about: what made them; attributes of the HDF5 file, no part of a CSV.

    Returns:
        How many cases there were; of none, nothing is written.

    Raises:
        UserError: another ending; or a CSV of both volumes and patches.
        DiskError: it cannot be written.
    """
    path = Path(path)
    write = WRITERS[ending_of(path, level)]
    known = _Counted(cases)
    first = next(known, None)
    if first is None:
        return 0
    with whole_file(path) as temporary:
        write(temporary, first, known, level, about)
    return known.count


def ending_of(path: Path | str, level: Level) -> str:
    """`.h5` or `.csv`.

    Raises:
        UserError: another ending; or a CSV of both volumes and patches.
    """
    ending = Path(path).suffix.lower()
    if ending in (".hdf5", ".hdf"):
        ending = ".h5"
    if ending not in WRITERS:
        raise UserError(
            f"features go to a file that ends in `.h5` or `.csv`, not `{Path(path).name}`",
            remedy="`--out features.h5` keeps volumes and patches, `--out features.csv` one kind",
            code="ending",
        )
    if ending == ".csv" and level == "both":
        raise UserError(
            "a CSV has one kind of row, of volumes or of patches",
            remedy="add `--level volume` or `--level patches`, or name a file that ends in `.h5`",
            code="level",
        )
    return ending


class _Counted(Iterator[CaseFeatures]):
    """The same cases, counted."""

    def __init__(self, cases: Iterable[CaseFeatures]) -> None:
        self._cases = iter(cases)
        self.count = 0

    def __next__(self) -> CaseFeatures:
        case = next(self._cases)
        self.count += 1
        return case


def _write_h5(
    path: Path,
    first: CaseFeatures,
    others: Iterable[CaseFeatures],
    level: Level,
    about: Mapping[str, Any],
) -> None:
    width = len(first.volume)
    with _Patient(path) as disk, h5py.File(disk, "w") as file:
        file.attrs.update({"format": FORMAT, **about})
        tables = _Tables(file, width, level)
        rows: list[CaseFeatures] = []
        for case in _chained(first, others):
            tables.add(case)
            disk.check()
            # Patches are on the disk by now.
            rows.append(
                CaseFeatures(case.case_id, case.volume, case.class_token,
                             subject_id=case.subject_id, part=case.part, targets=case.targets)
            )  # fmt: skip
        text = h5py.string_dtype("utf-8")
        words = {"case_id": "case_id", "subject_id": "subject_id", "list": "part"}
        for name, attribute in words.items():
            file.create_dataset(name, data=[getattr(row, attribute) for row in rows], dtype=text)
        if level != "patches":
            file["features"] = np.stack([row.volume for row in rows]).astype(np.float32)
            if first.class_token is not None:
                tokens = [row.class_token for row in rows if row.class_token is not None]
                file["class_token"] = np.stack(tokens).astype(np.float32)
        for name in dict.fromkeys(name for row in rows for name in row.targets):
            values = [row.targets.get(name, math.nan) for row in rows]
            file.require_group("targets").create_dataset(name, data=np.array(values, np.float64))
        tables.close()


class _Patient(io.FileIO):
    """A file for HDF5, which ends the process where a disk does not take what it writes.

    It hears nothing of that; `check`, and closing, raise what was wrong.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self._failed: OSError | None = None

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if self._failed is None:
            try:
                return self._written(memoryview(data).cast("B"))
            except OSError as error:
                self._failed = error
        self.seek(size, io.SEEK_CUR)
        return size

    def _written(self, data: memoryview) -> int:
        done = 0
        while done < len(data):  # a disk that is nearly full takes a part
            done += super().write(data[done:])
        return done

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self._failed = self._failed or error
            return self.tell() if size is None else size

    def check(self) -> None:
        """Raises what the disk refused since the file was opened."""
        if self._failed is not None:
            raise self._failed

    def close(self) -> None:
        super().close()
        self.check()


class _Tables:
    """The growing tables of patches, where they are kept."""

    def __init__(self, file: h5py.File, width: int, level: Level) -> None:
        self.is_kept = level != "volume"
        self.first = [0]
        if self.is_kept:
            self.group = file.create_group("patches")
            for name, kind, columns in (("features", "f4", width), ("centres_mm", "f8", 3)):
                self.group.create_dataset(
                    name, (0, columns), kind, maxshape=(None, columns), chunks=(CHUNK, columns)
                )

    def add(self, case: CaseFeatures) -> None:
        """The patches of one more case."""
        if not self.is_kept:
            return
        assert case.patches is not None  # asked for by whoever keeps them
        stop = self.first[-1] + len(case.patches)
        for name, values in (("features", case.patches), ("centres_mm", case.centres_mm)):
            self.group[name].resize(stop, axis=0)
            self.group[name][self.first[-1] :] = values
        self.first.append(stop)

    def close(self) -> None:
        """Says whose each patch is."""
        if self.is_kept:
            self.group["first"] = np.array(self.first, np.int64)


def _write_csv(
    path: Path,
    first: CaseFeatures,
    others: Iterable[CaseFeatures],
    level: Level,
    about: Mapping[str, Any],
) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        write = _patch_rows if level == "patches" else _volume_rows
        write(file, first, others)


def _volume_rows(file: TextIO, first: CaseFeatures, others: Iterable[CaseFeatures]) -> None:
    # Which targets there are is known when the last case is.
    cases = list(_chained(first, others))
    targets = list(dict.fromkeys(name for case in cases for name in case.targets))
    names = [*WORDS, *(f"target_{name}" for name in targets)]
    names += [f"feature_{place}" for place in range(len(first.volume))]
    if first.class_token is not None:
        names += [f"class_token_{place}" for place in range(len(first.class_token))]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    for case in cases:
        known = [_written(case.targets[name]) if name in case.targets else "" for name in targets]
        tokens = () if case.class_token is None else case.class_token
        numbers = map(_written, (*case.volume, *tokens))
        writer.writerow([case.case_id, case.subject_id, case.part, *known, *numbers])


def _patch_rows(file: TextIO, first: CaseFeatures, others: Iterable[CaseFeatures]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    places = [f"feature_{place}" for place in range(len(first.volume))]
    writer.writerow([*WORDS, "x_mm", "y_mm", "z_mm", *places])
    for case in _chained(first, others):
        assert case.patches is not None  # asked for by whoever writes them
        assert case.centres_mm is not None
        for centre, row in zip(case.centres_mm, case.patches, strict=True):
            numbers = map(_written, (*centre, *row))
            writer.writerow([case.case_id, case.subject_id, case.part, *numbers])


def _chained(first: CaseFeatures, others: Iterable[CaseFeatures]) -> Iterator[CaseFeatures]:
    yield first
    yield from others


def _written(value: Any) -> str:
    """A number as short as it reads back exactly in its own precision."""
    return str(value)


WRITERS = {".h5": _write_h5, ".csv": _write_csv}
