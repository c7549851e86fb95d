"""From files to batches: what feeds a training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.config.verbs import PreparationConfig, PrepareConfig
from mim3d.data.batch import BatchNeeds, CropBatch
from mim3d.data.feed import Feed, make_feed
from mim3d.data.files import read_volume
from mim3d.data.prepare import prepare_store
from mim3d.workflows.throughput import monai
from mim3d.workflows.throughput.race import require
from mim3d.workflows.throughput.stage import Scene, Stage
from mim3d.workflows.throughput.work import Work

MOVED_BYTES = 6
"""Of a voxel of a crop: int16 is read and float32 written."""
CHECKED = 3
"""Batches that are compared before anything is timed."""
RECIPE = AugmentationConfig(
    flip_axes=("x", "y", "z"), scale_intensity=0.1, shift_intensity=0.1, noise=0.05,
    affine_probability=0.3, rotation_degrees=(10.0, 10.0, 10.0), zoom=0.1,
)  # fmt: skip
"""Everything a recipe may ask for, affine included, in every third crop."""


def read_stage(scene: Scene) -> Iterator[Stage]:
    """A `.nii.gz` to voxels, its check value compared."""
    voxels = read_volume(scene.file).voxels
    theirs: Callable[[int], object] | None = None
    equality = "-"
    if scene.against_monai:
        load = monai.room("transforms").LoadImage(image_only=True)
        require(np.array_equal(load(scene.file).numpy(), voxels[0]), "volumes that were read")
        theirs, equality = lambda _: load(scene.file), "equal"
    yield Stage(
        "read", f"{_size(scene.scale.volume)} int16 from `.nii.gz`",
        ours=lambda _: read_volume(scene.file),
        work=Work(voxels.nbytes, "inflate"), theirs=theirs, equality=equality,
    )  # fmt: skip


def prepare_stage(scene: Scene) -> Iterator[Stage]:
    """A cohort of two files to a store: read, oriented, checked, normalised, packed, written."""
    rule = PrepareConfig(PreparationConfig(modality="ct", workers=0))

    def ours(number: int) -> None:
        prepare_store(scene.source, scene.folder / f"store-{number}", rule)

    cases = len(scene.store.cases)
    yield Stage(
        "prepare", f"{_size(scene.scale.volume)} int16, to a store, one process", ours,
        work=Work(2 * cases * math.prod(scene.scale.volume), "inflate"), of_a_call=cases,
    )  # fmt: skip


def crop_stage(scene: Scene) -> Iterator[Stage]:
    """Batches of normalised crops: each read from the store, or out of volumes in memory."""
    plain = AugmentationConfig()
    for kind in ("store", "resident"):
        data = replace(_data(scene), feed=kind)
        feed = _feed(scene, data, plain)
        theirs, equality = None, "-"
        if kind == "store" and scene.against_monai:
            theirs = _their_crops(scene, feed)
            equality = _compared(feed, theirs)
        yield _batch_stage(scene, "crop", f"from {_where(kind)}", feed, theirs, equality,
                           a_step=scene.scale.batch if kind == "store" else 0)  # fmt: skip


def augment_stage(scene: Scene) -> Iterator[Stage]:
    """Batches cut out of memory with every augmentation of a recipe."""
    feed = _feed(scene, replace(_data(scene), feed="resident"), RECIPE)
    yield _batch_stage(
        scene, "augment", "flips, intensity, noise, a third turned and zoomed", feed,
        None, "-", a_step=scene.scale.batch,
    )  # fmt: skip


def workers_stage(scene: Scene) -> Iterator[Stage]:
    """What the training process itself spends on batches that a worker has made."""
    feed = _feed(scene, replace(_data(scene), feed="resident", workers=1), AugmentationConfig())
    steps = feed.batches(0, 1_000_000)
    next(steps)
    count = scene.scale.batch
    yield Stage(
        "workers", "a crop taken over from a worker process", lambda _: next(steps),
        work=Work(4 * math.prod(scene.crop) * count, "copy"), calls=2, of_a_call=count,
    )  # fmt: skip
    steps.close()  # type: ignore[attr-defined]


def _batch_stage(
    scene: Scene,
    name: str,
    what: str,
    feed: Feed,
    theirs: Callable[[int], Tensor] | None,
    equality: str,
    *,
    a_step: int,
) -> Stage:
    count = scene.scale.batch

    def ours(number: int) -> CropBatch:
        return _crops(feed, number)

    ours(0)  # opens files, or takes volumes into memory
    return Stage(
        name, f"a crop of {_size(scene.crop)} {what}", ours,
        work=Work(MOVED_BYTES * math.prod(scene.crop) * count, "copy"),
        theirs=theirs, equality=equality, calls=4, of_a_call=count, a_step=a_step,
    )  # fmt: skip


def _their_crops(scene: Scene, feed: Feed) -> Callable[[int], Tensor]:
    """MONAI's reader, window and crop for the places that our feed draws.

    Each crop reads its file, as `Dataset` does.
    """
    transforms = monai.room("transforms")
    low, high = PreparationConfig().window_hu
    load = transforms.Compose([
        transforms.LoadImage(image_only=True, ensure_channel_first=True),
        transforms.ScaleIntensityRange(low, high, 0.0, 1.0, clip=True),
    ])  # fmt: skip
    files = {case: scene.source / "imagesTr" / f"{case}.nii.gz" for case in scene.store.cases}

    def batch(number: int) -> Tensor:
        crops = []
        for index in range(scene.scale.batch):
            plan = feed.plan.draw(number, index)
            first = np.array(plan.start)
            cut = transforms.SpatialCrop(roi_start=first, roi_end=first + plan.size)
            crops.append(cut(load(files[plan.case_id])).as_tensor())
        return torch.stack(crops)

    return batch


def _crops(feed: Feed, step: int) -> CropBatch:
    """The one micro-batch of a step, of one crop size."""
    ((crops,),) = (batch.parts for batch in next(feed.batches(step, step + 1))[1])
    return crops


def _compared(feed: Feed, theirs: Callable[[int], Tensor]) -> str:
    farthest = 0.0
    for number in range(CHECKED):
        ours = _crops(feed, number).voxels
        farthest = max(farthest, float((ours - theirs(number)).abs().max()))
    require(farthest < 1e-5, f"normalised crops, which differ by {farthest:.1e}")
    return f"within {farthest:.0e}" if farthest else "equal"


def _data(scene: Scene) -> DataConfig:
    return DataConfig(store=str(scene.store.path), crop_size=scene.crop)


def _feed(scene: Scene, data: DataConfig, augmentation: AugmentationConfig) -> Feed:
    store = scene.store
    return make_feed(
        store,
        store.cases,
        data=data,
        augmentation=augmentation,
        needs=BatchNeeds(),
        batch_size=scene.scale.batch,
        seed=0,
    )


def _where(kind: str) -> str:
    return "the store" if kind == "store" else "memory"


def _size(sides: tuple[int, ...] | NDArray[np.int64]) -> str:
    return " x ".join(map(str, sides))
