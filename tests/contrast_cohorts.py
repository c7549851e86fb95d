"""A cohort of several contrasts, one file each, and tables that name some of them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mim3d.data.files import write_label, write_volume
from mim3d.data.phantom import PhantomRule, make_volume
from mim3d.data.volume import Origin, Volume

CONTRASTS = ("T1", "T2", "FLAIR")
RULE = PhantomRule(shape=(22, 26, 14), spacing_mm=(1.0, 1.5, 3.0), channels=3, organs=2)


def write_contrasts(folder: Path, cases: int = 5) -> Path:
    """Writes `case_<i>_<contrast>.nii.gz` and `case_<i>_label.nii.gz`; the last case validates."""
    shape = RULE.shape
    affine = np.diag([*RULE.spacing_mm, 1.0])
    grid = Volume(
        np.zeros((1, *shape), np.uint8),
        affine,
        origin=Origin(shape, (0, 1, 2), (False, False, False), affine, shape),
    )
    for number in range(cases):
        voxels, labels = make_volume(0, number, RULE)
        for name, channel in zip(CONTRASTS, voxels, strict=True):
            write_volume(folder / f"case_{number}_{name}.nii.gz", channel[None], grid)
        write_label(folder / f"case_{number}_label.nii.gz", labels, grid)
    return folder


def table(
    folder: Path, contrasts: Sequence[str], *, cases: int = 5, called: Sequence[str] | None = None
) -> Path:
    """A CSV of the cases of a folder with some contrasts, under their names or others."""
    names = called or contrasts
    path = folder / f"{'_'.join(names)}.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", *(f"image_{name}" for name in names), "label", "list"])
        for number in range(cases):
            images = [f"case_{number}_{contrast}.nii.gz" for contrast in contrasts]
            part = "validation" if number == cases - 1 else "training"
            writer.writerow([f"case_{number}", *images, f"case_{number}_label.nii.gz", part])
    return path
