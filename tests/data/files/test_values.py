from __future__ import annotations

import numpy as np
import pytest

from mim3d.data.files import read_label, read_volume
from mim3d.foundation.errors import VolumeError

from .making import AFFINE, SHAPE, codes, nifti, put, quietly, reoriented, scan


def with_values(*pairs, kind="f4"):
    voxels = scan().astype(kind)
    for place, value in pairs:
        voxels[place] = value
    return voxels


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        (np.nan, "low"),
        (-np.inf, "low"),
        (np.inf, "high"),
        (3e38, "high"),
        (-2e9, "low"),
        (1e300, "high"),
        (-1e300, "low"),
    ],
)
def test_what_is_no_number_becomes_the_nearest_end_of_the_others(tmp_path, value, becomes):
    kind = "f8" if abs(value) > 1e100 and np.isfinite(value) else "f4"
    voxels = with_values(((3, 4, 5), value), kind=kind)

    volume = quietly(put(tmp_path, "case.nii", nifti(voxels)))

    rest = np.delete(scan().ravel(), np.ravel_multi_index((3, 4, 5), SHAPE))
    expected = scan().astype("f4")
    expected[3, 4, 5] = rest.min() if becomes == "low" else rest.max()
    assert (volume.voxels[0] == expected).all()
    assert volume.voxels.dtype == np.float32
    assert codes(volume) == {"values-replaced"}


def test_huge_integers_are_contained_alike(tmp_path):
    voxels = with_values(((3, 4, 5), 2_000_000_000), ((0, 0, 0), -(2**62)), kind="i8")

    volume = quietly(put(tmp_path, "case.nii", nifti(voxels)))

    assert volume.voxels.dtype == np.int32
    assert volume.voxels[0, 3, 4, 5] == np.delete(voxels.ravel(), voxels.argmax()).max()
    assert codes(volume) == {"values-replaced"}


def test_statistics_do_not_see_the_replaced_voxels(tmp_path):
    """Up to 40 percent of NaN leave smallest and largest value as they are."""
    random = np.random.default_rng(0)
    for share in (0.01, 0.2, 0.4):
        voxels = scan().astype("f4")
        missing = random.random(SHAPE) < share
        voxels[missing] = np.nan
        volume = quietly(put(tmp_path, "case.nii", nifti(voxels)))
        assert volume.voxels.min() == scan()[~missing].min()
        assert volume.voxels.max() == scan()[~missing].max()
        assert np.isfinite(volume.voxels).all()


@pytest.mark.parametrize("hole", ["slabs", "scattered", "all", "inf around"])
def test_more_than_half_unusable_is_refused(tmp_path, hole):
    voxels = scan((20, 16, 12)).astype("f4")
    if hole == "slabs":
        voxels[6:] = np.nan
    if hole == "scattered":
        voxels[np.random.default_rng(0).random(voxels.shape) < 0.7] = np.nan
    if hole == "all":
        voxels[:] = np.nan
    if hole == "inf around":
        inside = voxels[5:15, 4:12].copy()
        voxels[:] = np.inf
        voxels[5:15, 4:12] = inside

    with pytest.raises(VolumeError, match="not finite"):
        read_volume(put(tmp_path, "case.nii", nifti(voxels)))


def test_nan_around_a_body_is_no_damage(tmp_path):
    voxels = scan((20, 16, 12)).astype("f4")
    x, y, _ = np.indices(voxels.shape)
    outside = ((x - 9.5) / 7) ** 2 + ((y - 7.5) / 6) ** 2 > 1
    voxels[outside] = np.nan
    assert outside.mean() > 0.5

    volume = quietly(put(tmp_path, "case.nii", nifti(voxels)))

    assert codes(volume) == {"values-replaced"}
    assert (volume.voxels[0][~outside] == voxels[~outside]).all()
    assert (volume.voxels[0][outside] == voxels[~outside].min()).all()


@pytest.mark.parametrize("voxels", [np.zeros(SHAPE), np.full(SHAPE, 7.0), scan() * 1e-40])
def test_a_constant_is_noted(tmp_path, voxels):
    volume = quietly(put(tmp_path, "case.nii", nifti(voxels.astype("f4"))))

    assert codes(volume) == {"constant"}


@pytest.mark.parametrize("kind", ["u1", "i2", ">i2", "i4", "f4", ">f8"])
def test_values_across_several_slabs_are_settled_alike(tmp_path, monkeypatch, kind):
    """Narrower and wider than what they become: converting in place must never overtake."""
    monkeypatch.setattr("mim3d.data.files.values.SLAB", 100)
    voxels = abs(scan()).clip(0, 200).astype(kind)
    if voxels.dtype.kind == "f":
        voxels[10, 12, 6] = np.nan

    def halved(header):
        header["scl_slope"] = 0.5

    volume = quietly(put(tmp_path, "case.nii", nifti(voxels, change=halved)))

    expected = (voxels * 0.5).astype("f4")
    if voxels.dtype.kind == "f":
        expected[10, 12, 6] = np.nanmin(expected)
    assert (volume.voxels[0] == expected).all()


@pytest.mark.parametrize("kind", ["u1", "i2", ">u4", "f4", "f8"])
def test_labels_across_several_slabs_are_settled_alike(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("mim3d.data.files.values.SLAB", 100)
    labels = abs(scan()).clip(0, 200).astype(kind)
    labels[10, 12, 6] = 200

    volume = read_label(put(tmp_path, "label.nii", nifti(labels)))

    assert (volume.voxels[0] == labels).all()


# Labels


def label_file(tmp_path, labels, **options):
    return put(tmp_path, "label.nii", nifti(labels, **options))


@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_labels_of_every_type_become_the_smallest_unsigned_one(tmp_path, kind):
    labels = (scan() % 5).astype(kind)

    volume = read_label(label_file(tmp_path, labels))

    assert volume.voxels.dtype == np.uint8
    assert (volume.voxels[0] == scan() % 5).all()


@pytest.mark.parametrize("kind", ["u2", "i4", "f4", "f8"])
def test_all_integers_to_65535_survive(tmp_path, kind):
    labels = np.arange(65536).reshape(64, 32, 32).astype(kind)

    volume = read_label(label_file(tmp_path, labels))

    assert volume.voxels.dtype == np.uint16
    assert (volume.voxels[0].ravel() == np.arange(65536)).all()


@pytest.mark.parametrize("near", [0.99999997, 1.0000004, 0.9995, 1.0009])
def test_labels_near_an_integer_are_rounded_never_cut(tmp_path, near):
    labels = np.zeros(SHAPE, "f8")
    labels[1, 2, 3] = near

    assert read_label(label_file(tmp_path, labels)).voxels[0, 1, 2, 3] == 1


def test_a_slope_of_one_255th_makes_255_class_one(tmp_path):
    def slope(header):
        header["scl_slope"] = 1 / 255

    labels = ((scan() % 2) * 255).astype("u1")

    volume = read_label(label_file(tmp_path, labels, change=slope))

    assert (volume.voxels[0] == scan() % 2).all()


@pytest.mark.parametrize("value", [1.5, 0.99, -1, 70_000, 2**24 + 1, np.nan, np.inf, 1e300])
def test_a_value_that_is_no_label_is_refused_with_its_place(tmp_path, value):
    labels = np.zeros(SHAPE, "f8")
    labels[1, 2, 3] = value
    labels[4, 5, 6] = value

    with pytest.raises(VolumeError, match=r"at voxel \(1, 2, 3\)") as caught:
        read_label(label_file(tmp_path, labels))

    assert caught.value.code == "label-value"


def test_classes_outside_of_those_named_are_refused(tmp_path):
    path = label_file(tmp_path, (scan() % 5).astype("u1"))

    assert read_label(path, values={0, 1, 2, 3, 4}).voxels.max() == 4
    with pytest.raises(VolumeError, match="the classes 0, 1, 2, 3 are"):
        read_label(path, values=[3, 2, 1, 0])


@pytest.mark.parametrize(("ignore", "kind"), [(255, "u1"), (-1, "i1"), (-1, "f4")])
def test_one_ignored_value_may_occur_beside_the_classes(tmp_path, ignore, kind):
    labels = (scan() % 3).astype(kind)
    labels[0, 0, 0] = ignore
    path = label_file(tmp_path, labels)

    volume = read_label(path, values=range(3), ignore=ignore)

    assert volume.voxels[0, 0, 0, 0] == ignore
    assert volume.voxels.dtype == (np.uint8 if ignore > 0 else np.int8)
    with pytest.raises(VolumeError):
        read_label(path, values=range(3))


def test_one_hot_labels_are_refused_and_one_frame_is_not(tmp_path):
    one_hot = np.stack([scan() % 2, 1 - scan() % 2], axis=-1).astype("u1")

    with pytest.raises(VolumeError, match="has 2") as caught:
        read_label(label_file(tmp_path, one_hot))

    assert "one-hot" in (caught.value.remedy or "")
    assert read_label(label_file(tmp_path, one_hot[..., :1])).voxels.shape == (1, *SHAPE)


@pytest.mark.parametrize("order", ["RAS", "LPI", "SPR", "AIL"])
def test_replaced_voxels_are_known_by_their_place_in_every_order(tmp_path, order):
    voxels = scan().astype("f4")
    bad = np.random.default_rng(0).random(SHAPE) < 0.2
    voxels[bad] = np.inf
    turned, affine = reoriented(voxels, AFFINE, order)

    volume = quietly(put(tmp_path, "case.nii", nifti(turned, affine)))

    assert volume.unusable is not None
    assert (volume.unusable[0] == bad).all()
    assert (np.isnan(volume.measurable()[0]) == bad).all()
    assert (volume.measurable()[0][~bad] == voxels[~bad]).all()
    assert np.isfinite(volume.voxels).all()


def test_a_sound_volume_is_measured_as_it_is(tmp_path):
    volume = read_volume(put(tmp_path, "case.nii", nifti(scan())))

    assert volume.unusable is None
    assert volume.measurable() is volume.voxels


def test_no_memory_left_is_an_error_of_the_file(tmp_path, monkeypatch):
    def nothing_left(*_):
        raise MemoryError

    path = put(tmp_path, "case.nii", nifti(scan()))
    monkeypatch.setattr("mim3d.data.files.layout.flip_in_place", nothing_left)

    with pytest.raises(VolumeError, match="not enough memory") as caught:
        read_volume(path)

    assert caught.value.code == "memory"
