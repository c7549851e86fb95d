"""Losses of views against MONAI and pytorch-metric-learning, loops over pairs, and a pen."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from monai.losses import ContrastiveLoss
from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss, VICRegLoss
from torch import Tensor

from mim3d.objectives.contrastive_losses import (
    byol,
    info_nce,
    nt_xent,
    overlap_prediction,
    repulsion,
    vicreg,
)


def views(b: int = 7, d: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two views whose rows have unlike lengths and a part in common."""
    draw = torch.Generator().manual_seed(seed)
    common = torch.randn(b, d, generator=draw)
    one, two = (common + 0.5 * torch.randn(b, d, generator=draw) for _ in range(2))
    return one * torch.arange(1, b + 1)[:, None], two


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / math.sqrt(float(a @ a) * float(b @ b)))


def slow_nt_xent(one: Tensor, two: Tensor, t: float, cases: list[str]) -> float:
    """SimCLR's eq. 1, pair by pair."""
    rows, b = [*one, *two], len(one)
    total = 0.0
    for i, query in enumerate(rows):
        positive = (i + b) % (2 * b)
        others = [
            j for j in range(2 * b) if j == positive or cases[j % b] != cases[i % b]
        ]  # fmt: skip
        below = sum(math.exp(cosine(query, rows[j]) / t) for j in others)
        total -= math.log(math.exp(cosine(query, rows[positive]) / t) / below)
    return total / (2 * b)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("b", [2, 7])
def test_nt_xent_is_that_of_two_libraries_and_of_a_slow_loop(b: int, temperature: float) -> None:
    one, two = views(b)

    loss = nt_xent(one, two, temperature)

    expected = slow_nt_xent(one, two, temperature, [f"case {i}" for i in range(b)])
    # float32: a loss near 0 is a difference of numbers near 10.
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    monais = ContrastiveLoss(temperature=temperature)(one, two)
    assert loss.item() == pytest.approx(float(monais), rel=1e-5, abs=1e-7)
    metric_learnings = SelfSupervisedLoss(NTXentLoss(temperature=temperature))(one, two)
    assert loss.item() == pytest.approx(float(metric_learnings), rel=1e-5, abs=1e-7)


def test_nt_xent_of_orthogonal_crops_is_what_a_pen_finds() -> None:
    # Cosines are 1 for the positive and 0 for the 2 negatives: -log(e^2 / (e^2 + 2)).
    one = torch.eye(2, 3)

    assert nt_xent(one, 3 * one, 0.5).item() == pytest.approx(math.log(1 + 2 / math.e**2))


def test_crops_of_one_case_are_no_negatives_in_nt_xent() -> None:
    one, two = views()
    cases = ["a", "b", "a", "c", "d", "b", "a"]
    same = torch.tensor([[first == second for second in cases] for first in cases])

    loss = nt_xent(one, two, 0.3, same=same)

    assert loss.item() == pytest.approx(slow_nt_xent(one, two, 0.3, cases), rel=1e-5)
    assert loss.item() < nt_xent(one, two, 0.3).item()


def test_parts_of_a_batch_have_the_mean_loss_and_gradient_of_the_whole() -> None:
    """As two processes of 3 crops each, each of which knows all 6."""
    one, two = (view[:6].clone().requires_grad_() for view in views())
    whole = nt_xent(one, two, 0.2)
    expected = torch.autograd.grad(whole, (one, two))

    parts = [
        nt_xent(
            one[rows], two[rows], 0.2, every_one=one, every_two=two, first=rows.start
        )
        for rows in (slice(0, 3), slice(3, 6))
    ]  # fmt: skip
    gradients = torch.autograd.grad(sum(parts) / 2, (one, two))  # type: ignore[arg-type]

    assert sum(parts).item() / 2 == pytest.approx(whole.item(), rel=1e-6)  # type: ignore[union-attr]
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_info_nce_is_the_cross_entropy_of_a_slow_loop() -> None:
    queries, keys = views(b=6)
    positive = torch.tensor([3, 0, 5, 1, 1, 2])
    excluded = torch.zeros(6, 6, dtype=torch.bool)
    excluded[0, 1] = excluded[4, 2] = excluded[4, 3] = True

    loss = info_nce(queries, keys, positive, 0.2, excluded)

    expected = 0.0
    for i, query in enumerate(queries):
        likeness = [math.exp(cosine(query, key) / 0.2) for key in keys]
        below = sum(value for j, value in enumerate(likeness) if not excluded[i, j])
        expected -= math.log(likeness[int(positive[i])] / below) / 6
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_info_nce_without_any_negative_is_0_and_has_no_gradient() -> None:
    queries, keys = (view.requires_grad_() for view in views(b=3))
    excluded = ~torch.eye(3, dtype=torch.bool)

    loss = info_nce(queries, keys, torch.arange(3), 0.2, excluded)
    loss.backward()

    assert loss.item() == 0
    assert queries.grad is not None
    assert not queries.grad.any()


def test_byol_is_the_squared_distance_of_rows_of_length_1() -> None:
    predicted, target = views()

    expected = 0.0
    for p, t in zip(predicted.tolist(), target.tolist(), strict=True):
        long_p, long_t = (math.sqrt(sum(x * x for x in row)) for row in (p, t))
        expected += sum((x / long_p - y / long_t) ** 2 for x, y in zip(p, t, strict=True)) / 7
    assert byol(predicted, target).item() == pytest.approx(expected, rel=1e-5)
    assert byol(target, 2 * target).item() == pytest.approx(0, abs=1e-6)
    assert byol(target, -target).item() == pytest.approx(4, rel=1e-6)


def test_vicreg_has_the_terms_of_a_slow_loop() -> None:
    one, two = views(b=6, d=4)
    n, d = one.shape

    def hinge_and_covariance(z: Tensor) -> tuple[float, float]:
        mean = [sum(float(z[i, j]) for i in range(n)) / n for j in range(d)]
        hinge = covariance = 0.0
        for j in range(d):
            for k in range(d):
                cov = sum(float((z[i, j] - mean[j]) * (z[i, k] - mean[k])) for i in range(n))
                cov /= n - 1
                if j == k:
                    hinge += max(0.0, 1 - math.sqrt(cov + 1e-4)) / d
                else:
                    covariance += cov**2 / d
        return hinge, covariance

    terms = vicreg(one * 0.1, two * 0.3)

    first, second = hinge_and_covariance(one * 0.1), hinge_and_covariance(two * 0.3)
    invariance = sum(float(x) ** 2 for x in (one * 0.1 - two * 0.3).flatten()) / (n * d)
    assert terms.invariance.item() == pytest.approx(invariance, rel=1e-5)
    assert terms.variance.item() == pytest.approx((first[0] + second[0]) / 2, rel=1e-5)
    assert terms.covariance.item() == pytest.approx(first[1] + second[1], rel=1e-4)
    assert terms.variance.item() > 0


def test_vicreg_is_pytorch_metric_learnings() -> None:
    one, two = (0.2 * view for view in views(b=12, d=6))
    weights = {"invariance_lambda": 25.0, "variance_mu": 10.0, "covariance_v": 2.0}

    terms = vicreg(one, two)

    theirs = VICRegLoss(**weights)(one, ref_emb=two)
    ours = 25.0 * terms.invariance + 10.0 * terms.variance + 2.0 * terms.covariance
    assert ours.item() == pytest.approx(float(theirs), rel=1e-5)


def test_vicreg_of_a_collapsed_batch_is_the_hinge_alone() -> None:
    same = torch.full((6, 4), 0.7)

    terms = vicreg(same, same)

    # sqrt(1e-4) is all the deviation there is.
    assert terms.variance.item() == pytest.approx(0.99, rel=1e-5)
    assert terms.invariance.item() == terms.covariance.item() == 0


def test_vicreg_asks_no_more_of_a_dimension_than_a_deviation_of_1() -> None:
    # Deviations 2 and 0: nothing of the first, 1 - sqrt(1e-4) of the second.
    wide = torch.tensor([[math.sqrt(2), 0.3], [-math.sqrt(2), 0.3]])

    terms = vicreg(wide, wide)

    assert terms.variance.item() == pytest.approx(0.99 / 2, rel=1e-5)


@pytest.mark.parametrize("counted", [False, True])
def test_vocos_prediction_loss_is_that_of_a_slow_loop(counted: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    likeness = torch.rand(2, 3, 4, generator=draw)
    overlap = torch.rand(2, 3, 4, generator=draw) * (torch.rand(2, 3, 4, generator=draw) > 0.5)
    counts = torch.rand(2, 3, 4, generator=draw) > 0.3 if counted else None

    loss = overlap_prediction(likeness, overlap, counts)

    expected = 0.0
    for i in range(2):
        inside = apart = weight = none = 0.0
        for index in torch.ones(3, 4).nonzero().tolist():
            y, s = float(overlap[(i, *index)]), float(likeness[(i, *index)])
            if counts is not None and not counts[(i, *index)]:
                continue
            if y > 0:
                inside -= y * math.log(1 - abs(y - s) + 1e-6)
                weight += y
            else:
                apart += s * s
                none += 1
        expected += (inside / weight + apart / none) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_vocos_prediction_loss_is_finite_at_its_worst() -> None:
    likeness = torch.tensor([[[1.0 + 1e-6, 0.0]]], requires_grad=True)

    loss = overlap_prediction(likeness, torch.tensor([[[0.0, 1.0]]]))
    loss.backward()

    assert loss.item() == pytest.approx(1 - math.log(1e-6), rel=1e-5)
    assert likeness.grad is not None
    assert likeness.grad.isfinite().all()


def test_repulsion_is_the_mean_over_pairs_of_base_crops() -> None:
    draw = torch.Generator().manual_seed(2)
    bases = torch.randn(2, 4, 3, generator=draw)
    counts = torch.tensor([[True, True, True, False], [True, True, True, True]])

    def slow(there: Tensor) -> float:
        means = []
        for i in range(2):
            found = [
                max(0.0, cosine(bases[i, j], bases[i, k])) ** 2
                for j in range(4)
                for k in range(j + 1, 4)
                if there[i, j] and there[i, k]
            ]
            means.append(sum(found) / len(found))
        return sum(means) / 2

    assert repulsion(bases).item() == pytest.approx(slow(torch.ones(2, 4)), rel=1e-5)
    assert repulsion(bases, counts).item() == pytest.approx(slow(counts), rel=1e-5)


def test_losses_compute_in_float32_under_autocast() -> None:
    one, two = (F.pad(view, (0, 100), value=0.01) for view in views(b=16, d=28))

    def every() -> list[Tensor]:
        terms = vicreg(one, two)
        return [
            nt_xent(one, two, 0.1),
            byol(one, two),
            terms.invariance,
            terms.variance,
            terms.covariance,
            repulsion(one[None]),
        ]

    exact = every()
    with torch.autocast("cpu", torch.bfloat16):
        under = every()

    assert all(torch.equal(a, b) for a, b in zip(exact, under, strict=True))


def test_losses_of_fixed_numbers_are_what_they_were() -> None:
    ramp = torch.arange(12.0).reshape(4, 3).sin()
    other = torch.arange(12.0).reshape(4, 3).cos() * 0.5 + ramp

    terms = vicreg(ramp, other)

    found = [
        nt_xent(ramp, other, 0.2), byol(ramp, other), terms.invariance, terms.variance,
        terms.covariance, repulsion(ramp[None]),
    ]  # fmt: skip
    expected = [1.201014, 0.201435, 0.124971, 0.255846, 1.715332, 0.307392]
    assert [float(value) for value in found] == pytest.approx(expected, rel=1e-5)
