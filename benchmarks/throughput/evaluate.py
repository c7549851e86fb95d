"""Dice, HD95, NSD and largest components of 13 organs, against MONAI's whole-volume calls.

OMP_NUM_THREADS=1 python benchmarks/throughput/evaluate.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from phantoms import ORGANS, Spacing, organs
from scipy import ndimage
from script import run
from torch import Tensor

from mim3d.evaluation.cases import score_case
from mim3d.evaluation.overlap import Structure, dice, index_maps, meetings, sizes
from mim3d.inference.components import largest_components
from mim3d.workflows.throughput import monai
from mim3d.workflows.throughput.inputs import Triple
from mim3d.workflows.throughput.race import SHIPPED, Contestant, Job, require

SIZE: Triple = (512, 512, 100)
SPACING_MM: Spacing = (0.8, 0.8, 3.0)
TOLERANCE_MM = 2.0
STRUCTURES = [Structure(f"organ {value}", (value,)) for value in range(1, ORGANS + 1)]
CLOSE = 1e-5
"""Largest difference of a metric, in its unit."""


def jobs(device: torch.device) -> Iterator[Job]:
    """On the CPU whatever the device; label maps in memory as files have them, x densest."""
    reference, prediction = (
        np.asfortranarray(organs(SIZE, moved=moved)) for moved in (False, True)
    )
    what = f"{ORGANS} organs, {' x '.join(map(str, SIZE))}"
    yield Job("evaluate", f"Dice, {what}", overlap(reference, prediction), is_warm=True)
    yield Job("evaluate", f"HD95 and NSD, {what}", surfaces(reference, prediction), is_warm=True)
    yield Job("clean-up", f"largest components, {what}", components(prediction), is_warm=True)


def overlap(reference: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> list[Contestant]:
    """MONAI's Dice from label maps, which it needs one-hot."""

    def ours(_: int) -> list[float]:
        maps = index_maps(reference, prediction)
        table = meetings(maps)
        return [dice(*sizes(table, maps.indices(structure))) for structure in STRUCTURES]

    others, equality = [], monai.ABSENT
    if monai.has_monai():
        compute = monai.room("metrics").compute_dice

        def theirs(_: int) -> Tensor:
            found: Tensor = compute(
                one_hot(prediction), one_hot(reference), include_background=False
            )
            return found[0]

        equality = close(torch.tensor(ours(0)), theirs(0), "Dice")
        others = [Contestant(f"{SHIPPED}: `one_hot`, `compute_dice`", theirs, "reference")]
    return [*others, Contestant("mim3d: one table of counts", ours, equality)]


def surfaces(reference: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> list[Contestant]:
    """MONAI's two calls on ready one-hot maps; ours with Dice, which it counts first."""

    def ours(_: int) -> Tensor:
        scores = score_case(
            reference, prediction, SPACING_MM, STRUCTURES,
            case_id="case", nsd_tolerance_mm=TOLERANCE_MM,
        )  # fmt: skip
        return torch.tensor([[score.hd95_mm, score.nsd] for score in scores])

    others, equality = [], monai.ABSENT
    if monai.has_monai():
        metrics = monai.room("metrics")
        maps = one_hot(prediction).byte(), one_hot(reference).byte()

        def theirs(_: int) -> Tensor:
            far = metrics.compute_hausdorff_distance(
                *maps, include_background=False, percentile=95, spacing=SPACING_MM
            )
            near = metrics.compute_surface_dice(
                *maps, [TOLERANCE_MM] * ORGANS, include_background=False, spacing=SPACING_MM
            )
            return torch.stack([far[0], near[0]], dim=1)

        equality = close(ours(0), theirs(0), "HD95 and NSD")
        name = "`compute_hausdorff_distance`, `compute_surface_dice`"
        others = [Contestant(f"{SHIPPED}: {name}", theirs, "reference")]
    return [*others, Contestant("mim3d: `score_case`, Dice included", ours, equality)]


def components(prediction: NDArray[np.uint8]) -> list[Contestant]:
    """MONAI's transform needs scikit-image; its steps by SciPy are as much work."""

    def whole(_: int) -> NDArray[np.uint8]:
        cleaned = np.zeros_like(prediction)
        for value in range(1, ORGANS + 1):
            pieces, _count = ndimage.label(prediction == value, structure=np.ones((3, 3, 3)))
            counts = np.bincount(pieces.ravel(order="K"))
            cleaned[pieces == 1 + counts[1:].argmax()] = value
        return cleaned

    def ours(_: int) -> NDArray[np.uint8]:
        return largest_components(prediction)

    require(np.array_equal(ours(0), whole(0)), "components")
    return [
        Contestant(f"{SHIPPED}: its steps by SciPy, each label in the volume", whole, "reference"),
        Contestant("mim3d: `largest_components`", ours, "all voxels"),
    ]


def one_hot(labels: NDArray[np.uint8]) -> Tensor:
    """MONAI's `b k x y z`, float32, from a label map."""
    made: Any = monai.room("networks").one_hot
    found: Tensor = made(torch.from_numpy(labels)[None, None], ORGANS + 1)
    return found


def close(found: Tensor, expected: Tensor, what: str) -> str:
    """Compares metrics; the largest difference for the table."""
    apart = float((found.double() - expected.double()).abs().max())
    require(apart < CLOSE, f"{what}: {apart:.0e}")
    return f"within {apart:.0e}"


if __name__ == "__main__":
    run(__doc__, jobs)
