"""Small CT volumes of a body, networks that answer by intensity, and slow predictions of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor, nn

from mim3d.config.inference import InferenceConfig
from mim3d.data.classes import ClassTable
from mim3d.data.files import read_volume
from mim3d.data.prepare.volume import VolumeRule, prepare_volume
from mim3d.data.resample import resample_to
from mim3d.data.volume import Volume
from mim3d.inference.segmenter import Segmenter
from mim3d.inference.windows import plan_sweep, window_weights

WINDOW = (16, 16, 8)
CONFIG = InferenceConfig(window=WINDOW)
CLASSES = ClassTable.from_values([0, 2, 700], {0: "air", 2: "fat", 700: "bone"})
HU = VolumeRule(modalities=("ct",), window_hu=(-1000.0, 1000.0), body_margin_mm=3.0)


class Nearest(nn.Module):
    """The class whose centre is nearest to the voxel's intensity."""

    def __init__(self, centres: Sequence[float], sharpness: float = 1.0) -> None:
        super().__init__()
        self.centres = torch.tensor(centres)[:, None, None, None]
        self.sharpness = sharpness

    def forward(self, voxels: Tensor) -> Tensor:
        return -self.sharpness * (voxels[:, :1] - self.centres) ** 2


def volume_of(tmp_path: Path, voxels: np.ndarray, spacing: Sequence[float]) -> Volume:
    """A volume as it comes from a file stored in LPS order."""
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "scan.nii.gz")
    return read_volume(tmp_path / "scan.nii.gz")


def body(shape: tuple[int, int, int]) -> np.ndarray:
    """CT in HU: air, an off-centre ellipsoid of fat and within it a smaller one of bone."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side) for side in shape], indexing="ij"))
    centre = np.array([0.2, -0.15, 0.1])[:, None, None, None]
    away = np.sqrt((((grid - centre) / np.array([0.6, 0.5, 0.7])[:, None, None, None]) ** 2).sum(0))
    hu = np.where(away < 1, -100, -1000)
    return np.where(away < 0.4, 800, hu).astype(np.int16)


def noisy(shape: tuple[int, int, int]) -> np.ndarray:
    """The body with a texture, so that nothing in it is constant."""
    random = np.random.default_rng(5)
    hu = body(shape)
    return np.where(hu > -500, hu + random.integers(-200, 200, shape), hu).astype(np.int16)


def truth_of(volume: Volume) -> np.ndarray:
    return np.select([volume.voxels[0] > 400, volume.voxels[0] > -500], [700, 2], 0)


def segmenter(rule: VolumeRule | None = HU, **changes: object) -> Segmenter:
    # Normalised centres of air, fat and bone under the window of -1000 to 1000.
    known = Segmenter(Nearest([0.0, 0.45, 0.9], 100.0), WINDOW, CLASSES, rule=rule)
    return replace(known, **changes)


class Placed(nn.Module):
    """Outputs that depend on intensity, surroundings and place in the window, without ties."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.blur = nn.Conv3d(1, outputs, 3, padding=1)
        self.places = nn.Conv3d(3, outputs, 1)

    def forward(self, voxels: Tensor) -> Tensor:
        axes = [torch.linspace(-1, 1, side) ** 2 for side in voxels.shape[2:]]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
        # Bounded, so that float32 tells apart what 16 bits of HU make.
        return 3 * self.blur(nn.functional.softsign(voxels)) + self.places(places)


def slow_logits(model: Segmenter, volume: Volume, config: InferenceConfig) -> np.ndarray:
    """Mean logits of the whole volume on its own grid, `k x y z`, by a loop over all windows."""
    if model.rule is None:
        seen, affine = volume.voxels.astype(np.float32), volume.affine
    else:
        prepared = prepare_volume(volume, model.rule)
        seen, affine = prepared.normalised, prepared.affine
    sweep = plan_sweep(seen.shape[1:], config.window, config.overlap)
    padded = np.zeros((len(seen), *sweep.size), np.float32)
    padded[(slice(None), *sweep.inside)] = seen
    weight = window_weights(config.window, config.weights).numpy()
    total, mass = 0.0, np.zeros(sweep.size)
    for start in sweep.starts:
        box = (slice(None), *sweep.box(start))
        crop = torch.from_numpy(padded[box])[None]
        with torch.no_grad():
            found = [
                model.network(crop.flip(axes)).flip(axes)[0].numpy()
                for count in range(len(config.mirrored) + 1)
                for chosen in combinations(config.mirrored, count)
                for axes in [[2 + "xyz".index(axis) for axis in chosen]]
            ]
        if not isinstance(total, np.ndarray):
            total = np.zeros((len(found[0]), *sweep.size))
        total[box] += np.mean(found, axis=0) * weight
        mass[box[1:]] += weight
    mean = (total / mass)[(slice(None), *sweep.inside)]
    outside = [-np.inf] * len(mean)
    if len(mean) > 1 and model.regions is None:
        outside[0] = 0.0
    return resample_to(mean, affine, volume.affine, volume.shape, outside=outside)


def slow_labels(model: Segmenter, logits: np.ndarray) -> np.ndarray:
    if model.regions is not None:
        return model.regions.to_values(logits > 0)
    if len(logits) == 1:
        return CLASSES.to_value((logits[0] > 0).astype(np.uint8))
    return CLASSES.to_value(logits.argmax(axis=0))


def slow_probabilities(model: Segmenter, logits: np.ndarray) -> np.ndarray:
    if model.regions is not None:
        return 1 / (1 + np.exp(-logits))
    raised = np.exp(logits - logits.max(axis=0))
    return raised / raised.sum(axis=0)
