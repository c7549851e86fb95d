from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mim3d.data.files.geometry import (
    NiftiForms,
    corners,
    lps_grid,
    nearest_ras,
    nifti_grid,
    quaternion_rotation,
    ras_affine,
    unknown_orientation,
)
from mim3d.data.files.writing import nifti_fields
from mim3d.data.volume import Origin
from mim3d.foundation.errors import VolumeError

SHAPE = (20, 16, 12)
SPACING = (0.8, 1.2, 2.5)


def affine_of(turn=None, spacing=SPACING, offset=(-11, 6.5, 31.25)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if turn is None else turn) * np.array(spacing)
    affine[:3, 3] = offset
    return affine


def forms_of(sform=None, qform=None, **changes) -> NiftiForms:
    """Forms of two affines; the quaternion comes from SciPy."""
    quaternion, offset, pixdim = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (1.0, *SPACING)
    if qform is not None:
        spacing = np.sqrt((qform[:3, :3] ** 2).sum(axis=0))
        turn = qform[:3, :3] / spacing
        qfac = 1.0 if np.linalg.det(turn) > 0 else -1.0
        b, c, d, a = Rotation.from_matrix(turn * [1, 1, qfac]).as_quat()
        sign = -1.0 if a < 0 else 1.0
        quaternion, offset = (sign * b, sign * c, sign * d), tuple(qform[:3, 3])
        pixdim = (qfac, *spacing)
    fields = {
        "spatial_axes": 3,
        "pixdim": pixdim,
        "unit": 2,
        "qform_code": int(qform is not None),
        "sform_code": int(sform is not None),
        "quaternion": quaternion,
        "quaternion_offset": offset,
        "rows": np.zeros((3, 4)) if sform is None else sform[:3],
    }
    return NiftiForms(**{**fields, **changes})


def turned(degrees: float, axis: int = 2) -> np.ndarray:
    return Rotation.from_rotvec(np.deg2rad(degrees) * np.eye(3)[axis]).as_matrix()


@pytest.mark.parametrize("seed", range(40))
def test_a_quaternion_makes_the_rotation_that_scipy_makes(seed):
    rotation = Rotation.random(random_state=seed)
    b, c, d, a = rotation.as_quat()
    sign = math.copysign(1, a)

    assert np.allclose(quaternion_rotation(sign * b, sign * c, sign * d), rotation.as_matrix())


def test_a_quaternion_just_over_one_is_a_half_turn():
    assert np.allclose(quaternion_rotation(0, 0, 1 + 1e-7), np.diag([-1, -1, 1]), atol=1e-12)


@pytest.mark.parametrize("seed", range(60))
def test_points_keep_their_millimetres_under_random_turns(seed):
    random = np.random.default_rng(seed)
    turn = Rotation.random(random_state=seed).as_matrix() @ np.diag([1, 1, random.choice([-1, 1])])
    affine = affine_of(turn)

    grid = nifti_grid(forms_of(affine, affine), SHAPE, "strict")
    axes, flips = nearest_ras(grid.affine)
    ras = ras_affine(grid.affine, SHAPE, axes, flips)

    assert grid.notes == ()
    # The oracle: every signed permutation, by the trace of its cosines.
    best = max(
        sum(sign[r] * turn[r, perm[r]] for r in range(3))
        for perm in itertools.permutations(range(3))
        for sign in itertools.product((-1, 1), repeat=3)
    )
    assert np.trace(ras[:3, :3] / np.sqrt((ras[:3, :3] ** 2).sum(axis=0))) == pytest.approx(best)
    for point in random.uniform(0, 10, (20, 3)):
        stored = np.empty(3)
        for r in range(3):
            stored[axes[r]] = SHAPE[axes[r]] - 1 - point[r] if flips[r] else point[r]
        assert np.allclose(ras @ [*point, 1], affine @ [*stored, 1], atol=1e-9)


def test_at_45_degrees_the_lowest_axis_wins_whatever_the_rounding():
    for nudge in (-1e-8, 0, 1e-8):
        axes, _ = nearest_ras(affine_of(turned(45 + nudge)))
        assert axes == (0, 1, 2)


def test_forms_that_agree_to_a_hundredth_of_a_voxel_are_silent():
    for shift, expected in ((0.007, set()), (0.02, {"forms-differ"})):
        moved = affine_of(offset=(-11 + shift * 0.8, 6.5, 31.25))
        grid = nifti_grid(forms_of(affine_of(), moved), SHAPE, "strict")
        assert {note.code for note in grid.notes} == expected
        assert np.allclose(grid.affine, affine_of())


@pytest.mark.parametrize(
    "other",
    [affine_of(offset=(-1, 6.5, 31.25)), affine_of(turned(5)), affine_of(turned(10, 0))],
)
def test_forms_that_are_shifted_or_turned_are_noted_and_the_sform_decides(other):
    grid = nifti_grid(forms_of(affine_of(), other), SHAPE, "strict")

    assert [note.code for note in grid.notes] == ["forms-differ"]
    assert np.allclose(grid.affine, affine_of())


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (affine_of(np.diag([-1, 1, 1])), "left"),
        (affine_of(turned(90)), "axis"),
        (affine_of(turned(180)), "axis"),
        (affine_of(spacing=(0.8, 1.2, 2.6)), "voxel size"),
    ],
)
def test_forms_that_contradict_each_other_are_refused_unless_one_is_chosen(other, word):
    forms = forms_of(affine_of(), other)

    with pytest.raises(VolumeError, match=word) as caught:
        nifti_grid(forms, SHAPE, "strict")

    assert "read.geometry" in (caught.value.remedy or "")
    assert np.allclose(nifti_grid(forms, SHAPE, "sform").affine, affine_of())
    assert np.allclose(nifti_grid(forms, SHAPE, "qform").affine, other)


def test_a_chosen_form_that_is_absent_is_an_error():
    with pytest.raises(VolumeError, match="qform cannot be used"):
        nifti_grid(forms_of(affine_of()), SHAPE, "qform")
    with pytest.raises(VolumeError, match="sform cannot be used"):
        nifti_grid(forms_of(None, affine_of()), SHAPE, "sform")


BROKEN_ROWS = {
    "zero": np.zeros((3, 4)),
    "nan": np.full((3, 4), np.nan),
    "offset nan": np.column_stack([np.eye(3), [0, np.nan, 0]]),
    "parallel": np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0.0]]),
}


@pytest.mark.parametrize("rows", BROKEN_ROWS.values(), ids=BROKEN_ROWS)
def test_a_broken_sform_gives_way_to_a_sound_qform_only(rows):
    with_qform = nifti_grid(forms_of(affine_of(), affine_of(), rows=rows), SHAPE, "strict")

    assert [note.code for note in with_qform.notes] == ["sform-unusable"]
    assert np.allclose(with_qform.affine, affine_of())
    with pytest.raises(VolumeError, match="unknown"):
        nifti_grid(forms_of(affine_of(), rows=rows), SHAPE, "strict")


BROKEN_QFORMS = {
    "qfac nan": {"pixdim": (math.nan, *SPACING)},
    "qfac 3": {"pixdim": (3.0, *SPACING)},
    "zero": {"pixdim": (1.0, 0.8, 0.0, 2.5)},
    "negative": {"pixdim": (1.0, 0.8, -1.2, 2.5)},
    "nan": {"pixdim": (1.0, 0.8, math.nan, 2.5)},
    "inf": {"pixdim": (1.0, 0.8, math.inf, 2.5)},
    "tiny": {"pixdim": (1.0, 0.8, 1e-30, 2.5)},
    "huge": {"pixdim": (1.0, 0.8, 500.0, 2.5)},
    "quaternion": {"quaternion": (1.0, 1.0, 1.0)},
    "quaternion nan": {"quaternion": (math.nan, 0.0, 0.0)},
    "offset inf": {"quaternion_offset": (math.inf, 0.0, 0.0)},
}


@pytest.mark.parametrize("change", BROKEN_QFORMS.values(), ids=BROKEN_QFORMS)
def test_a_broken_qform_is_noted_beside_a_sound_sform_and_refused_alone(change):
    grid = nifti_grid(forms_of(affine_of(), affine_of(), **change), SHAPE, "strict")

    assert [note.code for note in grid.notes] == ["qform-unusable"]
    assert np.allclose(grid.affine, affine_of())
    with pytest.raises(VolumeError):
        nifti_grid(forms_of(None, affine_of(), **change), SHAPE, "strict")


def test_qfac_zero_counts_as_one():
    grid = nifti_grid(forms_of(None, affine_of(), pixdim=(0.0, *SPACING)), SHAPE, "strict")

    assert np.allclose(grid.affine, affine_of())
    assert grid.notes == ()


def test_pixdim_that_differs_from_a_lone_sform_is_noted():
    grid = nifti_grid(forms_of(affine_of(), pixdim=(1.0, 0.8, 1.3, 2.5)), SHAPE, "strict")

    assert [note.code for note in grid.notes] == ["pixdim-differs"]


def test_without_forms_axes_are_taken_as_stored_and_noted():
    grid = nifti_grid(forms_of(), SHAPE, "strict")

    assert not grid.has_orientation
    assert [note.code for note in grid.notes] == ["orientation-unknown"]
    assert np.allclose(grid.affine, np.diag([*SPACING, 1]))
    with pytest.raises(VolumeError):
        nifti_grid(forms_of(pixdim=(1.0, -0.8, 1.2, 2.5)), SHAPE, "strict")
    with pytest.raises(VolumeError):
        unknown_orientation((0.8, 0.0, 1.0), [])


@pytest.mark.parametrize(("unit", "factor"), [(1, 1e-3), (3, 1e3)])
def test_metres_and_micrometres_are_converted_in_either_form(unit, factor):
    small = affine_of()
    small[:3] *= factor
    for forms in (forms_of(small, unit=unit), forms_of(None, small, unit=unit)):
        changed = NiftiForms(**{**vars(forms), "pixdim": (1.0, *(s * factor for s in SPACING))})
        grid = nifti_grid(changed, SHAPE, "strict")
        assert [note.code for note in grid.notes] == ["units-converted"]
        assert np.allclose(grid.affine, affine_of())


def test_an_unknown_unit_is_mm_and_noted():
    grid = nifti_grid(forms_of(affine_of(), affine_of(), unit=7), SHAPE, "strict")

    assert [note.code for note in grid.notes] == ["unit-unknown"]


@pytest.mark.parametrize(
    ("cosine", "codes"), [(5e-5, []), (0.004, ["shear"]), (0.0099, ["shear"]), (0.02, None)]
)
def test_slight_shear_is_kept_and_noted_and_more_is_refused(cosine, codes):
    turn = np.eye(3)
    turn[:, 1] = (cosine, math.sqrt(1 - cosine**2), 0)
    if codes is None:
        with pytest.raises(VolumeError, match="right angles"):
            nifti_grid(forms_of(affine_of(turn)), SHAPE, "strict")
        return
    grid = nifti_grid(forms_of(affine_of(turn)), SHAPE, "strict")
    assert [note.code for note in grid.notes] == codes
    assert np.allclose(grid.affine, affine_of(turn))


@pytest.mark.parametrize(
    ("spacing", "offset"),
    [((0.004, 1, 1), (0, 0, 0)), ((1, 201, 1), (0, 0, 0)), ((1, 1, 1), (0, 10_001, 0))],
)
def test_impossible_sizes_and_places_are_refused_in_every_frame(spacing, offset):
    affine = affine_of(None, spacing, offset)

    with pytest.raises(VolumeError):
        nifti_grid(forms_of(affine), SHAPE, "strict")
    with pytest.raises(VolumeError):
        lps_grid(affine[:3, :3], affine[:3, 3], (-1, -1, 1), [])


def test_mouse_sized_voxels_are_possible():
    grid = nifti_grid(forms_of(affine_of(spacing=(0.15, 0.15, 0.01))), SHAPE, "sform")

    assert grid.affine[2, 2] == 0.01


def test_lps_becomes_ras_by_two_signs():
    grid = lps_grid(np.diag(SPACING), np.array([11.0, -6.5, 31.25]), (-1, -1, 1), [])

    assert np.allclose(grid.affine, affine_of(np.diag([-1, -1, 1])))


def test_corners_are_the_eight_outermost_voxels():
    found = {tuple(corner) for corner in corners((3, 4, 5)).T[:, :3].astype(int)}

    assert found == set(itertools.product((0, 2), (0, 3), (0, 4)))


@pytest.mark.parametrize("seed", range(30))
def test_forms_made_from_an_affine_read_as_that_affine(seed):
    random = np.random.default_rng(seed)
    turn = Rotation.random(random_state=seed).as_matrix() @ np.diag([1, random.choice([-1, 1]), 1])
    affine = affine_of(turn)
    origin = Origin(SHAPE, (0, 1, 2), (False,) * 3, affine, SHAPE)

    fields = nifti_fields(origin)

    numbers = np.frombuffer(fields.forms, "<f4", offset=4)
    pixdim = np.frombuffer(fields.pixdim, "<f4")
    forms = NiftiForms(
        3,
        tuple(pixdim.tolist()),
        2,
        1,
        1,
        tuple(numbers[:3].tolist()),
        tuple(numbers[3:6].tolist()),
        numbers[6:].reshape(3, 4).astype(float),
    )
    for choice in ("strict", "sform", "qform"):
        assert np.allclose(nifti_grid(forms, SHAPE, choice).affine, affine, atol=1e-3)
    assert nifti_grid(forms, SHAPE, "strict").notes == ()
