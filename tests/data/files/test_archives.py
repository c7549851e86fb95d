"""Rows of NumPy archives against `numpy.load`, and archives that lie or are damaged."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from archives import SHAPE, shapes, write_archive

from mim3d.config.read import ReadConfig
from mim3d.data.cohort import read_cohort
from mim3d.data.files import content_key, read_geometry, read_volume, write_label
from mim3d.data.files.archive_rows import archive_of, is_there, row_path
from mim3d.data.files.archives import Archive
from mim3d.foundation.errors import VolumeError

pytestmark = pytest.mark.filterwarnings("ignore::mim3d.data.files.ReadWarning")


def _numbers(count: int, dtype: str) -> np.ndarray:
    """`n x y z`, every number another as far as the type goes."""
    whole = np.arange(count * np.prod(SHAPE)).reshape(count, *SHAPE)
    return (whole % 2).astype(bool) if dtype == "?" else (whole % 30_011).astype(dtype)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["u1", "?", "<i2", ">u2", "<i4", "<f4", ">f8", "<i8"])
def test_rows_are_what_numpy_loads_in_any_order_of_asking(tmp_path, dtype, compressed):
    path = tmp_path / "a.npz"
    write_archive(path, compressed=compressed, train_images=_numbers(6, dtype),
                  val_images=_numbers(3, dtype)[::-1].copy())  # fmt: skip
    oracle = np.load(path)

    for part, number in [("train", 4), ("train", 5), ("train", 0), ("val", 2), ("train", 2)]:
        volume = read_volume(row_path(path, part, number))

        assert volume.voxels.shape == (1, *SHAPE)
        assert (volume.voxels[0] == oracle[f"{part}_images"][number]).all()
        assert (volume.affine == np.eye(4)).all()
        assert [note.code for note in volume.notes] == ["no-grid"]


def test_a_picture_is_a_volume_one_voxel_thick_and_colours_are_channels(tmp_path):
    grey = np.arange(2 * 9 * 5, dtype=np.uint8).reshape(2, 9, 5)
    colours = np.arange(2 * 9 * 5 * 3).reshape(2, 9, 5, 3).astype(np.uint16)
    path = write_archive(tmp_path / "a.npz", train_images=grey, val_images=colours)

    one = read_volume(row_path(path, "train", 1))
    three = read_volume(row_path(path, "val", 1))

    assert (one.voxels[0, :, :, 0] == grey[1]).all()
    assert one.shape == three.shape == (9, 5, 1)
    assert three.channels == 3
    for channel in range(3):
        assert (three.voxels[channel, :, :, 0] == colours[1, :, :, channel]).all()


def test_what_is_written_for_a_row_has_its_shape(tmp_path):
    path = write_archive(tmp_path / "a.npz", train_images=shapes(2), val_images=shapes(1)[..., 3])

    for name in ("train_00001", "val_00000"):
        volume = read_volume(path / name)
        write_label(tmp_path / f"{name}.nii.gz", volume.voxels[0] // 255, volume)
        written = nib.load(tmp_path / f"{name}.nii.gz")

        expected = np.load(path)[f"{name[:-6]}_images"][int(name[-5:])] // 255
        assert (np.asarray(written.dataobj).squeeze() == expected).all()
        assert (written.affine == np.eye(4)).all()


def test_the_header_of_a_row_is_read_without_its_voxels(tmp_path):
    path = write_archive(tmp_path / "a.npz", train_images=_numbers(2, "<i2"))

    geometry = read_geometry(row_path(path, "train", 1))

    assert (geometry.shape, geometry.channels, geometry.dtype) == (SHAPE, 1, "int16")
    assert geometry.spacing_mm == (1, 1, 1)


def test_values_that_are_no_numbers_are_settled_as_in_every_file(tmp_path):
    images = _numbers(2, "<f4")
    images[1, 3, 4, 5] = np.nan
    path = write_archive(tmp_path / "a.npz", train_images=images)

    volume = read_volume(row_path(path, "train", 1))

    assert np.isfinite(volume.voxels).all()
    assert volume.unusable.sum() == 1
    assert volume.unusable[0, 3, 4, 5]


def test_a_row_is_known_by_its_own_bytes(tmp_path):
    """Not by those of its neighbours, and however they are compressed."""
    images = shapes(4)
    one = write_archive(tmp_path / "a.npz", train_images=images)
    other = write_archive(tmp_path / "b.npz", compressed=False, val_images=images[[2, 0]])

    keys = [content_key(row_path(one, "train", number)) for number in range(4)]

    assert len(set(keys)) == 4
    assert content_key(row_path(other, "val", 0)) == keys[2]
    assert content_key(row_path(other, "val", 1)) == keys[0]
    written = b"|u1 (11, 13, 7)\n" + images[2].tobytes()
    assert keys[2] == hashlib.sha256(written).hexdigest()


def test_an_archive_that_was_replaced_is_read_anew(tmp_path):
    path = tmp_path / "a.npz"
    for seed in (0, 1):
        images = shapes(3, seed)
        write_archive(path, train_images=images)
        os.utime(path, ns=(seed, seed))
        assert (read_volume(row_path(path, "train", 2)).voxels[0] == images[2]).all()


def test_what_a_row_is_is_told_by_its_path(tmp_path):
    path = write_archive(tmp_path / "a.npz")
    (tmp_path / "folder.npz").mkdir()

    assert archive_of(path / "train_00004") == path
    assert archive_of(path) is None
    assert archive_of(tmp_path / "folder.npz/train_00004") is None
    assert archive_of(path / "train.nii") is None
    assert is_there(path / "train_00004")
    assert not is_there(tmp_path / "gone.npz/train_00004")
    with pytest.raises(VolumeError, match="no such row"):
        read_volume(path / "train_00005")
    with pytest.raises(VolumeError, match="no such file"):
        read_volume(tmp_path / "gone.npz/train_00004")


def test_a_row_larger_than_the_limit_is_refused_unread(tmp_path):
    path = write_archive(tmp_path / "a.npz", train_images=np.zeros((2, 200, 200, 100), np.uint8))

    with pytest.raises(VolumeError, match="the limit is"):
        read_volume(row_path(path, "train", 0), ReadConfig(max_gib=0.001))


# Archives that lie


def _zip(path: Path, members: dict[str, bytes], **settings) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, **settings)
    return path


def _npy(array: np.ndarray, declared: str | None = None) -> bytes:
    """An `.npy` file, its header's shape perhaps another than its content's."""
    content = io.BytesIO()
    np.save(content, array)
    raw = content.getvalue()
    if declared is None:
        return raw
    size = struct.unpack_from("<H", raw, 8)[0]
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {declared}, }}".ljust(size - 1)
    return raw[:10] + text.encode() + b"\n" + raw[10 + size :]


class _Planted:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_nothing_in_an_archive_is_unpickled(tmp_path):
    objects = np.empty((2, 1, 1, 1), object)
    objects[:] = _Planted(tmp_path / "made")
    path = write_archive(tmp_path / "a.npz", train_images=objects)

    with pytest.raises(VolumeError, match="no array of plain numbers"):
        read_cohort(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("declared", "why"),
    [("(2, 7, 8, 9)", "another size"), ("(10**9, 7, 8, 9)", "header"), ("(2, 7, 8, -9)", "size"),
     ("(9999999999, 7, 8, 9)", "another size"), ("()", "no array"),
     ("(True, 7, 8, 9)", "another size"),
     ("__import__('os')", "header"), ("(" * 500 + ")" * 500, "header")],
)  # fmt: skip
def test_a_header_that_declares_another_shape_is_refused(tmp_path, declared, why):
    if len(declared) > 60:
        raw = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(declared)) + declared.encode()
    else:
        raw = _npy(np.zeros((3, 7, 8, 9), np.uint8), declared)
    path = _zip(tmp_path / "a.npz", {"train_images.npy": raw})

    with pytest.raises(VolumeError, match=why):
        read_cohort(path)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    """Two rows of 1.5 GiB in 80 kB, and 600,000 rows of a byte."""
    path = tmp_path / "a.npz"
    head = io.BytesIO()
    shape = (2, 1024, 1024, 1536)
    np.lib.format.write_array_header_1_0(
        head, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    zeros = bytes(1 << 24)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("train_images.npy", head.getvalue() + zeros)
    raw = bytearray(path.read_bytes())
    place = raw.rindex(b"PK\x01\x02")
    struct.pack_into("<I", raw, place + 24, len(head.getvalue()) + int(np.prod(shape)))
    path.write_bytes(raw)

    with pytest.raises(VolumeError, match="more than it can hold"):
        read_cohort(path)
    many = write_archive(tmp_path / "b.npz", train_images=np.zeros((600_000, 1, 1, 1), np.uint8))
    with pytest.raises(VolumeError, match="at most 500,000 rows"):
        read_cohort(many)


@pytest.mark.parametrize("kind", ["fortran", "twice", "encrypted", "bzip2", "words", "no list"])
def test_archives_of_another_kind_are_refused_with_a_reason(tmp_path, kind):
    path = tmp_path / "a.npz"
    images = shapes(2)
    if kind == "fortran":
        write_archive(path, train_images=np.asfortranarray(images))
    elif kind == "twice":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("train_images.npy", _npy(images))
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr("train_images.npy", _npy(images))
    elif kind == "encrypted":
        _zip(path, {"train_images.npy": _npy(images)})
        raw = bytearray(path.read_bytes())
        raw[raw.rindex(b"PK\x01\x02") + 8] |= 1
        path.write_bytes(raw)
    elif kind == "bzip2":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
            archive.writestr("train_images.npy", _npy(images))
    elif kind == "words":
        write_archive(path, train_images=np.array([["a", "b"]]))
    else:
        write_archive(path, images=images)

    with pytest.raises(VolumeError) as caught:
        read_cohort(path)

    expected = {"fortran": "no array of plain numbers", "twice": "an array twice",
                "encrypted": "encrypted", "bzip2": "another method", "words": "no array of plain",
                "no list": "no array `train_images`"}  # fmt: skip
    assert expected[kind] in caught.value.what
    assert caught.value.where == str(path)


def test_a_damaged_archive_is_refused_or_reads_as_it_was(tmp_path):
    """Every 7th byte changed, and every 41st end: never another voxel, never another exception."""
    path = write_archive(tmp_path / "a.npz", train_images=shapes(3), train_labels=np.arange(3))
    whole = path.read_bytes()
    damaged = [whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :]
               for place in range(0, len(whole), 7)]  # fmt: skip
    damaged += [whole[:end] for end in range(0, len(whole), 41)]
    refused = 0

    for content in damaged:
        path.write_bytes(content)
        try:
            cohort = read_cohort(path)
        except VolumeError:
            refused += 1
            continue
        assert [case.targets["label"] for case in cohort.cases] == [0, 1, 2]
        with Archive(path) as archive:
            rows = [archive.row("train_images", number) for number in range(3)]
        assert rows == [volume.tobytes() for volume in shapes(3)]

    assert refused > 0.6 * len(damaged)
