"""Noise, counts, scores and splits."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mim3d.foundation.errors import ConfigError, ShapeError, UserError
from mim3d.foundation.randomness import RandomStream
from mim3d.tokens.masking import count, noise, split_tokens


def keys(number: int, step: int = 0) -> torch.Tensor:
    return torch.from_numpy(RandomStream(0, step).keys(range(number), "mask"))


def slow_noise(key: int, counter: int) -> float:
    """SplitMix64 in Python's integers."""
    whole = 2**64 - 1
    z = (key + (counter + 1) * 0x9E3779B97F4A7C15) & whole
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & whole
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & whole
    return ((z ^ (z >> 31)) >> 40) / 2**24


def test_noise_equals_splitmix64_in_exact_integers() -> None:
    some = keys(5)

    result = noise(some, 40)

    expected = [[slow_noise(int(key), counter) for counter in range(40)] for key in some]
    assert result.tolist() == expected


def test_noise_of_a_sample_does_not_depend_on_its_neighbours() -> None:
    some = keys(6)

    assert torch.equal(noise(some, 100)[2:4], noise(some[2:4], 100))
    assert torch.equal(noise(some, 100)[:, :60], noise(some, 60))


def test_noise_is_uniform_and_uncorrelated() -> None:
    drawn = noise(keys(200), 500).double()

    # 100,000 numbers: the mean has a standard error of 0.0009, neighbours correlate at 0.003.
    assert abs(drawn.mean().item() - 0.5) < 0.004
    shares = torch.histc(drawn, 20, 0, 1) / drawn.numel()
    assert (shares - 0.05).abs().max() < 0.004
    centred = drawn - 0.5
    assert abs((centred[:, 1:] * centred[:, :-1]).mean().item() * 12) < 0.015
    assert abs((centred[1:] * centred[:-1]).mean().item() * 12) < 0.015


@pytest.mark.parametrize("n", [196, 216, 343, 512])
def test_counts_are_exact_at_every_ratio(n: int) -> None:
    for sixty_fourths in range(65):
        ratio = sixty_fourths / 64
        exact = Fraction(sixty_fourths, 64) * n

        assert count(ratio, n) == int(exact + Fraction(1, 2))
        assert count(ratio, n, "floor") == exact.__floor__()
        assert count(ratio, n, "ceil") == exact.__ceil__()


def test_a_ratio_is_the_decimal_it_prints_as() -> None:
    # 0.7 * 10 is 7.000000000000001 in floats at 1.1 x, and int(0.29 * 100) is 28
    assert count(0.29, 100, "floor") == 29
    assert count(0.07, 100, "ceil") == 7


@pytest.mark.parametrize("ratio", [-0.1, 1.5])
def test_a_ratio_outside_of_0_to_1_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        count(ratio, 100)


def test_an_unknown_rounding_is_refused() -> None:
    with pytest.raises(ConfigError, match="rounding"):
        count(0.5, 100, "up")


def test_the_highest_scores_are_masked_and_the_next_are_dropped() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7, 0.3], [5.0, 4.0, 3.0, 2.0, 1.0]])

    split = split_tokens(scores, 2, 1)

    assert split.masked.tolist() == [[1, 3], [0, 1]]
    assert split.dropped.tolist() == [[2], [2]]
    assert split.visible.tolist() == [[0, 4], [3, 4]]
    assert split.visible_valid is None


def test_samples_of_different_length_are_filled_up_with_index_0() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7], [0.4, 0.3, 0.2, 0.1]])
    valid = torch.tensor([[True, True, True, True], [False, True, True, False]])

    split = split_tokens(scores, [2, 1], valid=valid)

    assert split.masked.tolist() == [[1, 3], [1, 0]]
    assert split.masked_valid is not None
    assert split.masked_valid.tolist() == [[True, True], [True, False]]
    assert split.visible.tolist() == [[0, 2], [2, 0]]
    assert split.visible_valid is not None
    assert split.visible_valid.tolist() == [[True, True], [True, False]]
    assert split.dropped.tolist() == [[0, 0], [0, 3]], "padding is dropped"
    assert split.dropped_valid is not None
    assert split.dropped_valid.tolist() == [[False, False], [True, True]]


def test_equal_scores_are_taken_in_order() -> None:
    split = split_tokens(torch.zeros(1, 6), 2, 1)

    assert split.masked.tolist() == [[0, 1]]
    assert split.dropped.tolist() == [[2]]


def test_no_visible_token_is_an_error() -> None:
    with pytest.raises(UserError, match="none visible"):
        split_tokens(torch.rand(2, 8), 6, 2)


def test_scores_of_another_form_are_refused() -> None:
    with pytest.raises(ShapeError):
        split_tokens(torch.rand(8), 2)
    with pytest.raises(ShapeError, match="one count or 2"):
        split_tokens(torch.rand(2, 8), [1, 2, 3])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_any_split_is_a_partition(data: st.DataObject) -> None:
    batch, n = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 30))
    scores = noise(keys(batch), n)
    valid = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=batch,
                           max_size=batch))
    )  # fmt: skip
    have = valid.sum(dim=1).tolist()
    masked = [data.draw(st.integers(0, max(h - 1, 0))) for h in have]
    dropped = [
        data.draw(st.integers(0, max(h - 1 - m, 0))) for h, m in zip(have, masked, strict=True)
    ]

    split = split_tokens(scores, masked, dropped, valid)

    for i in range(batch):
        parts = []
        for index, real in [
            (split.visible, split.visible_valid),
            (split.masked, split.masked_valid),
            (split.dropped, split.dropped_valid),
        ]:
            kept = index[i] if real is None else index[i][real[i]]
            parts.append(kept.tolist())
            assert parts[-1] == sorted(parts[-1])
        assert sorted(sum(parts, [])) == list(range(n))  # noqa: RUF017
        assert len(parts[1]) == masked[i]
        assert set(parts[0]) | set(parts[1]) <= set(valid[i].nonzero().flatten().tolist())
        assert len(parts[0]) == have[i] - masked[i] - dropped[i]
