from __future__ import annotations

import gzip
import zlib

import numpy as np
import pytest
import SimpleITK

from mim3d.data.files import read_volume
from mim3d.foundation.errors import VolumeError

from .making import AFFINE, ORDERS, SHAPE, codes, meta, put, quietly, reoriented, scan


def place(affine: np.ndarray) -> dict[str, str]:
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.sqrt((lps[:3, :3] ** 2).sum(axis=0))
    # One axis after the other: rows of the transposed matrix.
    matrix = (lps[:3, :3] / spacing).T.ravel()
    return {
        "TransformMatrix": " ".join(f"{value:.12g}" for value in matrix),
        "Offset": " ".join(f"{value:.12g}" for value in lps[:3, 3]),
        "ElementSpacing": " ".join(f"{value:.12g}" for value in spacing),
    }


@pytest.mark.parametrize("order", ORDERS[::3])
def test_storage_orders_agree_with_each_other_and_with_simpleitk(tmp_path, order):
    angle = np.deg2rad(17)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    stored, affine = reoriented(scan(), turn @ AFFINE, order)
    path = put(tmp_path, "case.mha", meta(stored, **place(affine)))

    volume = read_volume(path)

    assert (volume.voxels[0] == scan()).all()
    assert np.allclose(volume.affine, turn @ AFFINE, atol=1e-5)
    assert volume.notes == ()
    image = SimpleITK.ReadImage(str(path))
    x, y, z = image.TransformIndexToPhysicalPoint((1, 2, 3))
    voxel = np.linalg.solve(volume.affine, [-x, -y, z, 1])[:3].round().astype(int)
    assert volume.voxels[0][tuple(voxel)] == image[1, 2, 3]


def test_what_simpleitk_writes_is_read_dictionary_and_all(tmp_path):
    for compress in (True, False):
        image = SimpleITK.GetImageFromArray(scan().T)
        image.SetSpacing((0.8, 1.2, 2.5))
        image.SetOrigin((1, 2, 3))
        image.SetMetaData("0010|0010", "PLANTED^NAME")
        image.SetMetaData("some key", "some = value")
        SimpleITK.WriteImage(image, str(tmp_path / "case.mha"), useCompression=compress)

        volume = read_volume(tmp_path / "case.mha")

        assert (volume.voxels[0] == scan()[::-1, ::-1]).all()
        assert volume.notes == ()


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int32, np.uint32, np.int64,
                                  np.uint64, np.float32, np.float64])  # fmt: skip
def test_every_type_that_simpleitk_writes_is_read(tmp_path, kind):
    voxels = (scan() % 100).astype(kind)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels.T), str(tmp_path / "case.mha"))

    assert (read_volume(tmp_path / "case.mha").voxels[0] == voxels[::-1, ::-1]).all()


def test_interleaved_channels_and_a_fourth_axis_are_channels(tmp_path):
    voxels = scan((3, *SHAPE))
    vector = meta(voxels, NDims="3", DimSize="11 13 7", ElementNumberOfChannels="3")
    fourth = meta(
        np.moveaxis(voxels, 0, -1),
        TransformMatrix="-1 0 0 0 0 -1 0 0 0 0 1 0 0 0 0 1",
        Offset="11 -6.5 31.25 0",
        ElementSpacing="0.8 1.2 2.5 1",
    )

    for raw in (vector, fourth):
        volume = read_volume(put(tmp_path, "case.mha", raw))
        assert (volume.voxels == voxels).all()
        assert np.allclose(volume.affine, AFFINE)


@pytest.mark.parametrize("squeeze", [None, zlib.compress, gzip.compress])
def test_data_beside_the_header(tmp_path, squeeze):
    data = scan().tobytes(order="F")
    put(tmp_path, "my scan.raw", data if squeeze is None else squeeze(data))
    raw = meta(scan(), compressed=False, CompressedData=str(squeeze is not None),
               ElementDataFile="my scan.raw")  # fmt: skip
    header = raw[: raw.index(b"my scan.raw") + len(b"my scan.raw")]

    volume = read_volume(put(tmp_path, "case.mhd", header + b"\r\n"))

    assert (volume.voxels[0] == scan()).all()


def test_big_endian_and_a_header_to_skip(tmp_path):
    raw = meta(scan().byteswap(), compressed=False, BinaryDataByteOrderMSB="True")
    skipped = meta(scan(), compressed=False, HeaderSize="-1").replace(b"LOCAL\n", b"LOCAL\njunk")

    assert (read_volume(put(tmp_path, "big.mha", raw)).voxels[0] == scan()).all()
    assert (read_volume(put(tmp_path, "skip.mha", skipped)).voxels[0] == scan()).all()


NOTED = {
    "no-matrix": {"TransformMatrix": ""},
    "no-origin": {"Offset": ""},
    "no-spacing": {"ElementSpacing": "", "ElementSize": "0.8 1.2 2.5"},
    "units-converted": {"DistanceUnits": "cm", "ElementSpacing": "0.08 0.12 0.25"},
}


@pytest.mark.parametrize("code", NOTED)
def test_what_a_rule_settles_is_noted(tmp_path, code):
    volume = quietly(put(tmp_path, "case.mha", meta(scan(), **NOTED[code])))

    assert codes(volume) == {code}
    assert volume.spacing_mm == pytest.approx((0.8, 1.2, 2.5))
    expected = scan()[::-1, ::-1] if code == "no-matrix" else scan()
    assert (volume.voxels[0] == expected).all()


REJECTED = {
    **{f"NDims {n}": {"NDims": n} for n in ("0", "1", "6", "100", "-1", "4294967296", "9" * 30)},
    "no size": {"DimSize": ""},
    "size negative": {"DimSize": "-11 13 7"},
    "size zero": {"DimSize": "0 13 7"},
    "size two": {"DimSize": "11 13"},
    "size huge": {"DimSize": "2000000 2000000 2000000"},
    "size one more": {"DimSize": "11 13 8"},
    "size one fewer": {"DimSize": "11 13 6"},
    "type": {"ElementType": "MET_QUUX"},
    "wider type": {"ElementType": "MET_INT"},
    "spacing zero": {"ElementSpacing": "0.8 0 2.5"},
    "spacing negative": {"ElementSpacing": "0.8 -1.2 2.5"},
    "spacing nan": {"ElementSpacing": "0.8 nan 2.5"},
    "spacing missing": {"ElementSpacing": ""},
    "matrix zero": {"TransformMatrix": "0 0 0 0 0 0 0 0 0"},
    "matrix nan": {"TransformMatrix": "nan 0 0 0 1 0 0 0 1"},
    "matrix sheared": {"TransformMatrix": "1 0 0 0.2 1 0 0 0 1"},
    "channels 0": {"ElementNumberOfChannels": "0"},
    "channels -1": {"ElementNumberOfChannels": "-1"},
    "channels huge": {"ElementNumberOfChannels": "1073741824"},
    "header size -2": {"HeaderSize": "-2"},
    "header size huge": {"HeaderSize": "1099511627776"},
    "compressed size lies": {"CompressedDataSize": "12"},
    "text": {"BinaryData": "False"},
    "byte order missing": {"BinaryDataByteOrderMSB": ""},
    "byte order unclear": {"BinaryDataByteOrderMSB": "Perhaps"},
    "slope": {"ElementToIntensityFunctionSlope": "2"},
    "another object": {"ObjectType": "Tube"},
    "name of 300 letters": {"Name": "A" * 300},
    "list": {"ElementDataFile": "LIST"},
    "pattern": {"ElementDataFile": "x%03d.raw 1 9 1"},
    "outside": {"ElementDataFile": "../x.raw"},
    "device": {"ElementDataFile": "/dev/zero"},
    "url": {"ElementDataFile": "http://127.0.0.1:9/x.raw"},
    "itself": {"ElementDataFile": "case.mha"},
}


@pytest.mark.parametrize("fault", REJECTED)
def test_a_header_that_breaks_a_rule_is_refused(tmp_path, fault):
    path = put(tmp_path, "case.mha", meta(scan(), **REJECTED[fault]))

    with pytest.raises(VolumeError) as caught:
        read_volume(path)

    assert "\n" not in caught.value.what


@pytest.mark.parametrize("name", ["TransformMatrix", "Offset", "ElementSpacing"])
def test_a_misspelt_field_is_never_passed_over(tmp_path, name):
    raw = meta(scan()).replace(name.encode(), name.encode()[:-1] + b"q")

    with pytest.raises(VolumeError, match="no known field"):
        read_volume(put(tmp_path, "case.mha", raw))


@pytest.mark.parametrize("extra", ["NDims = 3\n", "no field\n", "Comment = " + "x" * 70_000 + "\n"])
def test_a_line_that_is_twice_there_no_field_or_endless_is_refused(tmp_path, extra):
    with pytest.raises(VolumeError):
        read_volume(put(tmp_path, "case.mha", meta(scan(), extra=extra)))
