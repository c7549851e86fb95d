"""Crops and resampling the way nnU-Net does them, where `nnunetv2` is installed.

    OMP_NUM_THREADS=1 python benchmarks/throughput/nnunet.py

nnU-Net keeps a case as normalised float32 in two blosc2 files, image and labels, whose chunks it
fits to the patch, and opens them for every crop; we keep int16 in one HDF5 file. Both read image
and labels. For resampling it calls scikit-image, on a grid and a boundary of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from script import run

from mim3d.config.verbs import PreparationConfig, PrepareConfig
from mim3d.data.files import write_label, write_volume
from mim3d.data.prepare import prepare_store
from mim3d.data.resample import resample, resampled_shape
from mim3d.data.sources import CaseSource
from mim3d.data.store import open_store
from mim3d.data.volume import Volume
from mim3d.foundation.atomic import write_json
from mim3d.foundation.randomness import generator
from mim3d.workflows.throughput.inputs import CLASSES, SIDE, Triple, synthetic
from mim3d.workflows.throughput.race import Contestant, Job, require

OTHER = "nnU-Net"
VOLUME: Triple = (256, 256, 160)
CROP: Triple = (SIDE, SIDE, SIDE)
SPACING = (0.8, 0.8, 1.5)
MANY = 50
"""Crops between two looks at the clock."""
RESAMPLED: Triple = (256, 256, 100)
NEW_SPACING = (1.5, 1.5, 1.5)
OLD_SPACING = (0.8, 0.8, 3.0)

Crop = tuple[NDArray[Any], NDArray[Any]]


def jobs(device: torch.device) -> Iterator[Job]:
    """A crop of image and labels; a volume at another spacing."""
    if importlib.util.find_spec("nnunetv2") is None:
        raise SystemExit("nnunetv2 is not installed: there is nobody to race against")
    with tempfile.TemporaryDirectory() as folder:
        yield crops(Path(folder))
    yield resampling()


def crops(folder: Path) -> Job:
    """96³ voxels of image and labels, float32 and normalised, from a warm page cache."""
    store = open_store(prepared(folder))
    case = store.open(store.cases[0])
    source = CaseSource(case, (None,))
    _, labels = case.read((0, 0, 0), VOLUME)
    assert labels is not None
    normalised = case.read_normalised((0, 0, 0), VOLUME)

    room: Any = importlib.import_module("nnunetv2.training.dataloading.nnunet_dataset")
    kind = room.nnUNetDatasetBlosc2
    theirs = folder / "theirs"
    theirs.mkdir()
    blocks, chunks = room.comp_blosc2_params(normalised.shape, CROP, normalised.itemsize)
    kind.save_case(
        normalised, labels[None].astype(np.int8), {}, str(theirs / "case"), chunks, blocks,
        chunks, blocks,
    )  # fmt: skip
    dataset = kind(str(theirs))

    def read(number: int) -> Crop:
        image, label_map, *_ = dataset.load_case("case")
        box = slices(number)
        return image[(slice(None), *box)], label_map[(slice(None), *box)]

    def cut(number: int) -> Crop:
        first = [side.start for side in slices(number)]
        stored, label_map = source.read(first, CROP, labels=True)
        assert label_map is not None
        return source.normalise(stored), label_map[None]

    for number in range(3):
        pairs = zip(read(number), cut(number), strict=True)
        require(all(np.array_equal(one, other) for one, other in pairs), f"crop {number}")
    size = " x ".join(map(str, VOLUME))
    return Job(
        "crops",
        f"image and labels, {SIDE}³ of {size}",
        [
            Contestant(f"{OTHER} as shipped: blosc2, float32", read, "reference", MANY),
            Contestant("mim3d: from the store", cut, "bit for bit", MANY),
        ],
        other=OTHER,
    )


def prepared(folder: Path) -> Path:
    """A store of one labelled case."""
    source = folder / "source"
    voxels = (400 * synthetic(VOLUME, 0)).round().numpy().astype(np.int16)
    volume = Volume.from_array(voxels[None], np.diag([*SPACING, 1.0]))
    x, y, z = np.meshgrid(*(np.arange(side) // 24 for side in VOLUME), indexing="ij")
    write_volume(source / "imagesTr" / "case.nii.gz", voxels[None], volume)
    write_label(
        source / "labelsTr" / "case.nii.gz",
        ((x + 2 * y + 3 * z) % CLASSES).astype(np.uint8),
        volume,
    )
    write_json(
        source / "dataset.json",
        {
            "name": "synthetic",
            "modality": {"0": "CT"},
            "labels": {str(value): f"class {value}" for value in range(CLASSES)},
            "training": [{"image": "imagesTr/case.nii.gz", "label": "labelsTr/case.nii.gz"}],
            "test": [],
        },
    )
    settings = PreparationConfig(crop_to_body=False, workers=0)
    prepare_store(source, folder / "store", PrepareConfig(settings))
    return folder / "store"


def slices(number: int) -> tuple[slice, slice, slice]:
    """A crop anywhere in the volume; the same for both sides."""
    draw = generator("crop", number)
    x, y, z = (int(draw.integers(0, side - SIDE + 1)) for side in VOLUME)
    return slice(x, x + SIDE), slice(y, y + SIDE), slice(z, z + SIDE)


def resampling() -> Job:
    """A float32 volume to 1.5 mm, cubic."""
    room: Any = importlib.import_module("nnunetv2.preprocessing.resampling.default_resampling")
    voxels = synthetic(RESAMPLED, 0).numpy()[None]
    shape = resampled_shape(RESAMPLED, OLD_SPACING, NEW_SPACING)

    def theirs(_: int) -> NDArray[Any]:
        found: NDArray[Any] = room.resample_data_or_seg_to_shape(
            voxels, shape, OLD_SPACING, NEW_SPACING, is_seg=False, order=3, order_z=0,
            force_separate_z=False,
        )  # fmt: skip
        return found

    def ours(_: int) -> NDArray[Any]:
        return resample(voxels, OLD_SPACING, NEW_SPACING, "cubic")

    inner = tuple(slice(8, side - 8) for side in shape)
    apart = np.abs(theirs(0)[0][inner] - ours(0)[0][inner]).max() / np.ptp(voxels)
    sizes = [" x ".join(map(str, one)) for one in (RESAMPLED, shape)]
    return Job(
        "resample",
        f"cubic, {sizes[0]} float32 to {sizes[1]}",
        [
            Contestant(f"{OTHER} as shipped: scikit-image", theirs, "reference"),
            Contestant("mim3d", ours, f"own grid: {apart:.0e} of the range in the middle"),
        ],
        other=OTHER,
    )


if __name__ == "__main__":
    run(__doc__, jobs)
