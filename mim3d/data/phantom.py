"""Synthetic cohorts: a body with organs and a tumour, for the demo, tests and dry runs of recipes.

Every subject has the same organs, each moved, scaled and bent by itself; a tumour lies in the first
organ. MR phantoms have a scanner's arbitrary scale, a bias field and Rician noise; CT phantoms are
in Hounsfield units. All follows from the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mim3d.data.files import write_label, write_volume
from mim3d.data.resample import apply_matrices, axis_matrix
from mim3d.data.volume import Origin, Volume
from mim3d.foundation.atomic import write_json
from mim3d.foundation.randomness import generator

Triple = tuple[int, int, int]
Spacing = tuple[float, float, float]
Field = NDArray[np.float32]
Place = NDArray[np.float64]

BODY_RADII = (0.82, 0.78, 1.1)
"""Of the half-sides of the volume; along z the body leaves the field of view."""
BEND = 0.07
"""Deviation of the displacement that bends everything, in half-sides."""
BEND_NODES = 4
"""Nodes an axis of the displacement field."""
TEXTURE_MM = 6.0
"""Grain of the texture."""


@dataclass(frozen=True)
class PhantomRule:
    """What a phantom looks like.

    Args:
        shape: voxels along x, y, z.
        spacing_mm: voxel size.
        channels: contrasts.
        organs: number of organs, each a class.
        tumour: whether one more class lies within the first organ.
        modality: `mr` or `ct`.
        noise: deviation of the noise, as a share of the body's contrast.
    """

    shape: Triple = (64, 56, 32)
    spacing_mm: Spacing = (1.5, 1.5, 3.0)
    channels: int = 1
    organs: int = 3
    tumour: bool = True
    modality: str = "mr"
    noise: float = 0.05

    @property
    def class_names(self) -> tuple[str, ...]:
        """Background first."""
        organs = tuple(f"organ {number}" for number in range(1, self.organs + 1))
        return ("background", *organs, *(("tumour",) if self.tumour else ()))


def make_volume(
    seed: int, subject: int, rule: PhantomRule
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """One subject of a cohort.

    Args:
        seed: names the cohort: where its organs lie and how bright they are.
        subject: which of its subjects.
        rule: what all of them look like.

    Returns:
        `c x y z` int16 and `x y z` uint8.
    """
    random = generator(seed, "phantom", subject)
    places = _bent_places(random, rule.shape)
    body = _ellipsoid(places, (0.0, 0.0, 0.0), _varied(random, BODY_RADII, 0.04))
    labels = np.zeros(rule.shape, np.uint8)
    centres, radii = _layout(seed, rule.organs)
    for number in range(rule.organs):
        centre = centres[number] + random.normal(0, 0.04, 3)
        own = _varied(random, radii[number], 0.12)
        labels[_ellipsoid(places, centre, own) & body] = number + 1
    if rule.tumour:
        # Off the organ's middle, by up to a third of its radius.
        centre = centres[0] + radii[0] * random.uniform(-0.35, 0.35, 3)
        own = radii[0] * random.uniform(0.4, 0.6, 3)
        tumour = _ellipsoid(places, centre, own) & (labels == 1)
        labels[tumour] = rule.organs + 1
    contrast = _contrasts(seed, rule)
    channels = [
        _intensities(random, body, labels, contrast[channel], rule)
        for channel in range(rule.channels)
    ]
    return np.stack(channels), labels


def make_cohort(
    folder: Path | str,
    seed: int = 0,
    *,
    training: int = 12,
    validation: int = 4,
    test: int = 0,
    unlabelled: int = 0,
    rule: PhantomRule | None = None,
    subjects: Sequence[str] | None = None,
) -> Path:
    """Writes a cohort in MSD form: `dataset.json`, NIfTI images and label maps.

    Images lie in `imagesTr`, `imagesVal` and `imagesTs`, label maps in the `labels` folders beside.

    Args:
        folder: where to; made if absent.
        seed: names the cohort.
        training: labelled cases to train on.
        validation: labelled cases that judge; with 0 there is no validation list.
        test: cases without labels.
        unlabelled: further training cases without labels.
        rule: what they look like.
        subjects: one for each training and validation case, else each case is a subject.

    Returns:
        The folder.
    """
    folder = Path(folder)
    rule = rule or PhantomRule()
    counts = (("training", "Tr", training, True), ("training", "Tr", unlabelled, False),
              ("validation", "Val", validation, True), ("test", "Ts", test, False))  # fmt: skip
    lists: dict[str, list[dict[str, str] | str]] = {"training": [], "validation": [], "test": []}
    grid = _grid(rule.shape, rule.spacing_mm)
    number = 0
    for part, suffix, count, labelled in counts:
        for _ in range(count):
            name = f"phantom_{number:03d}"
            voxels, labels = make_volume(seed, number, rule)
            image = f"images{suffix}/{name}.nii.gz"
            write_volume(folder / image, voxels, grid)
            entry = {"image": f"./{image}"}
            if labelled:
                write_label(folder / f"labels{suffix}/{name}.nii.gz", labels, grid)
                entry["label"] = f"./labels{suffix}/{name}.nii.gz"
            if subjects is not None and number < len(subjects):
                entry["subject"] = subjects[number]
            lists[part].append(entry["image"] if part == "test" else entry)
            number += 1
    modality = "CT" if rule.modality == "ct" else "MRI"
    description = {
        "name": f"phantom {seed}",
        "modality": {str(channel): modality for channel in range(rule.channels)},
        "labels": {str(value): name for value, name in enumerate(rule.class_names)},
        **lists,
    }
    write_json(folder / "dataset.json", description)
    return folder


def _grid(shape: Triple, spacing_mm: Spacing) -> Volume:
    """An empty volume of a file in RAS+ whose middle is the origin of millimetres."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    origin = Origin(shape, (0, 1, 2), (False, False, False), affine, shape)
    return Volume(np.zeros((1, *shape), np.uint8), affine, origin=origin)


def _layout(seed: int, organs: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres and radii of the organs of a cohort, in half-sides, kept apart."""
    random = generator(seed, "phantom layout")
    tries = random.uniform(-1, 1, (400, 3)) * (0.5, 0.45, 0.6)
    chosen = [tries[0]]
    for _ in range(1, organs):
        # The farthest of the tries from all that are there.
        apart = np.min([np.linalg.norm(tries - centre, axis=1) for centre in chosen], axis=0)
        chosen.append(tries[int(apart.argmax())])
    largest = min(0.42, 0.65 / organs ** (1 / 3))
    radii = largest * random.uniform(0.75, 1.0, (organs, 3))
    radii[0] = largest
    return np.array(chosen), radii


def _contrasts(seed: int, rule: PhantomRule) -> NDArray[np.float64]:
    """`c k`: brightness of the body and of each class, spread evenly, in an order a channel."""
    classes = len(rule.class_names)
    levels = np.linspace(0.4, 1.0, classes)
    orders = [generator(seed, "phantom contrast", c).permutation(levels)
              for c in range(rule.channels)]  # fmt: skip
    return np.array(orders)


def _intensities(
    random: np.random.Generator,
    body: NDArray[np.bool_],
    labels: NDArray[np.uint8],
    contrast: NDArray[np.float64],
    rule: PhantomRule,
) -> NDArray[np.int16]:
    nodes = [max(2, round(n * s / TEXTURE_MM)) + 1
             for n, s in zip(rule.shape, rule.spacing_mm, strict=True)]  # fmt: skip
    texture = _smooth(random, nodes, rule.shape)
    signal = contrast.astype(np.float32)[labels] * (1 + 0.08 * texture)
    if rule.modality == "ct":
        # Contrast 0.4 to 1 becomes -20 to 160 HU.
        hu = np.where(body, 300 * signal - 140, -1000)
        hu += 210 * rule.noise * random.standard_normal(rule.shape, np.float32)
        return np.asarray(np.rint(hu).clip(-1024, 3071), np.int16)
    signal = np.where(body, signal * np.exp(0.15 * _smooth(random, [3, 3, 3], rule.shape)), 0)
    real = signal + rule.noise * random.standard_normal(rule.shape, np.float32)
    imaginary = rule.noise * random.standard_normal(rule.shape, np.float32)
    gain = 800 * np.exp(random.uniform(-0.7, 0.7))
    return np.asarray(np.rint(gain * np.hypot(real, imaginary)), np.int16)


def _bent_places(random: np.random.Generator, shape: Triple) -> list[Field]:
    """Where each voxel lies in the body before it was bent: three fields, -1 to 1."""
    places = []
    for axis, size in enumerate(shape):
        straight = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1).reshape(
            [-1 if a == axis else 1 for a in range(3)]
        )
        places.append(straight + BEND * _smooth(random, [BEND_NODES] * 3, shape))
    return places


def _smooth(random: np.random.Generator, nodes: Sequence[int], shape: Triple) -> Field:
    """Noise of deviation 1 at the nodes of a coarse grid, cubic in between."""
    coarse = random.standard_normal((1, *nodes), np.float32)
    matrices = [
        axis_matrix(count, np.linspace(0, count - 1, size), "cubic")
        for count, size in zip(nodes, shape, strict=True)
    ]
    return np.asarray(apply_matrices(coarse, matrices)[0])


def _ellipsoid(
    places: Sequence[Field], centre: Sequence[float] | Place, radii: Sequence[float] | Place
) -> NDArray[np.bool_]:
    distance = sum(((p - float(c)) / float(r)) ** 2
                   for p, c, r in zip(places, centre, radii, strict=True))  # fmt: skip
    return np.asarray(distance <= 1)


def _varied(random: np.random.Generator, radii: Sequence[float] | Place, share: float) -> Place:
    return np.asarray(radii, np.float64) * np.exp(random.normal(0, share, 3))
