"""Invariant 5, the part of prediction: a prediction has the shape and affine of its input file.

Tried with these breaks, each of which fails here: axes not turned back before writing, flips undone
in the wrong order, the affine of the RAS+ voxels written in place of the file's own.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mim3d.config.inference import InferenceConfig
from mim3d.data.files import read_label, read_volume, write_label
from mim3d.inference.predict import predict_volume

SIGNS = itertools.product((1, -1), repeat=3)
ORDERS = list(itertools.product(itertools.permutations(range(3)), SIGNS))
SPACING = np.array([0.8, 1.2, 2.5])
SHAPE = (11, 13, 7)


class Levels(nn.Module):
    """Three classes by intensity, and a fourth in the corner of small x, y, z of each window."""

    def forward(self, voxels: Tensor) -> Tensor:
        centres = torch.tensor([0.0, 100.0, 200.0])[:, None, None, None]
        logits = -((voxels - centres) ** 2)
        corner = torch.full_like(logits[:, :1], -1e6)
        corner[:, :, :3, :2, :1] = 1
        return torch.cat([logits, corner], dim=1)


def scan() -> np.ndarray:
    """A volume without any symmetry under flips or turns, `x y z` in RAS+."""
    random = np.random.default_rng(7)
    return random.choice([0, 100, 200], SHAPE, p=[0.6, 0.3, 0.1]).astype(np.int16)


def turned(array: np.ndarray, order: tuple, oblique: bool) -> nib.Nifti1Image:
    """The same scan as a file whose axes are permuted and flipped, with the affine that says so."""
    axes, signs = order
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = (-31.0, 12.5, 7.0)
    if oblique:
        c, s = np.cos(0.2), np.sin(0.2)
        turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        affine[:3] = turn @ affine[:3]
    ornt = np.stack([axes, signs], axis=1)
    stored = nib.orientations.apply_orientation(array, ornt)
    affine = affine @ nib.orientations.inv_ornt_aff(ornt, array.shape)
    return nib.Nifti1Image(stored, affine)


@pytest.mark.parametrize("oblique", [False, True], ids=["straight", "oblique"])
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "".join(map(str, order[0] + order[1])))
def test_prediction_has_grid_and_voxels_of_its_file_in_all_storage_orders(
    order: tuple, oblique: bool, tmp_path: Path
) -> None:
    image = turned(scan(), order, oblique)
    nib.save(image, tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")

    config = InferenceConfig(window=(8, 8, 8), overlap=0.25)
    labels = predict_volume(Levels(), volume, config)
    write_label(tmp_path / "labels.nii.gz", labels.voxels[0], volume)

    written = nib.load(tmp_path / "labels.nii.gz")
    assert written.shape == image.shape
    assert np.allclose(written.affine, image.affine, atol=1e-5)
    assert written.get_data_dtype() == np.uint8
    stored = np.asarray(image.dataobj)
    found = np.asarray(written.dataobj)
    assert np.array_equal(np.where(found == 3, 0, found * 100), np.where(found == 3, 0, stored))
    # What depends on the window's own axes lies at the same place of RAS+ in all orders.
    again = read_label(tmp_path / "labels.nii.gz")
    assert np.array_equal(again.voxels, labels.voxels)
    assert (labels.voxels[0, :3, :2, 0] == 3).all()
    assert np.array_equal(again.affine, volume.affine)


def test_all_storage_orders_give_the_same_labels_in_ras(tmp_path: Path) -> None:
    results = []
    for order in ORDERS:
        nib.save(turned(scan(), order, False), tmp_path / "scan.nii")
        volume = read_volume(tmp_path / "scan.nii")
        results.append(predict_volume(Levels(), volume, InferenceConfig(window=(8, 8, 8))).voxels)

    assert len({result.tobytes() for result in map(np.ascontiguousarray, results)}) == 1
