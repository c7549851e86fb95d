"""Scores of answers, and gains over others, by repeating the cases that a draw repeats."""

from __future__ import annotations

import numpy as np
import pytest

from mim3d.config.inference import EvaluationConfig
from mim3d.evaluation.intervals import drawn
from mim3d.workflows.probing.judges import ClassJudge, DiceJudge, NumberJudge, gain

CONFIG = EvaluationConfig(resamples=200)
SUBJECTS = ["a", "a", "b", "c", "d", "d", "e", "f"]
RANDOM = np.random.default_rng(0)
TRUTH = np.array([0, 1, 2, 0, 1, 2, 0, 1])
NUMBERS = RANDOM.normal(size=8)


def shares() -> np.ndarray:
    made = RANDOM.random((8, 3)) + np.eye(3)[TRUTH] * 0.4
    return made / made.sum(1, keepdims=True)


def slow_auc(truth: np.ndarray, said: np.ndarray) -> float:
    """Mean over classes of how often one of it scores above one of the rest."""
    found = []
    for place in range(3):
        yes, no = said[truth == place, place], said[truth != place, place]
        if len(yes) and len(no):
            wins = [(a > b) + (a == b) / 2 for a in yes for b in no]
            found.append(np.mean(wins))
    return float(np.mean(found)) if found else np.nan


CASES = {
    "dice": (DiceJudge(SUBJECTS, CONFIG), lambda: RANDOM.random(8), lambda i, s: s[i].mean()),
    "auc": (ClassJudge(TRUTH, SUBJECTS, CONFIG), shares, lambda i, s: slow_auc(TRUTH[i], s[i])),
    "pearson": (
        NumberJudge(NUMBERS, SUBJECTS, CONFIG),
        lambda: NUMBERS + RANDOM.normal(size=8),
        lambda i, s: np.corrcoef(NUMBERS[i], s[i])[0, 1],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_headline_of_a_draw_is_that_of_the_cases_repeated(name):
    judge, answers, slow = CASES[name]
    said = answers()
    weights = np.array([[1] * 8, [2, 2, 0, 1, 3, 3, 1, 0]], np.float64)

    found = judge.drawn_headline(said, weights)

    everyone, some = np.arange(8), np.repeat(np.arange(8), weights[1].astype(int))
    np.testing.assert_allclose(found, [slow(everyone, said), slow(some, said)], rtol=1e-9)
    assert judge.scores(said)[judge.headline].value == pytest.approx(found[0])
    assert next(iter(judge.scores(said))) == judge.headline == name


@pytest.mark.parametrize("name", CASES)
def test_a_gain_is_the_difference_on_the_same_draws(name):
    judge, answers, slow = CASES[name]
    said, other = answers(), answers()
    draws = []

    def remember(weights):
        draws.extend(weights)
        return np.zeros((len(weights), 1))

    drawn(remember, SUBJECTS, CONFIG.resamples)
    repeated = [np.repeat(np.arange(8), row.astype(int)) for row in draws]
    with np.errstate(all="ignore"):
        differences = np.array([slow(i, said) - slow(i, other) for i in repeated])

    found = gain(judge, said, other)

    assert found.value == pytest.approx(differences[0])
    known = differences[1:][~np.isnan(differences[1:])]
    low, high = np.percentile(known, (2.5, 97.5))
    # a draw of equal numbers has no correlation, by other rules of rounding than numpy's
    tolerance = 1e-9 if name != "pearson" else 0.05
    assert (found.low, found.high) == pytest.approx((low, high), abs=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_gained_over_oneself(name):
    judge, answers, _ = CASES[name]
    said = answers()

    found = gain(judge, said, said)

    assert (found.value, found.low, found.high) == (0, 0, 0)
