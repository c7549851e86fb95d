from __future__ import annotations

import struct

import nibabel
import numpy as np
import pytest
import SimpleITK

from mim3d.data.files import read_volume
from mim3d.foundation.errors import VolumeError

from .making import (
    AFFINE,
    ORDERS,
    SHAPE,
    SPACING,
    codes,
    nifti,
    put,
    quietly,
    reoriented,
    scan,
    zipped,
)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("version", [1, 2])
def test_all_48_storage_orders_give_identical_voxels(tmp_path, order, version):
    stored, affine = reoriented(scan(), AFFINE, order)
    path = put(tmp_path, "case.nii.gz", zipped(nifti(stored, affine, version=version), 1))

    volume = read_volume(path)

    assert (volume.voxels[0] == scan()).all()
    assert volume.voxels.dtype == np.int16
    assert np.allclose(volume.affine, AFFINE, atol=1e-5)
    assert all(stride >= 0 for stride in volume.voxels.strides)
    assert volume.notes == ()
    assert volume.origin.file_shape == stored.shape


@pytest.mark.parametrize("order", ORDERS[::5])
def test_oblique_files_agree_with_nibabel_and_simpleitk(tmp_path, order):
    turn = np.eye(4)
    angle = np.deg2rad(23)
    turn[:3, :3] = [
        [np.cos(angle), 0, -np.sin(angle)],
        [0, 1, 0],
        [np.sin(angle), 0, np.cos(angle)],
    ]
    stored, affine = reoriented(scan(), turn @ AFFINE, order)
    path = put(tmp_path, "case.nii", nifti(stored, affine))

    volume = read_volume(path)

    oracle = nibabel.as_closest_canonical(nibabel.load(path))
    assert (volume.voxels[0] == np.asarray(oracle.dataobj)).all()
    assert np.allclose(volume.affine, oracle.affine, atol=1e-4)
    image = SimpleITK.ReadImage(str(path))
    index = tuple(int(size // 3) for size in stored.shape)
    lps = np.array(image.TransformIndexToPhysicalPoint(index))
    voxel = np.linalg.solve(volume.affine, [-lps[0], -lps[1], lps[2], 1])[:3]
    assert np.allclose(voxel, voxel.round(), atol=1e-3)
    assert volume.voxels[0][tuple(voxel.round().astype(int))] == image[index]


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "u8", "i8", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_scalar_type_is_read_in_both_byte_orders(tmp_path, kind, order):
    voxels = (scan() % 100).astype(kind)
    path = put(tmp_path, "case.nii", nifti(voxels, order=order))

    volume = read_volume(path)

    expected = {"u8": "u4", "i8": "i4", "f8": "f4"}.get(kind, kind)
    assert volume.voxels.dtype == np.dtype(expected)
    assert (volume.voxels[0] == voxels).all()


@pytest.mark.parametrize(
    ("slope", "intercept", "kind"),
    [(1, 0, "i2"), (0, 7, "i2"), (1, -1024, "f4"), (0.5, 3, "f4"), (-1, 0, "f4")],
)
def test_slope_and_intercept_are_applied_where_they_say_something(tmp_path, slope, intercept, kind):
    def change(header):
        header["scl_slope"], header["scl_inter"] = slope, intercept

    volume = read_volume(put(tmp_path, "case.nii", nifti(scan(), change=change)))

    assert volume.voxels.dtype == np.dtype(kind)
    expected = scan() if slope in (0, 1) and kind == "i2" else scan() * float(slope) + intercept
    assert (volume.voxels[0] == expected).all()


@pytest.mark.parametrize("shape", [(11, 13, 7, 3), (11, 13, 7, 1, 3), (11, 13, 1, 3)])
def test_the_fourth_axis_is_channels_or_the_fifth_beside_one(tmp_path, shape):
    voxels = scan(shape)

    volume = read_volume(put(tmp_path, "case.nii", nifti(voxels)))

    assert volume.voxels.shape == (3, *shape[:3])
    assert (volume.voxels == np.moveaxis(voxels.reshape(*shape[:3], 3), -1, 0)).all()


def test_channels_of_a_flipped_file_are_flipped_alike(tmp_path):
    affine = np.diag([-1, -1, 1, 1]) @ AFFINE
    voxels = scan((11, 13, 7, 2))

    volume = read_volume(put(tmp_path, "case.nii", nifti(voxels, affine)))

    assert (volume.voxels == np.moveaxis(voxels[::-1, ::-1], -1, 0)).all()


def test_a_flat_image_is_one_voxel_thick(tmp_path):
    volume = read_volume(put(tmp_path, "case.nii", nifti(scan((11, 13)))))

    assert volume.voxels.shape == (1, 11, 13, 1)


@pytest.mark.parametrize("entry", ["case.hdr", "case.img"])
@pytest.mark.parametrize("gz", ["", ".gz"])
def test_a_pair_is_read_by_either_of_its_names(tmp_path, entry, gz):
    single = nifti(scan())
    header = bytearray(single[:348])
    header[344:348] = b"ni1\0"
    header[108:112] = struct.pack("<f", 0)
    squeeze = zipped if gz else bytes
    put(tmp_path, f"case.hdr{gz}", squeeze(header))
    put(tmp_path, f"case.img{gz}", squeeze(single[352:]))

    volume = read_volume(tmp_path / f"{entry}{gz}")

    assert (volume.voxels[0] == scan()).all()
    assert volume.notes == ()


def test_a_pair_without_its_voxels_names_the_missing_file(tmp_path):
    header = bytearray(nifti(scan())[:348])
    header[344:348] = b"ni1\0"

    with pytest.raises(VolumeError, match=r"`case\.img`, is missing"):
        read_volume(put(tmp_path, "case.hdr", bytes(header)))


def test_an_image_that_links_out_of_its_folder_is_refused(tmp_path):
    single = nifti(scan())
    header = bytearray(single[:348])
    header[344:348] = b"ni1\0"
    (tmp_path / "in").mkdir()
    put(tmp_path, "secret", single[352:])
    (tmp_path / "in" / "case.img").symlink_to(tmp_path / "secret")

    with pytest.raises(VolumeError, match="link out of its folder"):
        read_volume(put(tmp_path / "in", "case.hdr", bytes(header)))


def test_analyze_is_read_as_stored_and_noted(tmp_path):
    image = nibabel.AnalyzeImage(scan(), np.diag([*SPACING, 1]))
    nibabel.save(image, tmp_path / "case.img")

    volume = quietly(tmp_path / "case.hdr")

    assert (volume.voxels[0] == scan()).all()
    assert np.allclose(volume.affine, np.diag([*SPACING, 1]))
    assert codes(volume) == {"orientation-unknown"}
    assert not volume.origin.has_orientation


def test_extensions_are_stepped_over(tmp_path):
    raw = nifti(scan())
    extension = struct.pack("<2i", 32, 6) + b"PLANTED^NAME".ljust(24, b"\0")
    moved = bytearray(raw[:348] + b"\1\0\0\0" + extension + raw[352:])
    moved[108:112] = struct.pack("<f", 384)

    volume = read_volume(put(tmp_path, "case.nii", bytes(moved)))

    assert (volume.voxels[0] == scan()).all()


def set_field(name, value):
    def change(header):
        header[name] = value

    return change


def set_dim(index, value):
    def change(header):
        header["dim"][index] = value

    return change


REJECTED = {
    "one slice more": set_dim(3, 8),
    "one slice fewer": set_dim(3, 6),
    "half of it": set_dim(2, 6),
    "negative": set_dim(1, -11),
    "two negative": lambda h: (set_dim(1, -11)(h), set_dim(2, -13)(h)),
    "zero": set_dim(1, 0),
    "no axes": set_dim(0, 0),
    "eight axes": set_dim(0, 8),
    "huge": lambda h: [set_dim(axis, 32767)(h) for axis in (1, 2, 3)],
    "frames of vectors": set_field("dim", [5, 11, 1, 1, 13, 7, 1, 1]),
    "bit": set_field("datatype", 1),
    "rgb": set_field("datatype", 128),
    "complex": set_field("datatype", 32),
    "float128": set_field("datatype", 1536),
    "unknown type": set_field("datatype", 9999),
    "wider type": set_field("datatype", 16),
    "narrower type": set_field("datatype", 2),
    "magic": set_field("magic", b"xyz"),
    "sizeof_hdr": set_field("sizeof_hdr", 349),
    "offset in the header": set_field("vox_offset", 100),
    "offset negative": set_field("vox_offset", -352),
    "offset broken": set_field("vox_offset", 352.5),
    "offset beyond": set_field("vox_offset", 1e9),
    "offset nan": set_field("vox_offset", np.nan),
    "slope inf": set_field("scl_slope", np.inf),
    "intercept nan": lambda h: (set_field("scl_slope", 1)(h), set_field("scl_inter", np.nan)(h)),
}


@pytest.mark.parametrize("fault", REJECTED)
@pytest.mark.parametrize("squeeze", [bytes, zipped])
def test_a_header_that_does_not_fit_is_refused(tmp_path, fault, squeeze):
    raw = nifti(scan(), change=REJECTED[fault])
    path = put(tmp_path, "case.nii.gz" if squeeze is zipped else "case.nii", squeeze(raw))

    with pytest.raises(VolumeError) as caught:
        read_volume(path)

    assert caught.value.where == str(path)
    assert "\n" not in caught.value.what
    assert not caught.value.what.endswith(".")


NOTED = {
    "bitpix": set_field("bitpix", 32),
    "offset-0": set_field("vox_offset", 0),
    "slope-nan": set_field("scl_slope", np.nan),
    "form-code": set_field("sform_code", 77),
    "units-converted": None,
}


@pytest.mark.parametrize("code", NOTED)
def test_what_a_rule_settles_is_noted(tmp_path, code):
    affine, change = AFFINE, NOTED[code]
    if code == "units-converted":
        affine, change = AFFINE.copy(), set_field("xyzt_units", 1)
        affine[:3] /= 1000
    path = put(tmp_path, "case.nii", nifti(scan(), affine, change=change))

    volume = quietly(path)

    assert codes(volume) == {code}
    assert (volume.voxels[0] == scan()).all()
    assert np.allclose(volume.affine, AFFINE, atol=1e-3)


def test_nifti2_sizes_that_wrap_to_the_right_size_are_refused(tmp_path):
    raw = bytearray(nifti(scan(), version=2))
    raw[16 + 8 : 16 + 16] = struct.pack("<q", 2**61 + SHAPE[0])

    with pytest.raises(VolumeError, match="limit"):
        read_volume(put(tmp_path, "case.nii", bytes(raw)))


@pytest.mark.parametrize("size", [0, -16, 4, 2**30])
def test_an_extension_of_an_impossible_size_is_refused(tmp_path, size):
    raw = nifti(scan())
    extension = struct.pack("<2i", size, 6).ljust(32, b"\0")
    moved = bytearray(raw[:348] + b"\1\0\0\0" + extension + raw[352:])
    moved[108:112] = struct.pack("<f", 384)

    with pytest.raises(VolumeError, match="extension"):
        read_volume(put(tmp_path, "case.nii", bytes(moved)))


def test_an_extender_without_room_for_an_extension_is_refused(tmp_path):
    """Else the extensions of a header whose `vox_offset` was lost would be read as voxels."""
    raw = bytearray(nifti(scan()))
    raw[348] = 1

    with pytest.raises(VolumeError, match="leaves no room") as caught:
        read_volume(put(tmp_path, "case.nii", bytes(raw)))

    assert caught.value.code == "extension"


def test_thousands_of_extensions_are_refused_before_they_take_minutes(tmp_path):
    count = 20_000
    raw = bytearray(nifti(scan()))
    raw[108:112] = struct.pack("<f", 352 + 8 * count)
    raw[348] = 1
    chain = struct.pack("<2i", 8, 0) * count

    with pytest.raises(VolumeError, match="extension 10001"):
        read_volume(put(tmp_path, "case.nii.gz", zipped(bytes(raw[:352]) + chain + raw[352:])))
