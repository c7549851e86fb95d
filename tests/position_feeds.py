"""Feeds of cases whose voxels tell their positions, and what their steps hold."""

from __future__ import annotations

from dataclasses import replace

import torch

from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.data.batch import BatchNeeds, CropBatch
from mim3d.data.feed import Feed, make_feed

SIZE = (11, 13, 7)
# the last is smaller than a crop along x and z
SHAPES = [(31, 23, 17), (25, 29, 12), (18, 20, 30), (9, 26, 5)]
GEOMETRY = AugmentationConfig(
    flip_axes=("x", "y", "z"),
    affine_probability=0.5,
    rotation_degrees=(8, 8, 15),
    zoom=0.1,
    stretch=0.05,
)
EVERYTHING = replace(
    GEOMETRY, scale_intensity=0.2, shift_intensity=0.1, gamma=0.3, noise=0.1, noise_probability=0.5
)


def feed_of(store, augmentation=EVERYTHING, needs=None, batch_size=4, seed=0, **data) -> Feed:
    config = DataConfig(**{"crop_size": SIZE, **data})
    needs = needs or BatchNeeds(labels=True)
    return make_feed(
        store,
        store.cases,
        data=config,
        augmentation=augmentation,
        needs=needs,
        batch_size=batch_size,
        seed=seed,
    )


def steps_of(feed: Feed, stop: int, **split) -> list[tuple[int, list[CropBatch]]]:
    return list(feed.batches(0, stop, **split))


def crops_of(batches: list[CropBatch]) -> dict[tuple[int, int], list[object]]:
    """Everything a batch says of each crop, by its id and view."""
    found: dict[tuple[int, int], list[object]] = {}
    for batch in batches:
        for row, crop_id in enumerate(batch.crop_ids.tolist()):
            view = sum(key[0] == crop_id for key in found)
            valid = torch.ones(SIZE, dtype=torch.bool) if batch.valid is None else batch.valid[row]
            content = (batch.voxels, batch.affine, batch.labels, batch.air)
            tensors = [None if t is None else t[row].numpy().tobytes() for t in content]
            found[crop_id, view] = [batch.case_ids[row], valid.numpy().tobytes(), *tensors]
    return found
