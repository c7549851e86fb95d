"""Scores of one case: the rule for empty structures, and values where both sides have one."""

from __future__ import annotations

import numpy as np
import pytest
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from scipy.ndimage import gaussian_filter
from torch import from_numpy

from mim3d.data.regions import SCHEMES
from mim3d.evaluation.cases import score_case
from mim3d.evaluation.described import of_regions
from mim3d.evaluation.overlap import Structure
from mim3d.evaluation.surface import diagonal_mm

SPACING = (0.9, 1.4, 2.7)
SHAPE = (19, 23, 11)
ORGANS = (Structure("liver", (1,)), Structure("spleen", (4,)), Structure("tumour", (300,)))


def organs(seed: int, values: tuple[int, ...] = (1, 4, 300)) -> np.ndarray:
    random = np.random.default_rng(seed)
    field = gaussian_filter(np.random.default_rng(0).standard_normal(SHAPE), 2.5)
    field += 0.4 * gaussian_filter(random.standard_normal(SHAPE), 2.0)
    cuts = np.quantile(field, (0.5, 0.7, 0.85))
    return np.array([0, *values])[np.digitize(field, cuts)]


def test_scores_equal_monai_where_both_sides_have_the_structure() -> None:
    reference, prediction = organs(1), organs(2)

    scores = score_case(reference, prediction, SPACING, ORGANS, case_id="a", nsd_tolerance_mm=1.5)

    for score, structure in zip(scores, ORGANS, strict=True):
        ours, theirs = (
            from_numpy(side == structure.values[0])[None, None].float()
            for side in (reference, prediction)
        )
        near = compute_surface_dice(theirs, ours, [1.5], include_background=True, spacing=SPACING)
        far = compute_hausdorff_distance(
            theirs, ours, include_background=True, percentile=95, spacing=SPACING
        )
        assert score.counted_as == "case"
        assert score.dice == pytest.approx(float(compute_dice(theirs, ours)), abs=1e-6)
        assert score.hd95_mm == pytest.approx(float(far), abs=1e-4)
        assert score.nsd == pytest.approx(float(near), abs=1e-6)


def test_missed_hallucinated_and_absent_follow_the_table() -> None:
    reference = np.where(organs(1) == 1, 1, 0)
    prediction = np.where(organs(2) == 4, 4, 0)

    liver, spleen, tumour = score_case(reference, prediction, SPACING, ORGANS, case_id="a")

    worst = pytest.approx(np.sqrt((19 * 0.9) ** 2 + (23 * 1.4) ** 2 + (11 * 2.7) ** 2))
    assert (liver.counted_as, liver.dice, liver.hd95_mm, liver.nsd) == ("missed", 0, worst, 0)
    assert (spleen.counted_as, spleen.dice, spleen.hd95_mm, spleen.nsd) == (
        "hallucinated", 0, worst, 0,
    )  # fmt: skip
    assert (tumour.counted_as, tumour.dice, tumour.hd95_mm, tumour.nsd) == (
        "absent", None, None, None,
    )  # fmt: skip


def test_a_case_without_prediction_is_missed_even_where_its_reference_is_empty() -> None:
    reference = np.where(organs(1) == 1, 1, 0)

    scores = score_case(reference, None, SPACING, ORGANS, case_id="a")

    assert [score.counted_as for score in scores] == ["missed"] * 3
    assert all(score.hd95_mm == diagonal_mm(SHAPE, SPACING) for score in scores)


def test_what_the_reference_of_a_missing_prediction_lacks_is_charged_the_largest_diagonal() -> None:
    reference = np.where(organs(1) == 1, 1, 0)

    liver, spleen, _ = score_case(reference, None, SPACING, ORGANS, case_id="a", largest_mm=900.0)

    assert (liver.hd95_mm, spleen.hd95_mm) == (diagonal_mm(SHAPE, SPACING), 900.0)


def test_a_perfect_prediction_has_no_distance() -> None:
    reference = organs(1)

    for score in score_case(reference, reference, SPACING, ORGANS, case_id="a"):
        assert (score.dice, score.hd95_mm, score.nsd) == (1.0, 0.0, 1.0)


def test_regions_are_scored_as_unions_of_their_values() -> None:
    scheme = SCHEMES["brats2021"]
    reference, prediction = organs(1, (2, 1, 4)), organs(2, (2, 1, 4))

    scores = score_case(reference, prediction, SPACING, of_regions(scheme), case_id="a")

    assert [score.structure for score in scores] == ["TC", "WT", "ET"]
    for score, values in zip(scores, ((1, 4), (1, 2, 4), (4,)), strict=True):
        ours, theirs = np.isin(reference, values), np.isin(prediction, values)
        assert score.dice == pytest.approx(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))


def test_distances_of_a_region_reach_over_all_of_its_values() -> None:
    reference, prediction = np.zeros((2, *SHAPE), int)
    reference[2:5, 3:9, 1:4], reference[9:15, 12:20, 5:10] = 1, 4
    prediction[5:8, 3:9, 1:4], prediction[9:16, 12:20, 5:10] = 1, 4
    values = (1, 4)

    [region] = score_case(reference, prediction, SPACING, [Structure("TC", values)], case_id="a")
    [merged] = score_case(
        1 * (reference > 0), 1 * (prediction > 0), SPACING, [Structure("one", (1,))], case_id="a"
    )

    assert (region.hd95_mm, region.nsd) == (merged.hd95_mm, merged.nsd)


def test_ignored_voxels_count_on_neither_side() -> None:
    reference, prediction = organs(1), organs(2)
    holed = reference.copy()
    holed[4:12, 3:15, 2:8] = 77
    kept = holed != 77

    scores = score_case(holed, prediction, SPACING, ORGANS, case_id="a", ignore_value=77)

    ours, theirs = (reference == 4) & kept, (prediction == 4) & kept
    expected = 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())
    assert scores[1].dice == pytest.approx(expected)


def test_the_order_in_memory_and_distant_specks_change_no_score() -> None:
    reference, prediction = organs(1), organs(2)
    prediction[0, 0, 0] = prediction[-1, -1, -1] = 4
    expected = score_case(reference, prediction, SPACING, ORGANS, case_id="a")

    for ours in (reference, np.asfortranarray(reference)):
        for theirs in (prediction, np.asfortranarray(prediction)):
            scores = score_case(ours, theirs, SPACING, ORGANS, case_id="a")
            for score, other in zip(scores, expected, strict=True):
                assert (score.dice, score.nsd) == (other.dice, other.nsd)
                assert score.hd95_mm == pytest.approx(other.hd95_mm, abs=1e-6)
