"""What answers are worth: scores with intervals over subjects, and gains over random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mim3d.config.inference import EvaluationConfig
from mim3d.evaluation.classification import roc_auc, score_classes
from mim3d.evaluation.intervals import Measure, drawn, measures, row_means
from mim3d.evaluation.regression import correlation, score_numbers

Array = NDArray[np.float64]


class Judge(Protocol):
    """What is measured of answers for the judged cases."""

    @property
    def headline(self) -> str:
        """Which of the scores decides; higher is better."""

    @property
    def subjects(self) -> Sequence[str]:
        """Whose each judged case is."""

    @property
    def config(self) -> EvaluationConfig:
        """Bootstrap."""

    def scores(self, said: Array) -> dict[str, Measure]:
        """All scores, by name."""

    def drawn_headline(self, said: Array, weights: Array) -> Array:
        """The headline where cases count as often as `weights`, `rows n`, say; `rows`."""


def gain(judge: Judge, said: Array, other: Array) -> Measure:
    """By how much the headline of some answers exceeds that of others, on the same draws."""

    def statistic(weights: Array) -> Array:
        pair = [judge.drawn_headline(one, weights) for one in (said, other)]
        return (pair[0] - pair[1])[:, None]

    draws = drawn(statistic, judge.subjects, judge.config.resamples)
    return measures(draws, judge.config.confidence)[0]


@dataclass(frozen=True, eq=False)
class DiceJudge:
    """Of label maps: Dice of each case."""

    subjects: Sequence[str]
    config: EvaluationConfig
    headline: str = "dice"

    def scores(self, said: Array) -> dict[str, Measure]:
        """The mean over the cases."""

        def statistic(weights: Array) -> Array:
            return self.drawn_headline(said, weights)[:, None]

        draws = drawn(statistic, self.subjects, self.config.resamples)
        return {"dice": measures(draws, self.config.confidence)[0]}

    def drawn_headline(self, said: Array, weights: Array) -> Array:
        """Mean Dice."""
        return np.asarray(weights @ said / weights.sum(axis=1))


@dataclass(frozen=True, eq=False)
class ClassJudge:
    """Of classes: probabilities `n k`.

    Attributes:
        truth: places of the true classes, `n`.
        subjects: whose each case is.
        config: bootstrap.
    """

    truth: NDArray[np.int64]
    subjects: Sequence[str]
    config: EvaluationConfig
    headline: str = "auc"

    def scores(self, said: Array) -> dict[str, Measure]:
        """ROC-AUC, accuracy, balanced accuracy and F1."""
        found = score_classes(
            self.truth,
            said,
            subjects=self.subjects,
            resamples=self.config.resamples,
            confidence=self.config.confidence,
        )
        return {
            "auc": found.auc,
            "accuracy": found.accuracy,
            "balanced_accuracy": found.balanced_accuracy,
            "macro_f1": found.macro_f1,
        }

    def drawn_headline(self, said: Array, weights: Array) -> Array:
        """Mean ROC-AUC of each class against the rest."""
        columns = [
            roc_auc(said[:, place], self.truth == place, weights) for place in range(said.shape[1])
        ]
        return row_means(np.column_stack(columns))


@dataclass(frozen=True, eq=False)
class NumberJudge:
    """Of numbers `n`.

    Attributes:
        truth: the true ones, `n`.
        subjects: whose each case is.
        config: bootstrap.
    """

    truth: Array
    subjects: Sequence[str]
    config: EvaluationConfig
    headline: str = "pearson"

    def scores(self, said: Array) -> dict[str, Measure]:
        """Correlations and mean absolute error."""
        found = score_numbers(
            self.truth,
            said,
            subjects=self.subjects,
            resamples=self.config.resamples,
            confidence=self.config.confidence,
        )
        return {"pearson": found.pearson, "spearman": found.spearman, "mae": found.mae}

    def drawn_headline(self, said: Array, weights: Array) -> Array:
        """Pearson's correlation."""
        return correlation(self.truth[None], said[None], weights)
