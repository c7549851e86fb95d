"""Final Dice of a benchmark case by case: which cases are hard, and for whom."""

from __future__ import annotations

import numpy as np

from mim3d.evaluation.study import Study


def final_dice(study: Study, arm: str, labels: str) -> dict[str, tuple[float, ...]]:
    """Dice of every judged case at the arm's last step, one value a sound run that judged it.

    Args:
        study: the records.
        arm: which arm.
        labels: at which label fraction.

    Returns:
        By case, in the order of their names; empty without a sound run.
    """
    found: dict[str, list[float]] = {}
    for record in study.runs(arm, labels).values():
        for case, dice in zip(record.cases, record.dice[-1], strict=True):
            found.setdefault(case, []).append(dice)
    return {case: tuple(found[case]) for case in sorted(found)}


def case_means(study: Study, arm: str, labels: str) -> dict[str, float]:
    """The mean of `final_dice` over the runs, by case."""
    return {case: float(np.mean(dice)) for case, dice in final_dice(study, arm, labels).items()}
