from __future__ import annotations

import gzip
import itertools
import os
import struct
import zlib

import numpy as np
import pytest

from mim3d.data.files import ReadConfig, read_volume
from mim3d.data.files import streams as streams_module
from mim3d.data.files.streams import DeflateStream, PlainStream, neighbour, open_regular
from mim3d.foundation.errors import VolumeError

from .making import codes, nifti, put, quietly, scan, zipped

BIG = (48, 40, 36)
"""More than one buffer of a decoder when compressed."""


def everything(stream) -> bytes:
    buffer = bytearray(1 << 20)
    found = bytearray()
    while count := stream.fill(memoryview(buffer)):
        found += buffer[:count]
    stream.finish()
    return bytes(found)


@pytest.fixture(params=["isal or zlib", "zlib"])
def _both_inflaters(request, monkeypatch):
    if request.param == "zlib":
        monkeypatch.setattr(streams_module, "DEFLATE", zlib)


@pytest.mark.usefixtures("_both_inflaters")
@pytest.mark.parametrize("seed", range(20))
def test_members_split_anywhere_are_one_stream(tmp_path, seed):
    random = np.random.default_rng(seed)
    raw = random.integers(0, 20, 70_000).astype(np.uint8).tobytes()
    cuts = [0, *sorted(random.integers(0, len(raw), random.integers(0, 6)).tolist()), len(raw)]
    members = [zipped(raw[a:b], int(random.integers(0, 10))) for a, b in itertools.pairwise(cuts)]
    path = put(tmp_path, "x.gz", b"".join(members) + bytes(int(random.integers(0, 20))))

    with open_regular(path) as file:
        assert everything(DeflateStream(file)) == raw


@pytest.mark.usefixtures("_both_inflaters")
def test_header_fields_of_gzip_are_stepped_over_and_their_check_value_compared(tmp_path):
    raw, deflated = b"voxels" * 100, zlib.compress(b"voxels" * 100)[2:-4]
    head = b"\x1f\x8b\x08\x1e" + bytes(6) + struct.pack("<H", 3) + b"abc" + b"name\0comment\0"
    tail = struct.pack("<2I", zlib.crc32(raw), len(raw))
    good = head + struct.pack("<H", zlib.crc32(head) & 0xFFFF) + deflated + tail
    bad = head + struct.pack("<H", zlib.crc32(head) + 1 & 0xFFFF) + deflated + tail

    with open_regular(put(tmp_path, "good.gz", good)) as file:
        assert everything(DeflateStream(file)) == raw
    with open_regular(put(tmp_path, "bad.gz", bad)) as file, pytest.raises(VolumeError):
        everything(DeflateStream(file))


@pytest.mark.usefixtures("_both_inflaters")
@pytest.mark.parametrize("fault", ["check", "cut", "dictionary", "method", "bit"])
def test_a_damaged_zlib_stream_is_refused(tmp_path, fault):
    raw = bytearray(zlib.compress(scan(BIG).tobytes()))
    if fault == "check":
        raw[-1] ^= 1
    if fault == "cut":
        del raw[-2:]
    if fault == "dictionary":
        raw[:2] = b"\x78\xbb"
    if fault == "method":
        raw[:2] = b"\x77\x01"
    if fault == "bit":
        raw[len(raw) // 2] ^= 4

    with open_regular(put(tmp_path, "x", bytes(raw))) as file, pytest.raises(VolumeError):
        everything(DeflateStream(file, wrapper="zlib"))


def damaged(raw: bytes, fault: str) -> bytes:
    stream = bytearray(zipped(raw))
    if fault.startswith("cut at"):
        return bytes(stream[: int(len(stream) * float(fault.split()[-1]))])
    if fault.startswith("without the last"):
        return bytes(stream[: -int(fault.split()[-1])])
    if fault == "check value":
        stream[-8] ^= 1
    if fault == "size":
        stream[-4] ^= 1
    if fault == "method":
        stream[2] = 7
    if fault == "reserved flag":
        stream[3] |= 0x40
    if fault == "voxel under the old check value":
        changed = bytearray(raw)
        changed[1500] ^= 1
        stream = bytearray(zipped(bytes(changed)))
        stream[-8:] = zipped(raw)[-8:]
    if fault == "second member is garbage":
        stream += b"\x1f\x8b\x08\0" + bytes(6) + b"\xff" * 50
    if fault == "second member missing":
        stream = bytearray(zipped(raw[:9000]))
    return bytes(stream)


@pytest.mark.usefixtures("_both_inflaters")
@pytest.mark.parametrize("shape", [(11, 13, 7), BIG])
@pytest.mark.parametrize(
    "fault",
    [
        *(f"cut at {part}" for part in (0.02, 0.5, 0.9, 0.999)),
        *(f"without the last {count}" for count in (1, 4, 7, 8)),
        "check value",
        "size",
        "method",
        "reserved flag",
        "voxel under the old check value",
        "second member is garbage",
        "second member missing",
    ],
)
def test_no_voxel_of_a_damaged_stream_is_handed_out(tmp_path, shape, fault):
    if fault == "second member missing" and shape != BIG:
        shape = (21, 23, 17)
    path = put(tmp_path, "case.nii.gz", damaged(nifti(scan(shape)), fault))

    with pytest.raises(VolumeError):
        read_volume(path)


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

    with pytest.raises(VolumeError, match="more slices"):
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
        with pytest.raises(VolumeError, match="more data"):
            stream.finish()


def test_the_two_inflaters_agree_on_every_level(tmp_path, monkeypatch):
    raw = nifti(scan(BIG))
    for level in range(10):
        path = put(tmp_path, f"{level}.nii.gz", gzip.compress(raw, level))
        fast = read_volume(path)
        with monkeypatch.context() as patch:
            patch.setattr(streams_module, "DEFLATE", zlib)
            assert (read_volume(path).voxels == fast.voxels).all()
