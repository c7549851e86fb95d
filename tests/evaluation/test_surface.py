"""Surface distances against MONAI, and against a brute-force oracle written out here."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy.ndimage import gaussian_filter

from mim3d.evaluation import surface as module
from mim3d.evaluation.surface import diagonal_mm, surface, surface_distances

SPACING = (0.8, 1.3, 3.1)


def blobs(seed: int, shape: tuple[int, ...] = (21, 17, 12)) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    field = gaussian_filter(random.standard_normal(shape), 2.0)
    other = field + 0.5 * gaussian_filter(random.standard_normal(shape), 1.5)
    return field > field.mean() + 0.3 * field.std(), other > other.mean() + 0.3 * other.std()


def slow_surface(mask: np.ndarray) -> np.ndarray:
    found = np.zeros_like(mask)
    steps = [s for s in itertools.product((-1, 0, 1), repeat=3) if sum(map(abs, s)) == 1]
    for point in np.argwhere(mask):
        for step in steps:
            beside = point + step
            outside = (beside < 0).any() or (beside >= mask.shape).any()
            if outside or not mask[tuple(beside)]:
                found[tuple(point)] = True
    return found


def slow_distances(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    one = np.argwhere(slow_surface(ours)) * np.array(SPACING)
    two = np.argwhere(slow_surface(theirs)) * np.array(SPACING)
    apart = np.sqrt(((one[:, None] - two[None]) ** 2).sum(-1))
    return apart.min(axis=1), apart.min(axis=0)


@pytest.mark.parametrize("seed", range(4))
def test_surface_is_every_voxel_with_one_of_six_neighbours_outside(seed: int) -> None:
    mask, _ = blobs(seed)

    assert np.array_equal(surface(mask), slow_surface(mask))


@pytest.mark.parametrize("share", [0, 6, 10**9], ids=["tree", "rule", "transform"])
@pytest.mark.parametrize("seed", range(3))
def test_both_ways_of_measuring_equal_brute_force(
    seed: int, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TREE_SHARE", share)
    ours, theirs = blobs(seed)

    distances = surface_distances(ours, theirs, SPACING)

    forward, backward = slow_distances(ours, theirs)
    assert np.allclose(distances.from_reference, forward, atol=1e-5)
    assert np.allclose(distances.from_prediction, backward, atol=1e-5)
    expected = max(np.percentile(forward, 95), np.percentile(backward, 95))
    assert distances.percentile() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("voxels", "way"), [(287, "tree"), (288, "transform")])
def test_the_way_changes_at_a_sixth_of_the_box_and_the_values_do_not(
    voxels: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 x 16 x 9 voxels, of which a sixth are 288: single voxels, each a surface of its own."""
    taken = []
    for name in ("tree", "transform"):
        called = getattr(module, f"_by_{name}")
        monkeypatch.setattr(
            module, f"_by_{name}", lambda *a, n=name, f=called: taken.append(n) or f(*a)
        )
    checks = np.indices((12, 16, 9)).sum(axis=0) % 2 == 0
    places = np.argwhere(checks)
    # Both ends of the box stay in, so that it does not shrink.
    middle = np.random.default_rng(voxels).permutation(np.arange(1, len(places) - 1))
    chosen = np.concatenate(([0, len(places) - 1], middle))[:voxels]
    ours, theirs = np.zeros((2, *checks.shape), bool)
    ours[tuple(places[chosen[0::2]].T)] = theirs[tuple(places[chosen[1::2]].T)] = True

    distances = surface_distances(ours, theirs, SPACING)

    forward, backward = slow_distances(ours, theirs)
    one, two = (torch.from_numpy(mask)[None, None].float() for mask in (theirs, ours))
    nsd = compute_surface_dice(one, two, [1.0], include_background=True, spacing=SPACING)
    assert taken == [way]
    assert np.allclose(np.sort(distances.from_reference), np.sort(forward), atol=1e-5)
    assert np.allclose(np.sort(distances.from_prediction), np.sort(backward), atol=1e-5)
    assert distances.share_within(1.0) == pytest.approx(float(nsd), abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_hd95_and_nsd_equal_monai(seed: int) -> None:
    ours, theirs = blobs(seed)
    one, two = (torch.from_numpy(mask)[None, None].float() for mask in (theirs, ours))

    distances = surface_distances(ours, theirs, SPACING)

    hd95 = compute_hausdorff_distance(
        one, two, include_background=True, percentile=95, spacing=SPACING
    )
    assert distances.percentile() == pytest.approx(float(hd95), abs=1e-4)
    for tolerance in (0.7, 0.8, 1.3, 3.1):
        nsd = compute_surface_dice(one, two, [tolerance], include_background=True, spacing=SPACING)
        assert distances.share_within(tolerance) == pytest.approx(float(nsd), abs=1e-6)


def test_a_mask_moved_by_three_voxels_is_three_voxels_away() -> None:
    ours, theirs = np.zeros((2, 20, 9, 8), bool)
    ours[4:9, 3:6, 2:5] = True
    theirs[7:12, 3:6, 2:5] = True

    distances = surface_distances(ours, theirs, SPACING)

    assert distances.percentile(100) == pytest.approx(3 * 0.8)
    # 5 x 3 x 3 voxels, of which the inner 3 x 1 x 1 are no surface.
    assert distances.from_reference.size == 5 * 3 * 3 - 3


def test_a_distance_equal_to_the_tolerance_is_within_it() -> None:
    ours, theirs = np.zeros((2, 30, 3, 3), bool)
    ours[7, 1, 1] = theirs[12, 1, 1] = True

    distances = surface_distances(ours, theirs, (0.15, 1.0, 1.0))

    assert distances.share_within(0.75) == 1.0
    assert distances.share_within(0.7499) == 0.0


def test_the_box_that_is_cut_out_does_not_matter() -> None:
    ours, theirs = np.zeros((2, 21, 17, 12), bool)
    ours[3:9, 4:11, 2:7], theirs[5:12, 2:9, 3:9] = True, True

    whole = surface_distances(ours, theirs, SPACING)
    box = (slice(3, 12), slice(2, 11), slice(2, 9))
    cut = surface_distances(ours[box], theirs[box], SPACING)

    assert np.array_equal(np.sort(whole.from_reference), np.sort(cut.from_reference))
    assert np.array_equal(np.sort(whole.from_prediction), np.sort(cut.from_prediction))


def test_the_diagonal_is_longer_than_any_distance_within_the_image() -> None:
    ours, theirs = np.zeros((2, 5, 6, 7), bool)
    ours[0, 0, 0] = theirs[-1, -1, -1] = True

    farthest = surface_distances(ours, theirs, SPACING).percentile(100)

    assert farthest < diagonal_mm((5, 6, 7), SPACING)
