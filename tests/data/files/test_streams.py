from __future__ import annotations

import os
import struct

import pytest

from mim3d.data.files import ReadConfig, read_volume
from mim3d.data.files.streams import PlainStream, neighbour, open_regular
from mim3d.foundation.errors import VolumeError

from .making import codes, nifti, put, quietly, scan, zipped


def test_a_stream_that_ends_in_order_but_early_says_how_much_is_there(tmp_path):
    raw = nifti(scan())
    half = 352 + scan().nbytes // 2

    with pytest.raises(VolumeError, match=r"cut short: 50 % .*\(1001 of 2002 bytes\)"):
        read_volume(put(tmp_path, "case.nii.gz", zipped(raw[:half])))
    with pytest.raises(VolumeError, match="cut short: 50 %"):
        read_volume(put(tmp_path, "case.nii", raw[:half]))


def test_bytes_behind_the_stream_are_noted_and_zeros_are_not(tmp_path):
    stream = zipped(nifti(scan()))

    garbage = quietly(put(tmp_path, "garbage.nii.gz", stream + b"garbage"))
    zeros = read_volume(put(tmp_path, "zeros.nii.gz", stream + bytes(100)))

    assert codes(garbage) == {"bytes-behind"}
    assert zeros.notes == ()
    assert (garbage.voxels == zeros.voxels).all()


@pytest.mark.parametrize("squeeze", [bytes, zipped])
def test_zeros_inside_are_noted_and_anything_else_refused(tmp_path, squeeze):
    raw = nifti(scan())
    name = "case.nii" if squeeze is bytes else "case.nii.gz"

    padded = quietly(put(tmp_path, name, squeeze(raw + bytes(512))))

    assert codes(padded) == {"zeros-behind"}
    for more in (b"\0\1", bytes(2 << 20), raw[352:]):
        with pytest.raises(VolumeError, match="more"):
            read_volume(put(tmp_path, name, squeeze(raw + more)))


def test_zeros_that_make_up_whole_slices_mean_that_the_header_lies(tmp_path):
    voxels = scan()
    voxels[:, :, -2:] = 0
    raw = bytearray(nifti(voxels))
    raw[46:48] = struct.pack("<h", 5)

    with pytest.raises(VolumeError, match="holds 2002 bytes of voxels, more than the 1430"):
        read_volume(put(tmp_path, "case.nii", bytes(raw)))


def test_a_declaration_beyond_what_deflate_can_hold_is_refused_before_it_is_allocated(tmp_path):
    raw = bytearray(nifti(scan()))
    raw[42:48] = struct.pack("<3h", 1000, 1000, 1000)

    with pytest.raises(VolumeError, match="more than it can hold"):
        read_volume(put(tmp_path, "case.nii.gz", zipped(bytes(raw))))


def test_the_limit_counts_the_larger_of_stored_and_kept_bytes(tmp_path):
    def scaled(header):
        header["scl_slope"] = 0.5

    limit = ReadConfig(max_gib=3000 / 2**30)
    plain = put(tmp_path, "plain.nii", nifti(scan()))
    widened = put(tmp_path, "widened.nii", nifti(scan(), change=scaled))

    assert read_volume(plain, limit).voxels.nbytes == 2002
    with pytest.raises(VolumeError, match=r"max_gib|limit"):
        read_volume(widened, limit)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "absent", "null byte"])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path, kind):
    path = tmp_path / "case.nii.gz"
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "device":
        path.symlink_to("/dev/zero")
    if kind == "folder":
        path.mkdir()
    if kind == "null byte":
        path = tmp_path / "a\0b.nii"

    with pytest.raises(VolumeError):
        read_volume(path)


@pytest.mark.parametrize(
    "name",
    [
        "../outside/x.raw",
        "/etc/passwd",
        "..",
        "",
        "a\\b.raw",
        "link.raw",
        "h.mhd",
        "absent",
        "a\nb",
    ],
)
def test_data_files_lie_beside_their_header(tmp_path, name):
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "outside").mkdir()
    put(tmp_path / "outside", "x.raw", b"secret")
    (folder / "link.raw").symlink_to(tmp_path / "outside" / "x.raw")
    header = put(folder, "h.mhd", b"")

    with pytest.raises(VolumeError):
        neighbour(header, name)


def test_a_neighbour_by_a_link_within_the_folder_is_found(tmp_path):
    header, data = put(tmp_path, "h.mhd", b""), put(tmp_path, "x.raw", b"")
    (tmp_path / "link.raw").symlink_to("x.raw")

    assert neighbour(header, "link.raw") == data.resolve()


def test_a_plain_stream_gives_what_is_behind_its_start(tmp_path):
    with open_regular(put(tmp_path, "x", b"abcdef")) as file:
        stream = PlainStream(file, 2)
        buffer = bytearray(3)
        assert stream.most() == 4
        assert stream.fill(memoryview(buffer)) == 3
        assert bytes(buffer) == b"cde"
        with pytest.raises(VolumeError, match="more than the 0"):
            stream.finish(0)


@pytest.mark.parametrize("squeeze", [bytes, zipped])
def test_zeros_behind_voxels_that_end_in_zeros_may_be_voxels_and_are_refused(tmp_path, squeeze):
    """A header of 10 x 12 x 7 over 11 x 13 x 7 voxels: a tail of zeros fits it as padding."""
    voxels = scan()
    voxels[:, :, 4:] = 0
    raw = bytearray(nifti(voxels))
    raw[42:46] = struct.pack("<2h", 10, 12)

    with pytest.raises(VolumeError, match="2002 bytes of voxels, more than the 1680"):
        read_volume(put(tmp_path, "case.nii", squeeze(bytes(raw))))
