"""Numbers of whole cases, such as a diagnosis or an age: from a store to the rows of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from mim3d.data.batch import CropBatch, Target, moved
from mim3d.data.store import Store
from mim3d.foundation.errors import UserError


class TargetRows:
    """The targets of a cohort's cases, looked up once.

    Args:
        store: where they are noted.
        cases: ids of the cases.
        targets: which numbers, in the order of a row.

    Raises:
        UserError: a target that no case has, that some cases lack though it is not optional, or
            whose value is no class.
    """

    def __init__(self, store: Store, cases: Sequence[str], targets: tuple[Target, ...]) -> None:
        columns = [_column(store, cases, target) for target in targets]
        rows = zip(*columns, strict=True) if columns else ()
        self._rows = dict(zip(cases, rows, strict=False))

    def added(self, batch: CropBatch) -> CropBatch:
        """The batch with its targets, `b t`, where any are asked for."""
        if not self._rows:
            return batch
        rows = torch.tensor([self._rows[case_id] for case_id in batch.case_ids])
        return replace(batch, targets=moved(rows, batch.voxels.device))


def _column(store: Store, cases: Sequence[str], target: Target) -> list[float]:
    """The number of each case, or the index of its class."""
    known = {case_id: store.entry(case_id).targets for case_id in cases}
    lacking = [case_id for case_id, values in known.items() if target.name not in values]
    if lacking and not (target.is_optional and len(lacking) < len(cases)):
        names = ", ".join(f"`{name}`" for name in store.target_names) or "none"
        raise UserError(
            f"the target `{target.name}` is needed, and {len(lacking)} of {len(cases)} cases have "
            f"no such number, first `{lacking[0]}`",
            where=str(store.path),
            remedy=f"the store's targets are {names}; a CSV gives them as `target_<name>`",
            code="no-target",
        )
    numbers = [float(known[case_id].get(target.name, math.nan)) for case_id in cases]
    if target.classes is None:
        return numbers
    foreign = sorted({number for number in numbers if not math.isnan(number)} - set(target.classes))
    if foreign:
        listed = ", ".join(f"{value:g}" for value in target.classes)
        raise UserError(
            f"the target `{target.name}` is {foreign[0]:g} in {numbers.count(foreign[0])} case(s), "
            f"and its classes are {listed}",
            where=str(store.path),
            remedy="correct the source, or train anew with all classes",
            code="no-class",
        )
    places = {value: float(place) for place, value in enumerate(target.classes)}
    return [places.get(number, math.nan) for number in numbers]
