"""A volume in memory: voxels in RAS+, where they lie in mm, and the way back to the file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim3d.foundation.errors import ShapeError, check_shape


@dataclass(frozen=True)
class Note:
    """Something odd about a file that was settled by a rule.

    Attributes:
        code: a short slug for tables, for example `forms-differ`.
        text: one sentence for a person, without a full stop.
    """

    code: str
    text: str


@dataclass(frozen=True)
class NiftiFields:
    """The geometry fields of a NIfTI header, byte for byte, so that they can be written again.

    Attributes:
        version: 1 or 2.
        byte_order: `<` or `>`, as `struct` has them.
        pixdim: qfac and the three voxel sizes.
        units: `xyzt_units`.
        forms: both codes, quaternion, its offset, and the three rows of the sform.
    """

    version: int
    byte_order: str
    pixdim: bytes
    units: bytes
    forms: bytes


@dataclass(frozen=True, eq=False)
class Origin:
    """The exact way back from RAS+ to the grid of the file.

    Attributes:
        file_shape: voxels along the three axes of the file.
        axes: for x, y, z of RAS+, the axis of the file it runs along.
        flips: for x, y, z of RAS+, whether it runs against that axis.
        affine: (4, 4) voxel of the file to millimetres, RAS+.
        dims: the sizes as the header has them, channels and ones included.
        has_orientation: False where the file does not say how its axes lie in the body.
        nifti: the header's own geometry fields; None for other formats.
    """

    file_shape: tuple[int, int, int]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    affine: NDArray[np.float64]
    dims: tuple[int, ...]
    has_orientation: bool = True
    nifti: NiftiFields | None = None


@dataclass(frozen=True, eq=False)
class Volume:
    """One image of one or more channels on one grid.

    Attributes:
        voxels: `c x y z`, x to the Right, y to the Anterior, z to the Superior. Memory may be in
            the file's order (x fastest); no stride is negative.
        affine: (4, 4) float64, voxel centre to millimetres, RAS+.
        notes: what was odd about the file.
        origin: the way back to the file's own grid.
        unusable: `c x y z`, bool: voxels that were no usable numbers and hold a replacement, which
            statistics leave out; None where every one was.
    """

    voxels: NDArray[Any]
    affine: NDArray[np.float64]
    notes: tuple[Note, ...] = ()
    origin: Origin = field(kw_only=True)
    unusable: NDArray[np.bool_] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_shape(self.voxels, "c x y z", "Volume")

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along x, y, z in millimetres."""
        return spacing_of(self.affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        _, x, y, z = self.voxels.shape
        return (x, y, z)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.voxels.shape[0])

    @classmethod
    def from_array(cls, voxels: NDArray[Any], affine: NDArray[np.float64]) -> Volume:
        """A volume that comes from no file; what is written of it lies on this very grid.

        Args:
            voxels: `c x y z`, x to the Right, y to the Anterior, z to the Superior.
            affine: (4, 4), voxel to millimetres, RAS+.
        """
        x, y, z = voxels.shape[1:]
        affine = np.asarray(affine, np.float64)
        origin = Origin((x, y, z), (0, 1, 2), (False, False, False), affine, (x, y, z))
        return cls(voxels, affine, origin=origin)

    def with_voxels(self, voxels: NDArray[Any]) -> Volume:
        """The same grid with other voxels, `c x y z` or `x y z`.

        Raises:
            ShapeError: x y z are not those of this volume.
        """
        if voxels.ndim == 3:
            voxels = voxels[None]
        if voxels.shape[1:] != self.shape:
            raise ShapeError(f"Volume of {self.shape} cannot hold voxels of {voxels.shape}")
        return replace(self, voxels=voxels, unusable=None)

    def measurable(self) -> NDArray[Any]:
        """The voxels as statistics are taken of them: NaN where there was no usable number."""
        if self.unusable is None:
            return self.voxels
        voxels = self.voxels.astype(np.float32)
        voxels[self.unusable] = np.nan
        return voxels


def spacing_of(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Lengths of the three columns of an affine, in millimetres."""
    x, y, z = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)).tolist()
    return (x, y, z)


def to_file_order(array: NDArray[Any], origin: Origin) -> NDArray[Any]:
    """Turns `x y z` or `c x y z` in RAS+ into the order of the file's axes; a view.

    Raises:
        ShapeError: the array does not have the volume's shape.
    """
    expected = tuple(origin.file_shape[axis] for axis in origin.axes)
    if array.ndim not in (3, 4) or array.shape[-3:] != expected:
        raise ShapeError(f"the way back expects {expected} voxels, got {array.shape}")
    x, y, z = (_step(flip) for flip in origin.flips)
    flipped = array[..., x, y, z]
    back = tuple(origin.axes.index(axis) for axis in range(3))
    return _transpose_space(flipped, back)


def from_file_order(array: NDArray[Any], origin: Origin) -> NDArray[Any]:
    """Turns an array in the order of the file's axes into RAS+; a view, channels first or none.

    Raises:
        ShapeError: the array does not have the file's shape.
    """
    if array.ndim not in (3, 4) or array.shape[-3:] != origin.file_shape:
        raise ShapeError(f"the file has {origin.file_shape} voxels, got {array.shape}")
    turned = _transpose_space(array, origin.axes)
    x, y, z = (_step(flip) for flip in origin.flips)
    return turned[..., x, y, z]


def _step(flip: bool) -> slice:
    return slice(None, None, -1) if flip else slice(None)


def _transpose_space(array: NDArray[Any], order: tuple[int, ...]) -> NDArray[Any]:
    if array.ndim == 3:
        return array.transpose(order)
    return array.transpose(0, *(axis + 1 for axis in order))
