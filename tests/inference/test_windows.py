"""Where windows lie, against MONAI and against counting; which of them are skipped."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices

from mim3d.config.inference import InferenceConfig
from mim3d.foundation.errors import ConfigError
from mim3d.inference.windows import (
    WindowCount,
    axis_starts,
    check_inference,
    plan_sweep,
    window_starts,
    window_weights,
)

WINDOW = (8, 10, 6)


@pytest.mark.parametrize("size", [(8, 10, 6), (33, 20, 41), (9, 11, 7)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6, 0.95])
def test_windows_begin_where_monais_do(size: tuple[int, int, int], overlap: float) -> None:
    ours = window_starts(size, WINDOW, overlap)

    strides = [
        w if w == s else max(1, int(w * (1 - overlap))) for w, s in zip(WINDOW, size, strict=True)
    ]
    theirs = dense_patch_slices(size, WINDOW, strides)
    assert ours == [tuple(part.start for part in box) for box in theirs]


@pytest.mark.parametrize(("size", "window"), list(product(range(4, 40, 5), (1, 3, 4))))
def test_every_voxel_of_an_axis_is_covered_and_no_window_sticks_out(size: int, window: int) -> None:
    for overlap in (0.0, 0.3, 0.5, 0.99):
        starts = axis_starts(size, window, overlap)

        covered = {place for start in starts for place in range(start, start + window)}
        assert covered == set(range(size))
        assert len(set(starts)) == len(starts)


def test_number_of_windows_of_a_torso_is_as_planned() -> None:
    # 512 x 512 x 300 at 96 cubed: 10 x 10 x 6 and 7 x 7 x 4.
    assert len(window_starts((512, 512, 300), (96, 96, 96), 0.5)) == 600
    assert len(window_starts((512, 512, 300), (96, 96, 96), 0.25)) == 196


@pytest.mark.parametrize("kind", ["gaussian", "constant"])
def test_weights_equal_monais_importance_map(kind: str) -> None:
    ours = window_weights((8, 11, 5), kind)

    assert torch.allclose(ours, compute_importance_map((8, 11, 5), mode=kind), atol=1e-7)
    assert ours.min() > 0


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"overlap": 1.0}, "overlap"),
        ({"overlap": -0.1}, "overlap"),
        ({"windows_per_batch": 0}, "windows-per-batch"),
        ({"window": (8, 0, 8)}, "window"),
        ({"flips": ("x", "x")}, "flips"),
    ],
)
def test_impossible_windows_are_refused(change: dict[str, object], code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_inference(replace(InferenceConfig(), **change))

    assert caught.value.code == code


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((41, 20, 18), 0), ((16, 50, 18), 1), ((16, 20, 60), 2), ((3, 20, 12), 1), ((4, 5, 3), 0)],
)
def test_windows_advance_where_the_least_must_be_held(
    shape: tuple[int, int, int], axis: int
) -> None:
    sweep = plan_sweep(shape, WINDOW, 0.5)

    held = [WINDOW[a] * np.prod(sweep.size) / sweep.size[a] for a in range(3)]
    assert sweep.axis == axis == int(np.argmin(held))
    assert [start[axis] for start in sweep.starts] == sorted(s[axis] for s in sweep.starts)
    assert set(sweep.starts) == set(window_starts(sweep.size, WINDOW, 0.5))
    assert sweep.count == WindowCount(len(sweep.starts), 0)


def test_the_volume_lies_in_the_middle_of_its_padding() -> None:
    sweep = plan_sweep((5, 31, 3), WINDOW, 0.5)

    assert sweep.size == (8, 31, 6)
    assert sweep.inside == (slice(1, 6), slice(0, 31), slice(1, 4))
    assert sweep.is_padded
    assert not plan_sweep((8, 31, 6), WINDOW, 0.5).is_padded


@pytest.mark.parametrize("shape", [(41, 20, 18), (5, 33, 17), (11, 13, 7)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_exactly_the_windows_without_body_are_skipped(
    shape: tuple[int, int, int], overlap: float
) -> None:
    body = np.zeros(shape, bool)
    body[shape[0] - 1, 3, 2] = body[2, 9, shape[2] - 2] = True

    sweep = plan_sweep(shape, WINDOW, overlap, body)

    padded = np.zeros(sweep.size, bool)
    padded[sweep.inside] = body
    everything = plan_sweep(shape, WINDOW, overlap)
    expected = [start for start in everything.starts if padded[sweep.box(start)].any()]
    assert list(sweep.starts) == expected
    assert len(expected) > 0
    assert sweep.count == WindowCount(len(expected), len(everything.starts) - len(expected))


def test_without_any_body_no_window_is_skipped() -> None:
    sweep = plan_sweep((41, 20, 18), WINDOW, 0.5, np.zeros((41, 20, 18), bool))

    assert sweep == plan_sweep((41, 20, 18), WINDOW, 0.5)


def test_counts_of_several_runs_add_up() -> None:
    assert WindowCount(3, 1) + WindowCount(5, 2) == WindowCount(8, 3)
