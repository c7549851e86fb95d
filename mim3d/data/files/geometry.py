"""The geometry rule: from what a header says to one affine in millimetres, RAS+.

An affine maps a voxel's index to the millimetres of its centre, with x to the Right, y to the
Anterior and z to the Superior. A header can say this twice and contradict itself, say it in other
units, or not say it at all. What is decided here, in this order:

1. A form is *sound* if it is finite, regular, and (for a quaternion) a rotation with positive
   voxel sizes.
2. NIfTI: the sform decides; the qform where there is no sound sform; neither form present means
   that the axes as stored are taken as RAS+, which is noted.
3. Two sound forms that differ in handedness, in the nearest order of axes, or by more than one
   percent in a voxel size are an error; a shift or a small turn is noted, and the sform is taken.
4. Whatever the format: spacing within 0.005 to 200 mm, an offset within 10 m, axes at right angles
   (to a cosine of 1e-4; up to 0.01 with a note).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mim3d.config.read import GeometryChoice
from mim3d.data.volume import Note, spacing_of
from mim3d.foundation.errors import VolumeError

Affine = NDArray[np.float64]

SMALLEST_MM, LARGEST_MM = 0.005, 200.0
FARTHEST_MM = 10_000.0
SAME_VOXELS = 0.01
SAME_SPACING = 0.01
RIGHT_ANGLE, SLIGHT_SHEAR = 1e-4, 0.01
KNOWN_CODES = range(6)
UNIT_IN_MM = {1: 1000.0, 2: 1.0, 3: 0.001}


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a file lie.

    Attributes:
        affine: (4, 4) voxel of the file to millimetres, RAS+.
        has_orientation: False where the axes as stored were taken as RAS+ for want of better.
        notes: what was odd.
    """

    affine: Affine
    has_orientation: bool
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class NiftiForms:
    """What a NIfTI header says about geometry, as numbers, before any judgement.

    Attributes:
        spatial_axes: how many of the file's axes exist (2 for a flat image).
        pixdim: qfac and three voxel sizes.
        unit: code of the unit of length (bits 0 to 2 of `xyzt_units`).
        qform_code: 0 says that the quaternion is absent.
        sform_code: 0 says that the rows are absent.
        quaternion: b, c, d.
        quaternion_offset: x, y, z.
        rows: (3, 4) of the sform.
    """

    spatial_axes: int
    pixdim: tuple[float, float, float, float]
    unit: int
    qform_code: int
    sform_code: int
    quaternion: tuple[float, float, float]
    quaternion_offset: tuple[float, float, float]
    rows: NDArray[np.float64]


def nifti_grid(forms: NiftiForms, shape: tuple[int, int, int], choice: GeometryChoice) -> Grid:
    """The grid of a NIfTI file by the rule above.

    Args:
        forms: the header's numbers.
        shape: voxels along the axes of the file.
        choice: `strict`, or the one form to be taken.

    Raises:
        VolumeError: no sound form, contradicting forms, or an impossible grid.
    """
    scale, notes = _unit(forms.unit)
    notes += _odd_codes(forms)
    sform, sform_fault = _sform(forms, scale) if forms.sform_code > 0 else (None, None)
    qform, qform_fault = _qform(forms, scale, notes) if forms.qform_code > 0 else (None, None)

    if choice != "strict":
        chosen = sform if choice == "sform" else qform
        if chosen is None:
            fault = (sform_fault if choice == "sform" else qform_fault) or "it is not there"
            raise VolumeError(
                f"the {choice} cannot be used: {fault}",
                remedy="leave `--read.geometry` at `strict`",
                code="geometry",
            )
        return _checked(chosen, notes)

    if sform is not None:
        if qform is not None:
            notes += _compared(sform, qform, shape)
        elif qform_fault is not None:
            notes.append(Note("qform-unusable", f"the qform is ignored: {qform_fault}"))
        else:
            notes += _pixdim_against(sform, forms, scale)
        return _checked(sform, notes)
    if qform is not None:
        if sform_fault is not None:
            notes.append(
                Note("sform-unusable", f"the sform is ignored, the qform decides: {sform_fault}")
            )
        return _checked(qform, notes)
    if sform_fault or qform_fault:
        raise VolumeError(
            f"the place of the voxels is unknown: {sform_fault or qform_fault}",
            remedy="correct the header with a tool you trust",
            code="geometry",
        )
    return unknown_orientation(_spacing_from_pixdim(forms, notes), notes, scale)


def unknown_orientation(
    spacing: tuple[float, float, float], notes: list[Note], scale: float = 1.0
) -> Grid:
    """Axes as stored taken as RAS+, origin 0 (NIfTI method 1).

    Raises:
        VolumeError: a voxel size is not a positive number within the limits.
    """
    note = Note(
        "orientation-unknown",
        "the file does not say how its axes lie: they are taken as right, anterior, superior",
    )
    affine = np.diag([*(size * scale for size in spacing), 1.0])
    if not all(math.isfinite(size) and size > 0 for size in spacing):
        raise VolumeError(
            f"the voxel size {_numbers(spacing)} is not positive",
            remedy="correct the header with a tool you trust",
            code="spacing",
        )
    grid = _checked(affine, [*notes, note])
    return Grid(grid.affine, False, grid.notes)


def lps_grid(
    directions: NDArray[np.float64],
    origin: NDArray[np.float64],
    signs: tuple[float, float, float],
    notes: list[Note],
) -> Grid:
    """The grid from direction vectors times spacing, in a frame whose axes are RAS+ up to sign.

    Args:
        directions: (3, 3), one column an axis of the file, in millimetres.
        origin: (3,) centre of the first voxel.
        signs: factors that turn the frame into RAS+: (-1, -1, 1) for LPS.
        notes: what was odd so far.

    Raises:
        VolumeError: not finite, singular, or an impossible grid.
    """
    affine = np.eye(4)
    affine[:3, :3] = directions
    affine[:3, 3] = origin
    affine[:3] *= np.array(signs)[:, None]
    fault = _fault(affine)
    if fault is not None:
        raise VolumeError(
            f"the place of the voxels is unknown: {fault}",
            remedy="correct the header with a tool you trust",
            code="geometry",
        )
    return _checked(affine, notes)


def nearest_ras(affine: Affine) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """The signed permutation of axes that comes nearest to RAS+.

    The sum of |cosines| decides, ties go to the lowest axis of the file.

    Returns:
        For x, y, z of RAS+ the axis of the file it runs along, and whether against it.
    """
    cosines = affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    best, axes = -1.0, (0, 1, 2)
    for candidate in itertools.permutations(range(3)):
        total = sum(abs(float(cosines[row, axis])) for row, axis in enumerate(candidate))
        # 1e-6: at exactly 45 degrees the rounding of float32 headers must not decide.
        if total > best + 1e-6:
            best, axes = total, (candidate[0], candidate[1], candidate[2])
    x, y, z = (bool(cosines[row, axis] < 0) for row, axis in enumerate(axes))
    return axes, (x, y, z)


def ras_affine(
    affine: Affine,
    shape: tuple[int, int, int],
    axes: tuple[int, int, int],
    flips: tuple[bool, bool, bool],
) -> Affine:
    """The affine after the axes of the file were permuted and flipped.

    Args:
        affine: of the file's voxels.
        shape: voxels along the axes of the file.
        axes: as `nearest_ras` gives them.
        flips: likewise.
    """
    turn = np.zeros((4, 4))
    turn[3, 3] = 1.0
    for ras, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        turn[axis, ras] = -1.0 if flip else 1.0
        turn[axis, 3] = shape[axis] - 1 if flip else 0.0
    # + 0.0: no negative zeros in what users print.
    return affine @ turn + 0.0


def corners(shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Indices of the eight corner voxels, (4, 8), homogeneous."""
    ends = itertools.product(*((0, size - 1) for size in shape))
    return np.array([[*end, 1] for end in ends], dtype=np.float64).T


def quaternion_rotation(b: float, c: float, d: float) -> NDArray[np.float64]:
    """The rotation of a NIfTI quaternion, (3, 3); a is what makes it a unit quaternion.

    nifti1.h, method 2. Rounding to float32 leaves b² + c² + d² within three units in the last place
    of 1 where a = 0: taken as that, and the rest is scaled to unit length.
    """
    square = b * b + c * c + d * d
    if square > 1 - 3 * np.finfo(np.float32).eps:
        length = math.sqrt(square)
        a, b, c, d = 0.0, b / length, c / length, d / length
    else:
        a = math.sqrt(1 - square)
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def _unit(code: int) -> tuple[float, list[Note]]:
    if code in (0, 2):
        return 1.0, []
    if code not in UNIT_IN_MM:
        return 1.0, [Note("unit-unknown", f"unit of length {code} is unknown: taken as mm")]
    name = {1: "metres", 3: "micrometres"}[code]
    return UNIT_IN_MM[code], [
        Note("units-converted", f"lengths are in {name} and were converted to mm")
    ]


def _odd_codes(forms: NiftiForms) -> list[Note]:
    codes = {"sform": forms.sform_code, "qform": forms.qform_code}
    return [
        Note(
            "form-code",
            f"{name}_code {code} is no known code: the {name} is "
            + ("used as it is" if code > 0 else "taken as absent"),
        )
        for name, code in codes.items()
        if code not in KNOWN_CODES
    ]


def _sform(forms: NiftiForms, scale: float) -> tuple[Affine | None, str | None]:
    affine = np.vstack([forms.rows * scale, [0, 0, 0, 1]])
    fault = _fault(affine)
    return (None, f"sform: {fault}") if fault else (affine, None)


def _qform(forms: NiftiForms, scale: float, notes: list[Note]) -> tuple[Affine | None, str | None]:
    b, c, d = forms.quaternion
    qfac = forms.pixdim[0]
    numbers = (b, c, d, *forms.quaternion_offset)
    if not all(map(math.isfinite, numbers)):
        return None, "qform: a quaternion or offset is not finite"
    if qfac not in (-1.0, 0.0, 1.0):
        return None, f"qform: qfac is {qfac:g}, so left and right are unknown"
    if b * b + c * c + d * d > 1 + 1e-6:
        return None, "qform: the quaternion is no rotation"
    sizes = _spacing_from_pixdim(forms, notes)
    if not all(math.isfinite(size) and size > 0 for size in sizes):
        return None, f"qform: the voxel size {_numbers(sizes)} is not positive"
    if not all(SMALLEST_MM <= size * scale <= LARGEST_MM for size in sizes):
        return None, f"qform: the voxel size {_numbers(sizes)} is impossible"
    affine = np.eye(4)
    affine[:3, :3] = quaternion_rotation(b, c, d) * np.array(sizes)
    if qfac < 0:
        affine[:3, 2] *= -1
    affine[:3, 3] = forms.quaternion_offset
    affine[:3] *= scale
    return affine, None


def _spacing_from_pixdim(forms: NiftiForms, notes: list[Note]) -> tuple[float, float, float]:
    sizes = list(forms.pixdim[1:])
    for axis in range(forms.spatial_axes, 3):
        # The standard leaves pixdim undefined beyond dim[0].
        if not (math.isfinite(sizes[axis]) and sizes[axis] > 0):
            sizes[axis] = 1.0
            notes.append(Note("thickness", "a flat image without thickness: taken as 1"))
    return (sizes[0], sizes[1], sizes[2])


def _fault(affine: Affine) -> str | None:
    """Why an affine cannot be used at all, or None."""
    if not np.isfinite(affine).all():
        return "a number is not finite"
    lengths = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        return "an axis has no length"
    # 1e-3: two axes at less than a twentieth of a degree, or three in one plane.
    if abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        return "its axes are parallel or lie in one plane"
    return None


def _compared(sform: Affine, qform: Affine, shape: tuple[int, int, int]) -> list[Note]:
    """Judges two sound forms; the sform is to be taken afterwards."""
    ends = corners(shape)
    away = np.linalg.solve(sform, qform @ ends) - ends
    if float(np.sqrt((away[:3] ** 2).sum(axis=0)).max()) <= SAME_VOXELS:
        return []
    conflict = None
    if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        conflict = "which side is left"
    elif nearest_ras(sform) != nearest_ras(qform):
        conflict = "which axis is which"
    else:
        ratios = np.array(spacing_of(sform)) / np.array(spacing_of(qform))
        if np.abs(ratios - 1).max() > SAME_SPACING:
            conflict = "the voxel size"
    if conflict is not None:
        raise VolumeError(
            f"sform and qform disagree on {conflict}",
            remedy="find out which is right and give `--read.geometry sform` or `qform`",
            code="forms-disagree",
        )
    apart = float(np.sqrt((((sform - qform) @ ends)[:3] ** 2).sum(axis=0)).max())
    text = f"sform and qform lie up to {apart:.3g} mm apart: the sform decides"
    return [Note("forms-differ", text)]


def _pixdim_against(sform: Affine, forms: NiftiForms, scale: float) -> list[Note]:
    sizes = np.array(forms.pixdim[1:]) * scale
    exist = forms.spatial_axes
    ratios = sizes[:exist] / np.array(spacing_of(sform))[:exist]
    # Written so that NaN counts as a difference.
    if bool((np.abs(ratios - 1) <= SAME_SPACING).all()):
        return []
    return [Note("pixdim-differs", "pixdim differs from the sform: the sform decides")]


def _checked(affine: Affine, notes: list[Note]) -> Grid:
    """The last gate of every format.

    Raises:
        VolumeError: spacing or offset beyond the limits, or sheared axes.
    """
    spacing = spacing_of(affine)
    if not all(SMALLEST_MM <= size <= LARGEST_MM for size in spacing):
        raise VolumeError(
            f"the voxel size {_numbers(spacing)} mm is outside of"
            f" {SMALLEST_MM:g} to {LARGEST_MM:g} mm",
            remedy="correct the voxel size or its unit in the header",
            code="spacing",
        )
    offset = affine[:3, 3]
    if not bool((np.abs(offset) <= FARTHEST_MM).all()):
        raise VolumeError(
            f"the first voxel lies at {_numbers(offset)} mm, more than 10 m away",
            remedy="correct the offset in the header",
            code="offset",
        )
    unit = affine[:3, :3] / np.array(spacing)
    cosines = np.abs(unit.T @ unit - np.eye(3))
    shear = float(cosines.max())
    if shear > SLIGHT_SHEAR:
        raise VolumeError(
            f"the axes are not at right angles (cosine {shear:.3g})",
            remedy="resample it to an orthogonal grid with a tool you trust",
            code="shear",
        )
    if shear > RIGHT_ANGLE:
        notes = [*notes, Note("shear", f"the axes are slightly sheared (cosine {shear:.2g})")]
    return Grid(affine, True, tuple(notes))


def _numbers(values: object) -> str:
    return " x ".join(f"{float(value):g}" for value in np.asarray(values).ravel())
