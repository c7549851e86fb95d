"""The headers of a cohort's files, and what can be said against cases by them alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mim3d.config.read import ReadConfig
from mim3d.config.verbs import PrepareConfig
from mim3d.data.cohort import Case
from mim3d.data.files import Geometry, is_there, read_geometry
from mim3d.data.files.geometry import corners
from mim3d.data.files.reading import SAME_GRID
from mim3d.foundation.digests import file_digest
from mim3d.foundation.errors import UserError
from mim3d.foundation.reporting import Reporter

ODD_SPACING = 3.0
"""Times the median of the cohort from which on a voxel's side is told of."""


@dataclass(frozen=True)
class Problem:
    """Something a person should know about a case.

    Attributes:
        case_id: which case.
        code: as in `quarantine.tsv`.
        text: one sentence.
        remedy: what to do, or empty.
        refuses: whether `prepare` would leave the case out as it is asked for now.
    """

    case_id: str
    code: str
    text: str
    remedy: str = ""
    refuses: bool = True


@dataclass(frozen=True)
class CaseHeaders:
    """A case and what its files' headers say.

    Attributes:
        case: which.
        images: one a file; empty where one cannot be read.
        label: of the label map, or None.
        problems: what stands against it.
    """

    case: Case
    images: tuple[Geometry, ...]
    label: Geometry | None
    problems: tuple[Problem, ...]

    @property
    def channels(self) -> int:
        """Number of channels of all files."""
        return sum(image.channels for image in self.images)

    @property
    def voxels(self) -> int:
        """Voxels of all channels."""
        return sum(int(np.prod(image.shape)) * image.channels for image in self.images)


def read_headers(
    cases: Sequence[Case], config: PrepareConfig, reporter: Reporter
) -> list[CaseHeaders]:
    """Reads the headers of all cases, and compares those of each case with each other."""
    found = []
    for done, case in enumerate(cases):
        reporter.progress(done, len(cases), f"headers: {done} of {len(cases)} cases")
        found.append(_of_case(case, config))
    return found


def across_cases(headers: Sequence[CaseHeaders]) -> list[Problem]:
    """What only a comparison of cases shows: channels, spacings, files that occur twice."""
    usable = [one for one in headers if one.images]
    if not usable:
        return []
    problems = []
    usual = Counter(one.channels for one in usable).most_common(1)[0][0]
    spacings = np.array([one.images[0].spacing_mm for one in usable])
    median = np.median(spacings, axis=0)
    for one, spacing_mm in zip(usable, spacings, strict=True):
        case_id = one.case.case_id
        if one.channels != usual:
            text = f"it has {one.channels} channel(s), and most cases have {usual}"
            remedy = "prepare such cases as a cohort of their own"
            problems.append(Problem(case_id, "channels", text, remedy))
        ratio = float(np.maximum(spacing_mm / median, median / spacing_mm).max())
        if ratio > ODD_SPACING:
            sides = " x ".join(f"{side:.3g}" for side in spacing_mm)
            text = f"its voxels are {sides} mm, {ratio:.1f} times the median on one axis"
            problems.append(Problem(case_id, "odd-spacing", text, "see whether it belongs here",
                                    refuses=False))  # fmt: skip
    return [*problems, *_twice(usable)]


def differ(one: Geometry, other: Geometry) -> str | None:
    """How the grid of one file differs from another's, by the rule of `check_same_grid`."""
    if one.shape != other.shape:
        return f"{_grid(one)} and {_grid(other)}"
    apart = (other.affine - one.affine) @ corners(one.shape)
    voxels = np.linalg.solve(one.affine[:3, :3], apart[:3])
    if float(np.sqrt((voxels**2).sum(axis=0)).max()) > SAME_GRID:
        return f"they lie up to {float(np.sqrt((apart[:3] ** 2).sum(axis=0)).max()):.3g} mm apart"
    return None


def _of_case(case: Case, config: PrepareConfig) -> CaseHeaders:
    problems: list[Problem] = []
    images = tuple(_geometries(case, case.images, config.read, problems))
    labels = () if case.label is None else (case.label,)
    label = next(iter(_geometries(case, labels, config.read, problems)), None)
    if len(images) < len(case.images):
        return CaseHeaders(case, (), label, tuple(problems))
    for number, image in enumerate(images[1:], 1):
        how = differ(images[0], image)
        if how is not None and not config.prepare.align_channels:
            text = f"channels 0 and {number} lie on different grids: {how}"
            remedy = "register the channels, or say `--prepare.align_channels true`"
            problems.append(Problem(case.case_id, "channel-grids", text, remedy))
    if label is not None:
        problems += _against(case, images[0], label, config)
    return CaseHeaders(case, images, label, tuple(problems))


def _against(
    case: Case, image: Geometry, label: Geometry, config: PrepareConfig
) -> Iterator[Problem]:
    how = differ(image, label)
    is_trusted = config.prepare.trust_image_grid and label.orientation == "unknown"
    if how is None or is_trusted:
        return
    text = f"image and label map lie on different grids: {how}"
    if label.orientation == "unknown" and image.orientation != "unknown":
        remedy = "if its voxels are the image's, say `--prepare.trust_image_grid true`"
        yield Problem(case.case_id, "label-no-orientation", text, remedy)
    else:
        remedy = "resample the label map to the image's grid with a tool you trust"
        yield Problem(case.case_id, "grids-differ", text, remedy)


def _geometries(
    case: Case, paths: Iterable[Path], read: ReadConfig, problems: list[Problem]
) -> Iterator[Geometry]:
    for path in paths:
        if not is_there(path):
            remedy = "check the source's list"
            text = f"`{path.name}` does not exist"
            problems.append(Problem(case.case_id, "missing-file", text, remedy))
            continue
        try:
            yield read_geometry(path, read)
        except UserError as error:
            text = f"`{path.name}`: {error.what}"
            problems.append(Problem(case.case_id, error.code, text, error.remedy or ""))


def _twice(headers: Sequence[CaseHeaders]) -> list[Problem]:
    """Images whose bytes are equal. Only compressed files: others mostly have equal sizes."""
    by_size: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    for one in headers:
        for path in one.case.images:
            if path.name.lower().endswith(".gz") and path.is_file():
                by_size[path.stat().st_size].append((one.case.case_id, path))
    problems = []
    for group in by_size.values():
        first: dict[str, str] = {}
        for case_id, path in group if len(group) > 1 else ():
            known = first.setdefault(file_digest(path), case_id)
            if known != case_id:
                text = f"`{path.name}` has the bytes of an image of `{known}`"
                remedy = "leave one out, or give both one subject: else it trains and judges"
                problems.append(Problem(case_id, "duplicate", text, remedy, refuses=False))
    return problems


def _grid(one: Geometry) -> str:
    sides = " x ".join(f"{side:.3g}" for side in one.spacing_mm)
    return f"{' x '.join(map(str, one.shape))} voxels of {sides} mm"
