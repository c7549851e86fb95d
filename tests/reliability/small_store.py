"""A store of a few kilobytes for proofs: two cases with labels and one that was refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mim3d.config.verbs import PreparationConfig, PrepareConfig
from mim3d.data.cohort import read_cohort
from mim3d.data.files import write_label, write_volume
from mim3d.data.prepare import prepare_store
from mim3d.data.volume import Volume
from mim3d.foundation.randomness import generator

SHAPE = (13, 11, 7)
AFFINE = np.diag([0.8, 1.2, 2.5, 1.0])


def make_store(folder: Path) -> Path:
    """Prepares three small cases, one of them damaged, into `folder/store`."""
    images, labels = folder / "source" / "images", folder / "source" / "labels"
    images.mkdir(parents=True)
    labels.mkdir()
    for number in range(3):
        random = generator(number, "small store")
        voxels = random.normal(100, 30, (1, *SHAPE)).astype(np.int16)
        like = Volume.from_array(voxels, AFFINE)
        write_volume(images / f"case_{number}.nii.gz", voxels, like=like)
        label = np.zeros(SHAPE, np.uint8)
        label[2:7, 3:8, 1:5] = 1 + number % 2
        write_label(labels / f"case_{number}.nii.gz", label, like)
    os.truncate(images / "case_2.nii.gz", 500)
    config = PrepareConfig(prepare=PreparationConfig(workers=0, crop_to_body=False))
    prepare_store(read_cohort(folder / "source"), folder / "store", config)
    return folder / "store"
