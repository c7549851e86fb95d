"""What NIfTI headers say about geometry, sound and not, and the affine that follows by the rule."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tests.data.files.making import nifti

Affine = NDArray[np.float64]
Random = np.random.Generator
UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001, 7: 1.0}


@dataclass
class Forms:
    """The fields of a header in its own unit, before they are rounded to float32.

    Args:
        sform: (3, 4).
        quaternion: b, c, d.
        offset: of the quaternion.
        pixdim: qfac and three sizes.
        codes: of sform and qform.
        unit: `xyzt_units`.
        words: what was done to a sound header.
        must_be_noted: whether the reader has to say something if it reads it.
    """

    sform: Affine
    quaternion: NDArray[np.float64]
    offset: NDArray[np.float64]
    pixdim: NDArray[np.float64]
    codes: tuple[int, int]
    unit: int
    words: list[str] = field(default_factory=list)
    must_be_noted: bool = False


def draw_forms(random: Random, shape: tuple[int, int, int]) -> Forms:
    """A header: mostly two forms of one grid, then perhaps one or two faults."""
    spacing = random.uniform(0.4, 4.0, 3)
    turn = Rotation.from_quat(random.normal(size=4)).as_matrix()
    if random.random() < 0.5:
        turn = np.eye(3)[random.permutation(3)] * random.choice([-1, 1], 3)
    affine = np.column_stack([turn * spacing, random.uniform(-200, 200, 3)])
    codes = ((1, 1), (1, 1), (1, 1), (2, 1), (1, 0), (0, 1), (0, 0), (4, 3))
    unit = int(random.choice([2, 2, 2, 2, 0, 1, 3, 7]))
    forms = _of(affine, codes[int(random.integers(len(codes)))], unit)
    for _ in range(int(random.choice([0, 1, 1, 2]))):
        fault = FAULTS[int(random.integers(len(FAULTS)))]
        forms.words.append(fault.__name__)
        fault(forms, random)
    forms.must_be_noted |= unit in (1, 3, 7) or forms.codes == (0, 0)
    scale = UNITS[unit]
    for numbers in (forms.sform, forms.offset, forms.pixdim[1:]):
        numbers /= scale
    return forms


def _of(affine: Affine, codes: tuple[int, int], unit: int) -> Forms:
    spacing = np.linalg.norm(affine[:, :3], axis=0)
    turn = affine[:, :3] / spacing
    qfac = np.sign(np.linalg.det(turn))
    b, c, d, a = Rotation.from_matrix(turn * [1, 1, qfac]).as_quat()
    quaternion = np.array([b, c, d]) * (-1 if a < 0 else 1)
    pixdim = np.array([qfac, *spacing])
    return Forms(affine.copy(), quaternion, affine[:, 3].copy(), pixdim, codes, unit)


def shifted(forms: Forms, random: Random) -> None:
    """The qform lies some millimetres away."""
    forms.offset += random.uniform(0.5, 50, 3)


def turned(forms: Forms, random: Random) -> None:
    """The sform is turned by a few degrees about the first voxel."""
    axis = np.eye(3)[int(random.integers(3))]
    more = Rotation.from_rotvec(axis * np.deg2rad(random.uniform(0.5, 3))).as_matrix()
    forms.sform[:, :3] = more @ forms.sform[:, :3]


def mirrored(forms: Forms, random: Random) -> None:
    """The sform says that one axis runs the other way."""
    forms.sform[:, int(random.integers(3))] *= -1


def permuted(forms: Forms, random: Random) -> None:
    """The sform has two rows exchanged."""
    first, second = random.choice(3, 2, replace=False)
    forms.sform[[first, second]] = forms.sform[[second, first]]


def scaled(forms: Forms, random: Random) -> None:
    """The sform has another voxel size."""
    forms.sform[:, int(random.integers(3))] *= random.choice([1.004, 1.03, 0.9, 1000.0, 1e-4])


def sheared(forms: Forms, random: Random) -> None:
    """The sform's axes are not at right angles."""
    first, second = random.choice(3, 2, replace=False)
    with np.errstate(all="ignore"):
        columns = forms.sform[:, :3] / np.linalg.norm(forms.sform[:, :3], axis=0)
    size = np.linalg.norm(forms.sform[:, first])
    forms.sform[:, first] += columns[:, second] * size * random.choice([0.003, 0.03, 0.5])


def singular(forms: Forms, random: Random) -> None:
    """The sform has an axis of no length, two equal axes, or no finite number."""
    column = int(random.integers(3))
    forms.sform[:, column] = (
        np.zeros(3),
        forms.sform[:, (column + 1) % 3],
        np.array([np.nan, 0, 1]),
        np.array([0, np.inf, 1]),
    )[int(random.integers(4))]


def wrong_sizes(forms: Forms, random: Random) -> None:
    """pixdim has a size that is none."""
    size = random.choice([0.0, -1.2, np.nan, np.inf, 1e-30, 1e6, 1e-3])
    forms.pixdim[1 + int(random.integers(3))] = size


def wrong_qfac(forms: Forms, random: Random) -> None:
    """qfac is neither 1 nor -1; 0 counts as 1."""
    forms.pixdim[0] = random.choice([0.0, 0.5, np.nan, 2.0])


def wrong_quaternion(forms: Forms, random: Random) -> None:
    """The quaternion is no rotation."""
    forms.quaternion[int(random.integers(3))] = random.choice([1.5, np.nan, -np.inf])


def far_away(forms: Forms, random: Random) -> None:
    """An offset beyond 10 m, or none."""
    if random.random() < 0.5:
        forms.sform[int(random.integers(3)), 3] = random.choice([1e5, -2e4, np.nan])
    else:
        forms.offset[int(random.integers(3))] = random.choice([1e5, -2e4, np.nan])


FAULTS = (
    shifted, turned, mirrored, permuted, scaled, sheared, singular, wrong_sizes, wrong_qfac,
    wrong_quaternion, far_away,
)  # fmt: skip


def file_of(forms: Forms, voxels: NDArray[np.int16]) -> bytes:
    """A NIfTI-1 of these fields."""

    def change(header: object) -> None:
        fields: dict[str, object] = {
            "pixdim": [*forms.pixdim, 0, 0, 0, 0],
            "sform_code": forms.codes[0],
            "qform_code": forms.codes[1],
            "xyzt_units": forms.unit,
        }
        fields |= {f"srow_{axis}": row for axis, row in zip("xyz", forms.sform, strict=True)}
        fields |= dict(zip(("quatern_b", "quatern_c", "quatern_d"), forms.quaternion, strict=True))
        fields |= {f"qoffset_{a}": n for a, n in zip("xyz", forms.offset, strict=True)}
        for name, value in fields.items():
            header[name] = value  # type: ignore[index]

    with np.errstate(over="ignore"):
        return nifti(voxels, change=change)


def expected_affine(forms: Forms, shape: tuple[int, int, int]) -> Affine | None:
    """The affine that the rule of `docs/reference.md` gives; None where it refuses."""
    scale = UNITS[forms.unit]
    with np.errstate(all="ignore"):
        s = _sound(forms.sform.astype("f4").astype(float) * scale) if forms.codes[0] else None
        q = _quaternion_affine(forms, scale) if forms.codes[1] else None
        if s is not None and q is not None and not _agree(s, q, shape):
            return None
        chosen = s if s is not None else q
        if chosen is None:
            sizes = forms.pixdim[1:] * scale
            if any(forms.codes) or not (np.isfinite(sizes) & (sizes > 0)).all():
                return None
            chosen = np.column_stack([np.diag(sizes), np.zeros(3)])
    spacing = np.linalg.norm(chosen[:, :3], axis=0)
    unit = chosen[:, :3] / spacing
    is_possible = (
        ((spacing >= 0.005) & (spacing <= 200)).all()
        and (np.abs(chosen[:, 3]) <= 1e4).all()
        and np.abs(unit.T @ unit - np.eye(3)).max() <= 0.01
    )
    return np.vstack([chosen, [0, 0, 0, 1]]) if is_possible else None


def _sound(rows: Affine) -> Affine | None:
    columns = rows[:, :3] / np.linalg.norm(rows[:, :3], axis=0)
    is_sound = np.isfinite(rows).all() and abs(np.linalg.det(columns)) >= 1e-3
    return rows if is_sound else None


def _quaternion_affine(forms: Forms, scale: float) -> Affine | None:
    b, c, d = forms.quaternion
    sizes, qfac = forms.pixdim[1:] * scale, forms.pixdim[0]
    numbers = np.array([b, c, d, *forms.offset, *sizes])
    if not np.isfinite(numbers).all() or qfac not in (-1, 0, 1) or b * b + c * c + d * d > 1.001:
        return None
    if not ((sizes >= 0.005) & (sizes <= 200)).all():
        return None
    a = np.sqrt(max(0.0, 1 - b * b - c * c - d * d))
    turn = Rotation.from_quat([b, c, d, a]).as_matrix() * [1, 1, -1 if qfac < 0 else 1]
    return np.column_stack([turn * sizes, forms.offset * scale])


def _agree(s: Affine, q: Affine, shape: tuple[int, int, int]) -> bool:
    """Whether two sound forms may stand beside each other; the sform is then taken."""
    ends = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    there = q[:, :3] @ ends + q[:, 3:]
    away = np.linalg.solve(s[:, :3], there - s[:, 3:]) - ends
    if np.linalg.norm(away, axis=0).max() <= 0.01:
        return True
    ratio = np.linalg.norm(s[:, :3], axis=0) / np.linalg.norm(q[:, :3], axis=0)
    same_side = np.linalg.det(s[:, :3]) * np.linalg.det(q[:, :3]) > 0
    same_order = _order(s) == _order(q)
    return bool(same_side and same_order and np.abs(ratio - 1).max() <= 0.01)


def _order(rows: Affine) -> list[tuple[int, bool]]:
    columns = rows[:, :3] / np.linalg.norm(rows[:, :3], axis=0)
    best = max(
        ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]),
        key=lambda axes: sum(abs(columns[row, axis]) for row, axis in enumerate(axes)),
    )
    return [(axis, bool(columns[row, axis] < 0)) for row, axis in enumerate(best)]
