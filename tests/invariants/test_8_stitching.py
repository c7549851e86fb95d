"""Invariant 8: stitching is exact.

A predictor that is a function of position comes back unchanged from the sliding window for every
size, overlap, weight map and batch of windows; every voxel is covered, weights sum to one.

Tried with these breaks, each of which fails here: the last window not pushed back inside (voxels
at the end uncovered), the sum of weights not divided out, a window added one voxel aside, logits of
a mirrored window not mirrored back, padding put on the wrong side.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mim3d.config.inference import InferenceConfig
from mim3d.inference.sliding_window import slide
from mim3d.inference.windows import window_starts, window_weights

SIDES = st.tuples(*[st.integers(1, 29)] * 3)
WINDOWS = st.tuples(*[st.integers(1, 13)] * 3)
MOST_WINDOWS = 200


def places(size: tuple[int, int, int]) -> Tensor:
    """The volume whose three channels are each voxel's own x, y and z."""
    axes = [torch.arange(side, dtype=torch.float32) for side in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def function_of_position(voxels: Tensor, _spacing: Tensor, _valid: Tensor | None) -> Tensor:
    x, y, z = voxels.unbind(dim=1)
    return torch.stack([x - 2 * y + 3 * z, x * y - z, torch.sin(x + 0.3 * y + 0.1 * z)], dim=1)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    size=SIDES,
    window=WINDOWS,
    overlap=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9]),
    weights=st.sampled_from(["gaussian", "constant"]),
    windows=st.integers(1, 7),
    flips=st.sets(st.sampled_from("xyz")),
)
def test_a_function_of_position_comes_back_unchanged(
    size: tuple[int, int, int],
    window: tuple[int, int, int],
    overlap: float,
    weights: str,
    windows: int,
    flips: set[str],
) -> None:
    inner = tuple(max(pair) for pair in zip(size, window, strict=True))
    assume(len(window_starts(inner, window, overlap)) <= MOST_WINDOWS)
    config = InferenceConfig(
        overlap=overlap, weights=weights, windows_per_batch=windows, flips=tuple(sorted(flips))
    )

    result = slide(
        places(size), function_of_position, config, window=window, spacing_mm=(1.0, 1.5, 3.0)
    )

    expected = function_of_position(places(size)[None], torch.ones(1, 3), None)[0]
    # float32 sums of up to some hundred weighted copies of one number.
    assert torch.allclose(result, expected, rtol=2e-6, atol=2e-5)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(size=SIDES, window=WINDOWS, overlap=st.floats(0, 0.95))
def test_every_voxel_is_covered_by_windows_inside_the_volume(
    size: tuple[int, int, int], window: tuple[int, int, int], overlap: float
) -> None:
    window = tuple(min(pair) for pair in zip(size, window, strict=True))
    covered = torch.zeros(size, dtype=torch.int32)
    assume(len(window_starts(size, window, overlap)) <= 10 * MOST_WINDOWS)

    for start in window_starts(size, window, overlap):
        box = tuple(slice(s, s + w) for s, w in zip(start, window, strict=True))
        assert covered[box].shape == window
        covered[box] += 1

    assert (covered > 0).all()


@pytest.mark.parametrize("kind", ["gaussian", "constant"])
def test_normalised_weights_sum_to_one_at_every_voxel(kind: str) -> None:
    size, window = (23, 17, 31), (8, 6, 10)
    weights = window_weights(window, kind)
    boxes = [
        tuple(slice(s, s + w) for s, w in zip(start, window, strict=True))
        for start in window_starts(size, window, 0.5)
    ]
    mass = torch.zeros(size)
    for box in boxes:
        mass[box] += weights

    shares = torch.zeros(size)
    for box in boxes:
        shares[box] += weights / mass[box]

    assert torch.allclose(shares, torch.ones(size), atol=1e-6)
