"""Packing against loops over samples."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mim3d.foundation.errors import ShapeError
from mim3d.tokens.packing import Packing, Run, Segments, paired_runs


def ragged(b: int, n: int, seed: int) -> Tensor:
    """Tokens that are real, at scattered places, every sample another number of them."""
    return torch.rand(b, n, generator=torch.Generator().manual_seed(seed)) > 0.4


def numbered(b: int, n: int, d: int = 3) -> Tensor:
    return torch.arange(b * n * d, dtype=torch.float32).reshape(b, n, d) + 1


def test_a_packed_sequence_holds_the_real_tokens_sample_by_sample() -> None:
    first, second, real = numbered(2, 4), -numbered(3, 5), ragged(3, 5, 0)
    packing = Packing([(2, 4), (3, 5)], [None, real])

    packed = packing.pack([first, second])

    rows = [*first.flatten(0, 1)]
    rows += [second[i, j] for i in range(3) for j in range(5) if real[i, j]]
    assert torch.equal(packed, torch.stack(rows)[None])
    assert packing.segments.lengths == (4, 4, *(int(sample.sum()) for sample in real))


def test_unpacking_gives_the_groups_back_with_padding_at_zero() -> None:
    first, second, real = numbered(2, 4), -numbered(3, 5), ragged(3, 5, 1)
    packing = Packing([(2, 4), (3, 5)], [None, real])

    one, other = packing.unpack(packing.pack([first, second]))

    assert torch.equal(one, first)
    assert torch.equal(other, second * real[..., None])


def test_what_all_samples_share_is_packed_for_each() -> None:
    shared, real = numbered(1, 5), ragged(3, 5, 2)

    packed = Packing([(3, 5)], [real]).pack([shared])

    assert torch.equal(packed, torch.cat([shared[0][sample] for sample in real])[None])


def test_a_sample_that_is_all_padding_has_no_segment() -> None:
    real = torch.ones(3, 4, dtype=torch.bool)
    real[1] = False
    packing = Packing([(3, 4)], [real])

    (back,) = packing.unpack(packing.pack([numbered(3, 4)]))

    assert packing.segments.lengths == (4, 4)
    assert torch.equal(back, numbered(3, 4) * real[..., None])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=8))
def test_runs_are_the_neighbours_of_one_length(lengths: list[int]) -> None:
    segments = Segments(tuple(lengths))

    runs = list(segments.runs)

    assert [run.length for run in runs for _ in range(run.samples)] == lengths
    assert all(one.length != two.length for one, two in pairwise(runs))
    assert [run.stop for run in runs] == [run.start for run in runs[1:]] + [sum(lengths)]
    assert segments.offsets(torch.device("cpu")).tolist() == [
        sum(lengths[:i]) for i in range(len(lengths) + 1)
    ]


def test_three_runs_written_out() -> None:
    assert list(Segments((5, 5, 2, 5)).runs) == [Run(0, 2, 5), Run(10, 1, 2), Run(12, 1, 5)]


def test_a_value_of_a_sample_is_spread_over_its_tokens() -> None:
    values = torch.tensor([[1.0, -1.0], [2.0, -2.0], [3.0, -3.0]])

    spread = Segments((2, 1, 3)).spread(values)

    assert spread[:, 0].tolist() == [1, 1, 2, 3, 3, 3]
    assert spread[:, 1].tolist() == [-1, -1, -2, -3, -3, -3]


def test_gradients_reach_the_tokens_that_were_packed_and_no_others() -> None:
    tokens, real = numbered(3, 5).requires_grad_(), ragged(3, 5, 3)
    packing = Packing([(3, 5)], [real])

    packing.unpack(2 * packing.pack([tokens]))[0].sum().backward()

    assert tokens.grad is not None
    assert torch.equal(tokens.grad, 2.0 * real[..., None].expand(-1, -1, 3))


def test_shapes_that_do_not_fit_are_refused() -> None:
    packing = Packing([(2, 4)], [None])

    with pytest.raises(ShapeError, match="2 x 4"):
        packing.pack([numbered(2, 5)])
    with pytest.raises(ShapeError, match="1 x 8"):
        packing.unpack(numbered(1, 7))
    with pytest.raises(ShapeError, match="valid"):
        Packing([(2, 4)], [ragged(2, 5, 0)])
    with pytest.raises(ShapeError, match="sizes"):
        Packing([(2, 4)], [])


def test_paired_runs_hold_neighbours_alike_in_both_sequences() -> None:
    first, second = Segments((5, 5, 5, 2, 2)), Segments((3, 3, 4, 4, 4))

    assert list(paired_runs(first, second)) == [
        (Run(0, 2, 5), Run(0, 2, 3)),
        (Run(10, 1, 5), Run(6, 1, 4)),
        (Run(15, 2, 2), Run(10, 2, 4)),
    ]
