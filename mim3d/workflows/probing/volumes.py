"""Readers of frozen features that say a class, or a number, for every volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mim3d.config.probe import ComparisonConfig
from mim3d.data.asked_target import AskedTarget
from mim3d.data.store import Store
from mim3d.evaluation.volume_probes import ProbedVolumes, linear_probe, neighbour_answers
from mim3d.foundation.reporting import Reporter
from mim3d.workflows.probing.views import Views


@dataclass(frozen=True, eq=False)
class TargetStore:
    """A target that is read.

    Attributes:
        store: where it is noted.
        target: what it is.
        fit: cases that readers are fitted to.
        judging: cases of other subjects.
    """

    store: Store
    target: AskedTarget
    fit: Sequence[str]
    judging: Sequence[str]

    def truth(self, cases: Sequence[str]) -> NDArray[np.float64] | NDArray[np.int64]:
        """Places of the classes, or the numbers, of cases."""
        values = [self.store.entry(case).targets[self.target.name] for case in cases]
        if self.target.classes is None:
            return np.array(values, np.float64)
        return np.array([self.target.classes.index(value) for value in values], np.int64)


def read_volumes(
    views: Views,
    asked: TargetStore,
    readers: Sequence[str],
    config: ComparisonConfig,
    *,
    reporter: Reporter,
) -> dict[tuple[str, str], NDArray[np.float64]]:
    """What is said of the judged cases, by reader and view.

    Args:
        views: what is read.
        asked: of whom.
        readers: `knn`, `linear` or both.
        config: how many neighbours.
        reporter: is told how far it is.

    Returns:
        Probabilities `n k`, or numbers `n`, in the order of `asked.judging`.
    """
    vectors = _vectors(views, (*asked.fit, *asked.judging), reporter)
    subjects = sorted({asked.store.subject(case) for case in asked.fit})
    whose = torch.tensor([subjects.index(asked.store.subject(case)) for case in asked.fit])
    answers = torch.from_numpy(asked.truth(asked.fit))
    classes = None if asked.target.classes is None else len(asked.target.classes)
    found = {}
    with torch.autocast("cpu", enabled=False):
        for view, rows in vectors.items():
            fit = ProbedVolumes(rows[: len(asked.fit)], answers, whose, classes)
            for reader in readers:
                said = _said(reader, fit, rows[len(asked.fit) :], config)
                found[reader, view] = said.numpy().astype(np.float64)
    return found


def _said(reader: str, fit: ProbedVolumes, features: Tensor, config: ComparisonConfig) -> Tensor:
    if reader == "linear":
        return linear_probe(fit)(features)
    return neighbour_answers(
        fit, features, neighbours=config.neighbours, temperature=config.temperature
    )


def _vectors(views: Views, cases: Sequence[str], reporter: Reporter) -> dict[str, Tensor]:
    rows: dict[str, list[Tensor]] = {name: [] for name in views.names}
    for done, case_id in enumerate(cases):
        reporter.progress(done, len(cases), f"reading {case_id}")
        for name, vector in views.volume(case_id).items():
            rows[name].append(vector)
    return {name: torch.stack(vectors) for name, vectors in rows.items()}
