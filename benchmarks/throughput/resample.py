"""256 x 256 x 100 voxels of 0.8 x 0.8 x 3.0 mm to 1.5 mm, against MONAI's `Spacing` and SciPy.

OMP_NUM_THREADS=1 python benchmarks/throughput/resample.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from phantoms import ct
from scipy import ndimage
from script import run

from mim3d.data import resample as ours
from mim3d.workflows.throughput import monai
from mim3d.workflows.throughput.inputs import Triple
from mim3d.workflows.throughput.race import SHIPPED, TUNED, Contestant, Job, require

SIZE: Triple = (256, 256, 100)
OLD_MM = (0.8, 0.8, 3.0)
NEW_MM = (1.5, 1.5, 1.5)
ORDERS: dict[ours.Order, tuple[int, dict[str, Any]]] = {
    "linear": (1, {"mode": "bilinear", "align_corners": True}),
    # With align_corners, MONAI's splines take another grid than its linear interpolation.
    "cubic": (3, {"mode": 3, "padding_mode": "mirror", "align_corners": False}),
}
TOLERANCE = 1e-6
"""Of the range of the voxels."""


def jobs(device: torch.device) -> Iterator[Job]:
    """Linear and cubic, on the CPU whatever the device."""
    voxels = ct(SIZE)
    for order, (degree, settings) in ORDERS.items():
        scipy = by_scipy(voxels.astype(np.float32), degree)
        found, expected = ours.resample(voxels[None], OLD_MM, NEW_MM, order)[0], scipy(0)
        apart = float(np.abs(found - expected).max() / np.ptp(expected))
        require(apart < TOLERANCE, f"{order}: {apart:.0e} of the range from SciPy")

        def fresh(_: int, order: ours.Order = order) -> NDArray[np.float32]:
            ours.forget_matrices()
            return ours.resample(voxels[None], OLD_MM, NEW_MM, order)

        def kept(_: int, order: ours.Order = order) -> NDArray[np.float32]:
            return ours.resample(voxels[None], OLD_MM, NEW_MM, order)

        others = [Contestant(f"{TUNED}: SciPy's `affine_transform` alone", scipy, "reference")]
        if monai.has_monai():
            theirs = Contestant(f"{SHIPPED}: `Spacing`", by_monai(voxels, settings), "own grid")
            others = [theirs, *others]
        equality = f"{apart:.0e} of the range from SciPy"
        yield Job(
            "resample",
            f"{order}, {' x '.join(map(str, SIZE))} int16 to {' x '.join(map(str, found.shape))}",
            [
                *others,
                Contestant("mim3d: matrices made anew", fresh, equality),
                Contestant("mim3d: matrices kept", kept, equality),
            ],
        )


def by_scipy(voxels: NDArray[np.float32], degree: int) -> Callable[[int], NDArray[np.float32]]:
    """SciPy's general routine on our grid, whose centre is the old one's."""
    shape = ours.resampled_shape(SIZE, OLD_MM, NEW_MM)
    step = np.array(NEW_MM) / OLD_MM
    first = (np.array(SIZE) - 1) / 2 - step * (np.array(shape) - 1) / 2

    def call(_: int) -> NDArray[np.float32]:
        found: NDArray[np.float32] = ndimage.affine_transform(
            voxels, step, first, output_shape=shape, order=degree, mode="mirror"
        )
        return found

    return call


def by_monai(voxels: NDArray[np.int16], settings: dict[str, Any]) -> Callable[[int], Any]:
    """`Spacing` of a float32 `MetaTensor`, as `LoadImage` gives it."""
    spacing = monai.room("transforms").Spacing(NEW_MM, **settings)
    affine = torch.diag(torch.tensor([*OLD_MM, 1.0], dtype=torch.float64))
    volume = monai.room("data").MetaTensor(torch.from_numpy(voxels[None]).float(), affine=affine)
    return lambda _: spacing(volume)


if __name__ == "__main__":
    run(__doc__, jobs)
