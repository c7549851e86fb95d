"""Signs of life: against loops over rows and at embeddings whose numbers are known."""

from __future__ import annotations

import math

import pytest
import torch

from mim3d.objectives.health import embedding_logs, rank_me


def test_rank_me_counts_directions_of_equal_strength() -> None:
    for rank in (1, 3, 8):
        features = torch.zeros(8, 11)
        features[:rank, :rank] = 2 * torch.eye(rank)

        # 1e-7 is added to each of 8 shares.
        assert rank_me(features).item() == pytest.approx(rank, rel=1e-4)


def test_rank_me_is_the_entropy_of_singular_values() -> None:
    features = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    squares = torch.linalg.eigvalsh(features.T @ features)  # another way to the same values
    values = [math.sqrt(float(square)) for square in squares]

    shares = [value / sum(values) + 1e-7 for value in values]
    expected = math.exp(-sum(p * math.log(p) for p in shares))

    assert rank_me(features).item() == pytest.approx(expected, rel=1e-5)
    assert rank_me(features.bfloat16()).item() == pytest.approx(expected, rel=1e-2)


def test_spread_and_cosine_are_those_of_loops() -> None:
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)) + torch.tensor([1, 0, 2, 0.5])

    logs = embedding_logs(z)

    rows = [[x / math.hypot(*row) for x in row] for row in z.tolist()]
    deviations = []
    for column in zip(*rows, strict=True):
        mean = sum(column) / 6
        deviations.append(math.sqrt(sum((x - mean) ** 2 for x in column) / 5))
    cosines = [
        sum(a * b for a, b in zip(rows[i], rows[j], strict=True))
        for i in range(6)
        for j in range(6)
        if i != j
    ]
    assert logs["spread"].item() == pytest.approx(sum(deviations) / 4 * 2, rel=1e-5)
    assert logs["cosine"].item() == pytest.approx(sum(cosines) / 30, rel=1e-5)
    assert logs["rank"] == rank_me(z)


def test_uniform_and_collapsed_embeddings_are_told_apart() -> None:
    uniform = torch.randn(512, 32, generator=torch.Generator().manual_seed(2))
    collapsed = torch.ones(512, 32) + 1e-3 * uniform

    alive, dead = embedding_logs(uniform), embedding_logs(collapsed)

    assert alive["spread"].item() == pytest.approx(1, abs=0.02)
    assert alive["cosine"].item() == pytest.approx(0, abs=0.01)
    assert alive["rank"] > 28
    assert dead["spread"] < 0.01
    assert dead["cosine"] > 0.99
    assert dead["rank"] < 2


@pytest.mark.parametrize("z", [torch.zeros(4, 3), torch.ones(1, 3), torch.zeros(1, 1)])
def test_what_says_nothing_has_finite_signs_of_life(z: torch.Tensor) -> None:
    assert all(math.isfinite(value) for value in embedding_logs(z).values())


def test_signs_of_life_leave_no_gradient() -> None:
    z = torch.randn(5, 3, requires_grad=True)

    assert not any(value.requires_grad for value in embedding_logs(z).values())


def test_what_is_not_finite_has_a_rank_that_is_not_finite_and_raises_nothing() -> None:
    """A decomposition of NaN raises, and ended a training that would have skipped one step."""
    z = torch.randn(5, 3)
    z[2, 1] = torch.inf

    assert math.isnan(embedding_logs(z)["rank"])
