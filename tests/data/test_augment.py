from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from positions import make_case, value_at
from scipy.spatial.transform import Rotation
from scipy.stats import kstest

from mim3d.config.data import AugmentationConfig
from mim3d.data import augment
from mim3d.data.augment import AugmentationPlan, apply, draw, gaussian, rotation, swap_table
from mim3d.data.crop_reading import cut_crop
from mim3d.data.crops import CropPlan
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.randomness import generator

SIZE = (11, 13, 7)
EVERYTHING = AugmentationConfig(
    flip_axes=("x", "y", "z"),
    turn_plane=("x", "z"),
    turn_probability=0.5,
    affine_probability=0.5,
    rotation_degrees=(10, 20, 30),
    zoom=0.2,
    stretch=0.1,
    scale_intensity=0.25,
    shift_intensity=0.1,
    gamma=0.3,
    noise=0.1,
)


def drawn(config: AugmentationConfig, count: int) -> list[AugmentationPlan]:
    return [draw(config, generator(0, index)) for index in range(count)]


# Drawing


def test_the_default_config_changes_nothing():
    for plan in drawn(AugmentationConfig(), 20):
        assert replace(plan, noise_key=0) == AugmentationPlan()


def test_the_same_key_draws_the_same_numbers():
    assert draw(EVERYTHING, generator(3, "a")) == draw(EVERYTHING, generator(3, "a"))
    assert draw(EVERYTHING, generator(3, "a")) != draw(EVERYTHING, generator(4, "a"))


@pytest.mark.parametrize(
    ("off", "fields_of_it"),
    [
        ({"flip_axes": ()}, {"flips"}),
        ({"turn_probability": 0.0}, {"turns"}),
        ({"affine_probability": 0.0}, {"warp"}),
        ({"scale_intensity": 0.0}, {"scale"}),
        ({"shift_intensity_probability": 0.0}, {"shift"}),
        ({"gamma": 0.0}, {"gamma"}),
        ({"noise_probability": 0.0}, {"noise"}),
    ],
)
def test_switching_one_augmentation_off_leaves_all_others_as_they_were(off, fields_of_it):
    plans = zip(drawn(EVERYTHING, 40), drawn(replace(EVERYTHING, **off), 40), strict=True)

    changed = {
        f.name
        for with_it, without in plans
        for f in fields(AugmentationPlan)
        if getattr(with_it, f.name) != getattr(without, f.name)
    }

    assert changed == fields_of_it


def test_numbers_stay_in_their_bounds_and_come_as_often_as_the_config_says():
    plans = drawn(EVERYTHING, 2000)

    def share(happens):
        return sum(map(happens, plans)) / 2000

    for axis in range(3):
        assert share(lambda p, axis=axis: p.flips[axis]) == pytest.approx(0.5, abs=0.05)
    for turns in (1, 2, 3):
        assert share(lambda p, turns=turns: p.turns == turns) == pytest.approx(1 / 6, abs=0.04)
    assert share(lambda p: p.warp is not None) == pytest.approx(0.5, abs=0.05)
    assert share(lambda p: p.scale != 1) == 1
    assert share(lambda p: p.gamma != 1) == pytest.approx(0.5, abs=0.05)
    assert share(lambda p: p.noise > 0) == pytest.approx(0.3, abs=0.05)
    for name, low, high in (
        ("scale", 0.75, 1.25),
        ("shift", -0.1, 0.1),
        ("gamma", np.exp(-0.3), np.exp(0.3)),
        ("noise", 0.0, 0.1),
    ):
        values = np.array([getattr(plan, name) for plan in plans])
        assert low <= values.min() < low + 0.02
        assert high - 0.02 < values.max() <= high


@pytest.mark.parametrize("axes", ["all", "each", "z"])
def test_factors_of_scale_are_even_in_their_logarithm_and_belong_to_their_axes(axes):
    config = AugmentationConfig(rescale=(0.5, 4.0), rescale_axes=axes)

    plans = drawn(config, 400)

    factors = np.array([plan.rescale for plan in plans])
    share = np.log(factors / 0.5) / np.log(8)
    assert share.min() >= -1e-12
    assert share.max() <= 1 + 1e-12
    assert kstest(share[:, 2], "uniform").pvalue > 0.01
    correlation = np.corrcoef(share.T)[0, 2] if axes != "z" else 0.0
    assert abs(correlation - (axes == "all")) < 0.15
    assert (factors[:, :2] == 1).all() == (axes == "z")
    for plan in plans[:20]:
        np.testing.assert_allclose(plan.warp_matrix, np.diag(plan.rescale))


def test_a_scale_multiplies_the_voxels_of_a_warp_and_leaves_all_other_numbers_as_they_were():
    scaled = replace(EVERYTHING, rescale=(0.5, 2.0), rescale_axes="each")

    for before, after in zip(drawn(EVERYTHING, 60), drawn(scaled, 60), strict=True):
        warp = np.eye(3) if before.warp is None else before.warp_matrix
        np.testing.assert_allclose(after.warp_matrix, warp * after.rescale)
        assert replace(after, warp=before.warp, rescale=(1.0, 1.0, 1.0)) == before


def test_a_scale_of_one_is_no_warp():
    assert all(plan.warp is None for plan in drawn(AugmentationConfig(rescale=(1.0, 1.0)), 5))


def test_a_warp_is_a_rotation_of_the_angles_after_zoom_and_stretch_of_the_crops_own_axes():
    for plan in drawn(replace(EVERYTHING, affine_probability=1.0), 200):
        gram = plan.warp_matrix.T @ plan.warp_matrix
        sizes = 1 / np.sqrt(np.diag(gram))
        assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-12
        assert (sizes > 0.8 * 0.9).all()
        assert (sizes < 1.2 * 1.1).all()
        angles = Rotation.from_matrix(plan.warp_matrix * sizes).as_euler("xyz", degrees=True)
        assert (np.abs(angles) <= (10, 20, 30)).all()


def test_rotation_agrees_with_scipy():
    angles = [0.3, -0.5, 1.1]

    np.testing.assert_allclose(rotation(angles), Rotation.from_euler("xyz", angles).as_matrix())


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"flip_probability": 1.2}, "flip_probability"),
        ({"zoom": 1.0}, "zoom"),
        ({"noise": -0.1}, "noise"),
        ({"rotation_degrees": (0, -5, 0)}, "rotation_degrees"),
        ({"turn_plane": ("x", "y"), "turn_probability": 0.5}, "equally large, not x and y"),
        ({"turn_plane": ("x", "x")}, "turn_plane"),
        ({"turn_probability": 0.5}, "needs `augmentation.turn_plane`"),
        ({"rescale": (0.0, 2.0)}, "rescale"),
        ({"rescale": (2.0, 0.5)}, "smaller first"),
        ({"rescale": (1.0, float("inf"))}, "rescale"),
    ],
)
def test_numbers_that_cannot_be_applied_are_refused(wrong, why):
    with pytest.raises(ConfigError, match=why):
        augment.check(AugmentationConfig(**wrong), SIZE)


# Geometry

PLANS = {
    "flip-x": AugmentationPlan(flips=(True, False, False)),
    "flip-all": AugmentationPlan(flips=(True, True, True)),
    "turn-1": AugmentationPlan(turns=1, plane=(0, 2)),
    "turn-2": AugmentationPlan(turns=2, plane=(0, 2)),
    "turn-3": AugmentationPlan(turns=3, plane=(0, 2)),
    "turn-back": AugmentationPlan(turns=1, plane=(2, 0)),
    "everything": AugmentationPlan(
        flips=(True, False, True),
        turns=3,
        plane=(0, 2),
        warp=((0.9, -0.2, 0.1), (0.2, 1.1, 0.1), (-0.1, -0.1, 1.0)),
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_point_in_millimetres_stays_the_same_point(name):
    plan, size = PLANS[name], (9, 13, 9)
    case = make_case((40, 35, 30), spacing=(1.0, 1.4, 2.5))

    crop = cut_crop(case, CropPlan("case", (12, 10, 11), size), warp=plan.warp_matrix)
    after = apply(plan, crop)

    assert after.valid is None
    np.testing.assert_allclose(after.voxels, value_at(after.affine, size), atol=0.0052)
    assert not np.allclose(after.affine, case.affine)


@pytest.mark.parametrize("name", PLANS)
def test_labels_and_validity_go_where_the_voxels_go(name):
    plan = replace(PLANS[name], warp=None)
    case = make_case((40, 35, 30))
    case.stored[0] = case.labels.astype(np.int16) * 100 + 100

    crop = cut_crop(case, CropPlan("case", (-3, 27, 24), (9, 13, 9)), labels=True)
    after = apply(plan, crop)

    assert 0 < int(after.valid.sum()) < after.valid.numel()
    assert torch.equal(after.valid, after.voxels[0] != 0)
    assert torch.equal(after.labels[after.valid].float(), after.voxels[0][after.valid] - 1)
    assert (after.labels[~after.valid] == 255).all()


@pytest.mark.parametrize("rescale", [(1.9, 1.9, 1.9), (0.6, 0.6, 0.6), (1.0, 1.0, 2.9)])
def test_a_blob_lies_at_the_same_millimetres_at_every_scale(rescale):
    size, spacing = (22, 24, 26), (1.0, 1.4, 0.7)
    case = make_case((60, 56, 64), spacing=spacing)
    middle = np.array([31.0, 27.0, 33.0])
    voxels = np.stack(np.meshgrid(*map(np.arange, (60, 56, 64)), indexing="ij"), axis=-1)
    distance = np.linalg.norm((voxels - middle) * spacing, axis=-1)
    case.stored[:] = (3000 * np.exp(-0.5 * (distance / 2.2) ** 2)).round()
    case.labels[:] = distance < 3.0
    planted = case.affine[:3, :3] @ middle + case.affine[:3, 3]
    plan = AugmentationPlan(flips=(True, False, True), warp=((2, 0, 0), (0, 1, 0), (0, 0, 1)))
    plan = replace(plan, warp=tuple(map(tuple, np.diag(rescale).tolist())), rescale=rescale)

    cut = cut_crop(
        case, CropPlan("case", (20, 15, 20), size), labels=True, warp=plan.warp_matrix,
        rescale=rescale,
    )  # fmt: skip
    crop = apply(plan, cut)

    places = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
    # Labels jump from voxel to voxel: their middle is known to a part of one.
    for weight, most in ((crop.voxels[0].numpy(), 0.05), ((crop.labels == 1).numpy(), 0.5)):
        centre = (places * weight[..., None]).sum((0, 1, 2)) / weight.sum()
        found = crop.affine[:3, :3] @ centre + crop.affine[:3, 3]
        assert np.linalg.norm(found - planted) < most
    found_spacing = np.linalg.norm(crop.affine[:3, :3], axis=0)
    np.testing.assert_allclose(found_spacing, np.array(spacing) * rescale)


def test_sided_classes_change_places_only_when_x_is_mirrored():
    case = make_case()
    crop = cut_crop(case, CropPlan("case", (4, 5, 6), SIZE), labels=True)
    swaps = swap_table([(1, 3)])

    mirrored_x = apply(AugmentationPlan(flips=(True, True, False)), crop, swaps).labels
    mirrored_y = apply(AugmentationPlan(flips=(False, True, True)), crop, swaps).labels

    expected = np.array([0, 3, 2, 1, 4])[crop.labels.numpy()[::-1, ::-1]]
    np.testing.assert_array_equal(mirrored_x, expected)
    np.testing.assert_array_equal(mirrored_y, crop.labels.numpy()[:, ::-1, ::-1])


def test_no_pairs_need_no_table():
    assert swap_table([]) is None


# Intensities


def padded_crop():
    return cut_crop(make_case(), CropPlan("case", (-4, 14, 3), SIZE))


@pytest.mark.parametrize(
    "plan",
    [
        AugmentationPlan(scale=1.2),
        AugmentationPlan(shift=-0.3),
        AugmentationPlan(gamma=1.3),
        AugmentationPlan(noise=0.2, noise_key=5),
    ],
)
def test_padding_stays_zero_and_every_intensity_number_does_something(plan):
    before, after = padded_crop(), apply(plan, padded_crop())

    assert (after.voxels[:, ~after.valid] == 0).all()
    assert (after.voxels != before.voxels)[:, after.valid].float().mean() > 0.9


def test_contrast_and_offset_are_v_times_scale_plus_shift():
    crop = padded_crop()
    before = crop.voxels.clone()

    after = apply(AugmentationPlan(scale=1.25, shift=-0.5), crop)

    inside = after.valid.expand_as(before)
    torch.testing.assert_close(after.voxels[inside], before[inside] * 1.25 - 0.5)


def test_gamma_bends_the_range_of_each_channel():
    crop = cut_crop(make_case(), CropPlan("case", (5, 5, 5), SIZE))

    after = apply(AugmentationPlan(gamma=1.3), replace(crop, voxels=crop.voxels.clone()))

    # ((v - min) / (max - min)) ** gamma * (max - min) + min, as MONAI's AdjustContrast has it
    for channel in range(2):
        before = crop.voxels[channel].double().numpy()
        low, width = before.min(), np.ptp(before)
        expected = ((before - low) / width) ** 1.3 * width + low
        np.testing.assert_allclose(after.voxels[channel], expected, atol=1e-4)


def test_gamma_looks_at_valid_voxels_only():
    case = make_case()
    case.stored[:] = np.random.default_rng(1).integers(500, 900, case.stored.shape)
    whole = cut_crop(case, CropPlan("case", (0, 5, 5), SIZE))
    padded = cut_crop(case, CropPlan("case", (0, 5, 5), (*SIZE[:2], 40)))

    whole = apply(AugmentationPlan(gamma=0.8), whole).voxels
    padded = apply(AugmentationPlan(gamma=0.8), padded)

    assert padded.voxels[:, padded.valid].min() >= 5 - 1e-5
    assert whole.min() >= 5 - 1e-5


def test_a_constant_crop_survives_gamma():
    case = make_case()
    case.stored[:] = 70

    after = apply(AugmentationPlan(gamma=1.3), cut_crop(case, CropPlan("case", (0, 0, 0), SIZE)))

    torch.testing.assert_close(after.voxels, torch.full_like(after.voxels, 0.7))


def test_the_threshold_of_air_separates_the_same_voxels_afterwards():
    crop = cut_crop(make_case(), CropPlan("case", (5, 5, 5), SIZE))
    crop = replace(crop, air=crop.voxels.flatten(1).median(dim=1).values + 0.001)
    before = crop.voxels < crop.air[:, None, None, None]

    after = apply(AugmentationPlan(scale=0.8, shift=0.3, gamma=1.3), crop)

    assert torch.equal(after.voxels < after.air[:, None, None, None], before)


def test_noise_is_standard_normal_and_independent():
    noise = gaussian(0x1234_5678_9ABC_DEF0, 200_001).numpy()

    assert noise.shape == (200_001,)
    assert kstest(noise, "norm").pvalue > 1e-3
    half = 100_000  # cosine and sine of one pair lie half apart
    for lag in (1, 2, 64, half, half + 1):
        assert abs(np.corrcoef(noise[:-lag], noise[lag:])[0, 1]) < 5 / np.sqrt(200_001 - lag)


def test_noise_follows_from_all_bits_of_its_key_and_keys_are_independent():
    keys = [0, 1, 1 << 31, 1 << 32, 1 << 62]
    rows = np.stack([gaussian(key, 20_000).numpy() for key in keys])

    assert torch.equal(gaussian(7, 1000), gaussian(7, 1000))
    off_diagonal = np.corrcoef(rows) - np.eye(len(keys))
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(20_000)


def test_noise_has_the_asked_deviation():
    crop = cut_crop(make_case(), CropPlan("case", (5, 5, 5), SIZE))
    before = crop.voxels.clone()

    after = apply(AugmentationPlan(noise=0.2, noise_key=9), crop)

    # 2002 voxels: the deviation's own error is 0.2 / sqrt(2 * 2002)
    assert float((after.voxels - before).std()) == pytest.approx(0.2, abs=0.015)
