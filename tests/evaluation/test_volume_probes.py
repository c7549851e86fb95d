"""Readers of one vector a volume, beside SciPy's optimum and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from mim3d.evaluation import volume_probes
from mim3d.evaluation.volume_probes import (
    STRENGTHS,
    ProbedVolumes,
    linear_probe,
    neighbour_answers,
)
from mim3d.foundation.errors import ShapeError


def classes_of(n: int = 60, width: int = 5, k: int = 3, seed: int = 0) -> ProbedVolumes:
    random = np.random.default_rng(seed)
    features = random.normal(size=(n, width)) * [1, 10, 0.1, 3, 1] + [0, 5, -3, 0, 1]
    truth = (features[:, 0] * 2 + random.normal(size=n)).argsort().argsort() * k // n
    return ProbedVolumes(
        torch.tensor(features), torch.tensor(truth), torch.arange(n) // 2, k
    )  # fmt: skip


def numbers_of(n: int = 40) -> ProbedVolumes:
    random = np.random.default_rng(1)
    features = random.normal(size=(n, 4)) * [1, 100, 0.01, 1]
    answers = features @ [3, 0.02, 50, 0] + 70 + random.normal(size=n)
    return ProbedVolumes(torch.tensor(features), torch.tensor(answers), torch.arange(n))


def standardised(fit: ProbedVolumes, features: torch.Tensor) -> np.ndarray:
    own = fit.features.numpy()
    return (features.numpy() - own.mean(0)) / own.std(0)


def scipy_logistic(fit: ProbedVolumes, features: torch.Tensor, strength: float) -> np.ndarray:
    """Probabilities of the penalised optimum, found by BFGS on the written-out loss."""
    x, y, k = standardised(fit, fit.features), fit.answers.numpy(), fit.classes
    d = x.shape[1]

    def loss(flat: np.ndarray) -> float:
        weight, bias = flat[: d * k].reshape(d, k), flat[d * k :]
        logits = x @ weight + bias
        log_sum = np.log(np.exp(logits).sum(1))
        entropy = (log_sum - logits[np.arange(len(y)), y]).mean()
        return float(entropy + strength / 2 * (weight**2).sum())

    best = minimize(loss, np.zeros(d * k + k), method="BFGS", options={"gtol": 1e-7}).x
    logits = standardised(fit, features) @ best[: d * k].reshape(d, k) + best[d * k :]
    shares = np.exp(logits)
    return shares / shares.sum(1, keepdims=True)


@pytest.mark.parametrize("strength", [1.0, 1e-2])
def test_logistic_regression_reaches_the_optimum_of_the_written_out_loss(monkeypatch, strength):
    monkeypatch.setattr(volume_probes, "STRENGTHS", (strength,))
    fit, others = classes_of(), classes_of(7, seed=3).features

    found = linear_probe(fit)(others)

    # BFGS with numerical gradients ends within about 1e-5 of the optimum
    np.testing.assert_allclose(found, scipy_logistic(fit, others, strength), atol=2e-4)


def test_ridge_of_numbers_is_the_stacked_least_squares_solution(monkeypatch):
    monkeypatch.setattr(volume_probes, "STRENGTHS", (0.3,))
    fit, others = numbers_of(), numbers_of(9).features
    x, y = standardised(fit, fit.features), fit.answers.numpy()
    rows = np.vstack([x, np.sqrt(0.3 * len(x)) * np.eye(4)])
    weight = np.linalg.lstsq(rows, np.concatenate([y - y.mean(), np.zeros(4)]), rcond=None)[0]

    found = linear_probe(fit)(others)

    np.testing.assert_allclose(found, standardised(fit, others) @ weight + y.mean(), rtol=1e-9)


def test_the_penalty_is_the_best_on_subjects_left_out(monkeypatch):
    fit = classes_of(50)
    subjects = fit.subjects.numpy()
    losses = []
    for strength in STRENGTHS:
        total = 0.0
        for fold in range(5):
            out = np.isin(subjects, np.unique(subjects)[fold::5])
            inner = fit.part(torch.tensor(~out))
            guess = scipy_logistic(inner, fit.features[out], strength)
            total -= np.log(guess[np.arange(out.sum()), fit.answers[out]]).sum()
        losses.append(total)

    assert linear_probe(fit).strength == STRENGTHS[int(np.argmin(losses))]
    assert 0 < int(np.argmin(losses)) < len(STRENGTHS) - 1  # neither end, or it tells nothing


def test_volumes_of_one_subject_never_choose_for_each_other(monkeypatch):
    seen = []
    real = volume_probes._path

    def spy(fit, strengths):
        seen.append(set(fit.subjects.tolist()))
        return real(fit, strengths)

    monkeypatch.setattr(volume_probes, "_path", spy)
    fit = classes_of(40)
    linear_probe(fit)

    assert [len(one) for one in seen] == [16] * 5 + [20]


def test_a_class_that_no_volume_has_gets_a_small_probability_and_no_error():
    fit = classes_of()
    more = ProbedVolumes(fit.features, fit.answers, fit.subjects, 4)

    found = linear_probe(more)(fit.features)

    assert found.shape == (60, 4)
    assert torch.isfinite(found).all()
    assert float(found[:, 3].max()) < 0.02
    assert (found[:, :3].argmax(1) == fit.answers).float().mean() > 0.7


def test_one_subject_is_fitted_without_a_choice():
    fit = classes_of(12)
    alone = ProbedVolumes(fit.features, fit.answers, torch.zeros(12, dtype=torch.int64), 3)

    assert linear_probe(alone).strength == volume_probes.USUAL_STRENGTH


@pytest.mark.parametrize("neighbours", [1, 4, 1000])
def test_neighbours_vote_by_the_cosine_of_standardised_features(neighbours):
    fit, others = classes_of(20), classes_of(6, seed=5).features
    known, asked = standardised(fit, fit.features), standardised(fit, others)
    expected = np.zeros((6, 3))
    for row, one in enumerate(asked):
        cosines = [one @ other / np.linalg.norm(one) / np.linalg.norm(other) for other in known]
        for place in np.argsort(cosines)[::-1][:neighbours]:
            expected[row, fit.answers[place]] += np.exp(cosines[place] / 0.1)
    expected /= expected.sum(1, keepdims=True)

    found = neighbour_answers(fit, others, neighbours=neighbours, temperature=0.1)

    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_neighbours_say_the_weighted_mean_of_numbers():
    fit, others = numbers_of(15), numbers_of(4).features
    votes = neighbour_answers(
        ProbedVolumes(fit.features, torch.arange(15), fit.subjects, 15), others,
        neighbours=5, temperature=0.07,
    )  # fmt: skip

    found = neighbour_answers(fit, others, neighbours=5, temperature=0.07)

    np.testing.assert_allclose(found, votes @ fit.answers, rtol=1e-12)


def test_a_feature_that_is_constant_changes_nothing_and_is_no_error():
    fit = classes_of()
    wider = torch.cat([fit.features, torch.full((60, 1), 7.0)], dim=1)
    more = ProbedVolumes(wider, fit.answers, fit.subjects, 3)

    torch.testing.assert_close(linear_probe(more)(wider), linear_probe(fit)(fit.features),
                               atol=1e-4, rtol=0)  # fmt: skip


def test_arrays_that_do_not_belong_together_are_refused():
    fit = classes_of(10)

    with pytest.raises(ShapeError):
        ProbedVolumes(fit.features, fit.answers[:5], fit.subjects, 3)
    with pytest.raises(ShapeError):
        ProbedVolumes(fit.features[:0], fit.answers[:0], fit.subjects[:0], 3)
