"""Which arm ends higher: paired tests of the final Dice, corrected for their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from mim3d.evaluation.estimates import Estimate
from mim3d.evaluation.study import Study


@dataclass(frozen=True)
class Comparison:
    """The final Dice of two arms.

    Attributes:
        arm: the one.
        other: the other; the arm's partner, or a contrastive arm with the same partner.
        difference: `arm` less `other`, interval over pre-trainings, replicates and subjects.
        p: of Wilcoxon's signed-rank test over subjects, each averaged over replicates and cases.
        p_holm: corrected for all comparisons at the label fraction.
        subjects: how many were compared.
        shown: whether both agree: `p_holm` below 1 - confidence and 0 outside the interval of
            the difference; never with a single replicate or pre-training.
    """

    arm: str
    other: str
    difference: Estimate
    p: float
    p_holm: float
    subjects: int
    shown: bool

    def as_json(self) -> dict[str, Any]:
        """The fields."""
        return {**vars(self), "difference": self.difference.as_json()}


def comparisons(study: Study, labels: str) -> tuple[Comparison, ...]:
    """Every arm against its partner, and those that are not contrastive against each that is.

    The test asks whether these trained models differ on other subjects. Runs of one and the same
    method differ too, so it rejects far too often as a test of methods; that is the interval's
    question, and a difference counts as shown only where both say so.
    """
    pairs = _pairs(study, labels)
    pairs = [(arm, other) for arm, other in pairs if study.shared((arm, labels), (other, labels))]
    tested = [_tested(study, labels, *pair) for pair in pairs]
    corrected = holm([p for _, p, _ in tested])
    rows = zip(pairs, tested, corrected, strict=True)
    return tuple(
        Comparison(arm, other, difference, p, p_holm, n, _agree(study, difference, p_holm))
        for (arm, other), (difference, p, n), p_holm in rows
    )


def _pairs(study: Study, labels: str) -> list[tuple[str, str]]:
    present = study.present(labels)
    partners = {arm: study.partner(arm) for arm in present}
    led = [arm for arm in present if partners[arm] != arm]
    pairs = [(arm, partners[arm]) for arm in led if partners[arm] in present]
    for other in present:
        if study.kind(other) == "contrastive":
            pairs += [
                (arm, other)
                for arm in led
                if study.kind(arm) != "contrastive" and partners[arm] == partners[other]
            ]
    return pairs


def signed_rank(differences: NDArray[np.float64]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; 1 where nothing differs."""
    if not np.any(differences):
        return 1.0
    return float(wilcoxon(differences).pvalue)


def holm(values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down correction (Holm 1979, Scand. J. Statist. 6), in the order given."""
    count, largest = len(values), 0.0
    corrected = [0.0] * count
    for rank, place in enumerate(sorted(range(count), key=lambda place: values[place])):
        largest = max(largest, min(1.0, (count - rank) * values[place]))
        corrected[place] = largest
    return tuple(corrected)


def _agree(study: Study, difference: Estimate, p_holm: float) -> bool:
    sure = difference.is_repeated and difference.excludes(0.0)
    return sure and p_holm < 1 - study.confidence


def _tested(study: Study, labels: str, arm: str, other: str) -> tuple[Estimate, float, int]:
    one, two = (_by_subject(study, labels, name, arm, other) for name in (arm, other))
    differences = np.array([one[subject] - two[subject] for subject in sorted(one)])
    difference = study.difference(arm, other, labels)
    assert difference is not None  # the pair shares replicates
    return difference, signed_rank(differences), len(differences)


def _by_subject(study: Study, labels: str, name: str, arm: str, other: str) -> dict[str, float]:
    """Final Dice of each subject, averaged over the replicates both arms have and its cases."""
    values: dict[str, list[float]] = {}
    for replicate in study.shared((arm, labels), (other, labels)):
        record = study.runs(name, labels)[replicate]
        for subject, dice in zip(record.case_subjects, record.dice[-1], strict=True):
            values.setdefault(subject, []).append(dice)
    return {subject: float(np.mean(dice)) for subject, dice in values.items()}
