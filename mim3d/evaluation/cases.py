"""The scores of one case, with a rule for structures that one side lacks.

| reference | prediction | Dice, NSD        | HD95                    | counted as   |
|-----------|------------|------------------|-------------------------|--------------|
| present   | present    | computed         | computed                | case         |
| present   | empty      | 0                | diagonal of the image   | missed       |
| empty     | present    | 0                | diagonal of the image   | hallucinated |
| empty     | empty      | not in the mean  | not in the mean         | absent       |

A case without any prediction is missed for every structure, even one its reference lacks, so that
leaving a prediction out never pays. What its reference lacks would otherwise not be in the mean at
all, and the diagonal of a small image could lie below that mean: there the charge is that of the
cohort's largest image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mim3d.evaluation.boundary import boundary
from mim3d.evaluation.overlap import Indexed, Structure, dice, index_maps, meetings, sizes
from mim3d.evaluation.surface import Spacing, diagonal_mm, distances_between

Counted = Literal["case", "missed", "hallucinated", "absent"]

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
    largest_mm: float = 0.0,
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
        largest_mm: the longest diagonal of the cohort, charged for what a case without prediction
            lacks in its reference.

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

    if ignore_value is not None:
        ignored = reference == ignore_value
        reference = np.where(ignored, 0, reference)
        prediction = None if prediction is None else np.where(ignored, 0, prediction)
    if prediction is None:
        there = [bool(np.isin(reference, one.values).any()) for one in structures]
        charges = [worst if is_there else max(worst, largest_mm) for is_there in there]
        pairs = zip(structures, charges, strict=True)
        return [score(structure, "missed", hd95_mm=charge) for structure, charge in pairs]

    maps, spacing_mm = _in_memory_order(index_maps(reference, prediction), spacing_mm)
    table = meetings(maps)
    sides = boundary(maps.reference), boundary(maps.prediction)
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
            ours_on, theirs_on = (side.points(members) for side in sides)
            distances = distances_between(ours_on, theirs_on, spacing_mm)
            near = distances.share_within(nsd_tolerance_mm)
            overlap = dice(ours, theirs, both)
            scores.append(score(structure, "case", overlap, distances.percentile(), near))
    return scores


def _in_memory_order(maps: Indexed, spacing_mm: Spacing) -> tuple[Indexed, Spacing]:
    """The same case with its axes in the order in which the reference lies in memory.

    Files lie with x fastest, and no score depends on the names of axes; passing through memory
    against its order takes several times as long.
    """
    order = sorted(range(3), key=lambda axis: -maps.reference.strides[axis])
    ours, theirs = (
        np.ascontiguousarray(side.transpose(order)) for side in (maps.reference, maps.prediction)
    )
    x, y, z = (spacing_mm[axis] for axis in order)
    return Indexed(ours, theirs, maps.values), (x, y, z)
