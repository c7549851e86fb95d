"""The scores of one case, with a rule for structures that one side lacks.

| reference | prediction | Dice, NSD        | HD95                    | counted as   |
|-----------|------------|------------------|-------------------------|--------------|
| present   | present    | computed         | computed                | case         |
| present   | empty      | 0                | diagonal of the image   | missed       |
| empty     | present    | 0                | diagonal of the image   | hallucinated |
| empty     | empty      | not in the mean  | not in the mean         | absent       |

A case without any prediction is missed for every structure, even one its reference lacks, so that
leaving a prediction out never pays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from mim3d.evaluation.overlap import Indexed, Structure, dice, index_maps, meetings, sizes
from mim3d.evaluation.surface import Spacing, diagonal_mm, surface_distances

Counted = Literal["case", "missed", "hallucinated", "absent"]
Box = tuple[slice, ...]

CONVENTION = "missed-and-hallucinated-score-worst"
"""Name of the rule above, written into every file of results."""


@dataclass(frozen=True)
class Score:
    """One structure in one case; the metrics are None where it is absent from both sides.

    Attributes:
        case_id: stem of the label file.
        subject: whom the case belongs to.
        structure: name of the class or region.
        dice: 0 to 1.
        hd95_mm: millimetres.
        nsd: 0 to 1, at the tolerance of the evaluation.
        counted_as: row of the rule that applied.
    """

    case_id: str
    subject: str
    structure: str
    dice: float | None
    hd95_mm: float | None
    nsd: float | None
    counted_as: Counted


def score_case(
    reference: NDArray[Any],
    prediction: NDArray[Any] | None,
    spacing_mm: Spacing,
    structures: Sequence[Structure],
    *,
    case_id: str,
    subject: str | None = None,
    nsd_tolerance_mm: float = 1.0,
    ignore_value: int | None = None,
) -> list[Score]:
    """Scores every structure of one case.

    Args:
        reference: `x y z`, label values.
        prediction: `x y z`, label values; None where there is none.
        spacing_mm: voxel size along x, y, z.
        structures: what to score.
        case_id: name of the case.
        subject: whom it belongs to; None takes the case id.
        nsd_tolerance_mm: distance up to which surfaces agree.
        ignore_value: voxels with this value in the reference count on neither side.

    Returns:
        One score a structure, in their order.

    Raises:
        ShapeError: the label maps have different shapes.
        UserError: a value is negative or above 65535.
    """
    worst = diagonal_mm(reference.shape, spacing_mm)

    def score(
        structure: Structure,
        counted: Counted,
        overlap: float | None = 0.0,
        hd95_mm: float | None = worst,
        near: float | None = 0.0,
    ) -> Score:
        whom = subject or case_id
        return Score(case_id, whom, structure.name, overlap, hd95_mm, near, counted)

    if prediction is None:
        return [score(structure, "missed") for structure in structures]
    if ignore_value is not None:
        ignored = reference == ignore_value
        reference, prediction = np.where(ignored, 0, reference), np.where(ignored, 0, prediction)

    maps = index_maps(reference, prediction)
    table = meetings(maps)
    boxes = _boxes(maps)
    scores = []
    for structure in structures:
        members = maps.indices(structure)
        ours, theirs, both = sizes(table, members)
        if not ours and not theirs:
            scores.append(score(structure, "absent", None, None, None))
        elif not theirs:
            scores.append(score(structure, "missed"))
        elif not ours:
            scores.append(score(structure, "hallucinated"))
        else:
            box = _union([boxes[member] for member in members if member in boxes])
            distances = surface_distances(
                _mask(maps.reference, box, members),
                _mask(maps.prediction, box, members),
                spacing_mm,
            )
            near = distances.share_within(nsd_tolerance_mm)
            overlap = dice(ours, theirs, both)
            scores.append(score(structure, "case", overlap, distances.percentile(), near))
    return scores


def _boxes(maps: Indexed) -> dict[int, Box]:
    """For every index, the smallest box that holds its voxels of both sides."""
    found: dict[int, Box] = {}
    for labels in (maps.reference, maps.prediction):
        for place, box in enumerate(find_objects(labels)):
            if box is not None:
                index = place + 1
                found[index] = _union([found[index], box]) if index in found else box
    return found


def _union(boxes: Sequence[Box]) -> Box:
    return tuple(
        slice(min(s.start for s in sides), max(s.stop for s in sides))
        for sides in zip(*boxes, strict=True)
    )


def _mask(labels: NDArray[Any], box: Box, members: Sequence[int]) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = labels[box] == members[0]
    for member in members[1:]:
        mask |= labels[box] == member
    return mask
