"""One pass over a batch gives what crops by themselves give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from positions import make_store

from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.data import batched
from mim3d.data.batch import BatchNeeds, CropBatch
from mim3d.data.classes import IGNORE_INDEX
from mim3d.data.feed import Feed, make_feed
from mim3d.data.numbers import draw_numbers

SIZE = (11, 13, 11)
# the last two are smaller than a crop along some axes
SHAPES = [(31, 23, 17), (25, 29, 12), (18, 20, 30), (9, 26, 5), (40, 12, 19)]
NOTHING = AugmentationConfig()
WHOLE_VOXELS = AugmentationConfig(
    flip_axes=("x", "y", "z"), turn_plane=("x", "z"), turn_probability=0.7
)
WARPED = AugmentationConfig(
    affine_probability=0.7, rotation_degrees=(8, 12, 25), zoom=0.15, stretch=0.05
)
INTENSITY = AugmentationConfig(
    scale_intensity=0.2,
    shift_intensity=0.1,
    gamma=0.3,
    noise=0.1,
    noise_probability=0.6,
    blur=1.3,
    blur_probability=0.6,
)
RESCALED = AugmentationConfig(rescale=(0.5, 2.5), rescale_axes="each")
RESCALED_AND_TURNED = replace(WARPED, rescale=(0.6, 3.0), flip_axes=("x", "z"))
THICK_SLICES = AugmentationConfig(rescale=(1.0, 4.0), rescale_axes="z")
EVERYTHING = replace(
    INTENSITY,
    flip_axes=("x", "y", "z"),
    turn_plane=("z", "x"),
    turn_probability=0.7,
    affine_probability=0.5,
    rotation_degrees=(8, 12, 25),
    zoom=0.15,
    stretch=0.05,
    swap_on_flip=((4, 7),),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"), SHAPES)


def feed_of(store, augmentation, labels=True, views=1, **data) -> Feed:
    config = DataConfig(**{"crop_size": SIZE, "overhang": (4, 4, 2), **data})
    needs = BatchNeeds(views=views, labels=labels)
    return make_feed(
        store,
        store.cases,
        data=config,
        augmentation=augmentation,
        needs=needs,
        batch_size=6,
        seed=3,
    )


def pairs(store, augmentation, steps=5, **kwargs) -> list[tuple[CropBatch, CropBatch]]:
    """Micro-batches by single crops, and by one pass on the (CPU) device."""
    single = feed_of(store, augmentation, **kwargs).batches(0, steps, accumulation=2)
    on_device = feed_of(store, augmentation, feed="resident", resident_on="device", **kwargs)
    together = on_device.batches(0, steps, accumulation=2)
    return [
        pair
        for (_, one), (_, other) in zip(single, together, strict=True)
        for pair in zip(one, other, strict=True)
    ]


def assert_same(one: CropBatch, other: CropBatch, atol: float) -> None:
    assert one.case_ids == other.case_ids
    assert torch.equal(one.crop_ids, other.crop_ids)
    assert (one.labels is None) == (other.labels is None)
    assert one.labels is None or torch.equal(one.labels, other.labels)
    assert (one.valid is None) == (other.valid is None)
    assert one.valid is None or torch.equal(one.valid, other.valid)
    torch.testing.assert_close(one.affine, other.affine, atol=1e-11, rtol=0)
    assert other.voxels.dtype == torch.float32
    assert other.voxels.is_contiguous()
    if atol == 0:
        assert torch.equal(one.voxels, other.voxels)
        assert torch.equal(one.air, other.air)
    else:
        torch.testing.assert_close(one.voxels, other.voxels, atol=atol, rtol=1e-5)
        torch.testing.assert_close(one.air, other.air, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("augmentation", [NOTHING, WHOLE_VOXELS], ids=["nothing", "flips-turns"])
@pytest.mark.parametrize("grid", [None, 4])
def test_crops_on_whole_voxels_are_the_same_bit_for_bit(store, augmentation, grid):
    batches = pairs(store, augmentation, origin_grid=grid)

    for one, other in batches:
        assert_same(one, other, atol=0)
    assert {one.valid is None for one, _ in batches} == {False}


# Values reach 60 and steps 3 a voxel here, where normalised volumes reach 4: 1e-4 of those.
@pytest.mark.parametrize(
    "augmentation",
    [WARPED, INTENSITY, RESCALED, RESCALED_AND_TURNED, THICK_SLICES, EVERYTHING],
    ids=["warped", "intensity", "rescaled", "rescaled-turned", "thick-slices", "everything"],
)
@pytest.mark.parametrize("labels", [True, False])
def test_augmented_crops_are_the_same_to_rounding(store, augmentation, labels):
    for one, other in pairs(store, augmentation, labels=labels, views=2, placement="body"):
        assert_same(one, other, atol=3e-4)


def test_sides_are_swapped_and_classes_ignored_as_in_single_crops(store):
    changed = replace(WHOLE_VOXELS, swap_on_flip=((4, 7),))

    for one, other in pairs(store, changed, ignore_label=2):
        assert_same(one, other, atol=0)
        assert (other.labels == IGNORE_INDEX).any()


def test_batches_without_padding_say_so(store):
    batches = pairs(store, WHOLE_VOXELS, crop_size=(4, 6, 4), overhang=(0, 0, 0))

    for one, other in batches:
        assert other.valid is None
        assert_same(one, other, atol=0)


def test_a_chunk_holds_as_many_crops_as_there_is_room_for_and_does_not_change_them(
    store, monkeypatch
):
    whole = [other for _, other in pairs(store, EVERYTHING)]
    monkeypatch.setitem(batched.CHUNK_VOXELS, "cpu", 1)
    one_by_one = [other for _, other in pairs(store, EVERYTHING)]

    for first, second in zip(whole, one_by_one, strict=True):
        # the common box of a chunk is another one, and with it the rounding of its coordinates
        assert_same(first, second, atol=3e-4)


def test_numbers_follow_from_seed_step_and_index_and_not_from_the_batch(store):
    plan = feed_of(store, EVERYTHING).plan

    config = replace(EVERYTHING, rescale=(0.5, 3.0))

    whole = draw_numbers(plan, config, 3, range(6), views=2)
    part = draw_numbers(plan, config, 3, [4], views=2)

    for name, values in vars(whole).items():
        assert torch.equal(values[[4, 10]], getattr(part, name)), name


def test_the_affine_leads_to_the_voxels_that_were_cut(store):
    whole = feed_of(store, WHOLE_VOXELS, feed="resident", resident_on="device")

    _, (batch,) = next(whole.batches(0, 1))

    for row, case_id in enumerate(batch.case_ids):
        with store.open(case_id) as case:
            volume = case.read_normalised((0, 0, 0), case.shape[1:])
            to_volume = np.linalg.inv(case.affine) @ batch.affine[row].numpy()
        voxels = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), axis=-1)
        places = (voxels @ to_volume[:3, :3].T + to_volume[:3, 3]).round().astype(int)
        inside = ((places >= 0) & (places < volume.shape[1:])).all(axis=-1)
        expected = volume[(slice(None), *places[inside].T)]
        np.testing.assert_array_equal(batch.voxels[row].numpy()[:, inside], expected)
        np.testing.assert_array_equal(batch.valid[row], inside)
