"""A crop: where it lies in its case, what it holds, and what it can be cut from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mim3d.config.data import Triple


class OpenCase(Protocol):
    """The face of a case that crops are cut from: `StoreCase`, or one held in memory."""

    @property
    def case_id(self) -> str:
        """The id it has in its store."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Channels and voxels along x, y, z."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along x, y, z."""

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel to millimetres, `4 4`."""

    def read(
        self, start: Sequence[int], size: Sequence[int], *, labels: bool
    ) -> tuple[NDArray[np.int16], NDArray[np.uint8] | None]:
        """Stored voxels `c x y z` and class indices `x y z` of a box inside the volume."""

    def normalise(
        self, stored: NDArray[np.int16], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Stored voxels `c x y z` in normalised units, by the whole volume's rule; into `out`."""

    @property
    def air(self) -> NDArray[np.float32] | None:
        """Normalised intensity below which a voxel is air, one a channel; None where unknown."""

    def classes_present(self) -> tuple[int, ...]:
        """Classes that the case has voxels of, without the background."""

    def label_voxels(self, index: int) -> NDArray[np.int64]:
        """Some voxels of a class, `n 3`."""

    def body_voxels(self) -> NDArray[np.int64]:
        """Some voxels of the body, `n 3`."""


@dataclass(frozen=True)
class CropPlan:
    """One crop of the sampling plan.

    Args:
        case_id: the case it is cut from.
        start: first voxel of the crop in the volume; outside of it where there is padding.
        size: voxels along x, y, z.
        centre_class: index of the class it was centred on, or None.
    """

    case_id: str
    start: Triple
    size: Triple
    centre_class: int | None = None


@dataclass(frozen=True)
class Crop:
    """One crop, on the CPU.

    Args:
        voxels: `c x y z`, float32, normalised; 0 at padding.
        affine: `4 4`, float64, crop voxel to millimetres of its case.
        labels: `x y z`, uint8 class indices, `IGNORE_INDEX` at padding; or None.
        valid: `x y z`, False at padding; None where there is no padding.
        air: `c`, float32, normalised intensity below which a voxel is air; None where unknown.
    """

    voxels: Tensor
    affine: NDArray[np.float64]
    labels: Tensor | None = None
    valid: Tensor | None = None
    air: Tensor | None = None
