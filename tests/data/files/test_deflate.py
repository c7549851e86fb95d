from __future__ import annotations

import gzip
import itertools
import struct
import zlib

import numpy as np
import pytest

from mim3d.data.files import deflate as deflate_module
from mim3d.data.files import read_volume
from mim3d.data.files.deflate import DeflateStream
from mim3d.data.files.streams import open_regular
from mim3d.foundation.errors import VolumeError

from .making import nifti, put, scan, zipped

BIG = (48, 40, 36)
"""More than one buffer of a decoder when compressed."""


def everything(stream) -> bytes:
    buffer = bytearray(1 << 20)
    found = bytearray()
    while count := stream.fill(memoryview(buffer)):
        found += buffer[:count]
    stream.finish(0)
    return bytes(found)


@pytest.fixture(params=["isal or zlib", "zlib"])
def _both_inflaters(request, monkeypatch):
    if request.param == "zlib":
        monkeypatch.setattr(deflate_module, "DEFLATE", zlib)


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


def test_the_two_inflaters_agree_on_every_level(tmp_path, monkeypatch):
    raw = nifti(scan(BIG))
    for level in range(10):
        path = put(tmp_path, f"{level}.nii.gz", gzip.compress(raw, level))
        fast = read_volume(path)
        with monkeypatch.context() as patch:
            patch.setattr(deflate_module, "DEFLATE", zlib)
            assert (read_volume(path).voxels == fast.voxels).all()


def test_a_stream_cut_in_its_middle_says_how_much_is_there(tmp_path):
    stream = zipped(nifti(scan(BIG)))

    with pytest.raises(VolumeError, match=r"cut short: [45]\d(\.\d)? % of its voxels are there"):
        read_volume(put(tmp_path, "case.nii.gz", stream[: len(stream) // 2]))


def test_a_member_of_a_zlib_stream_with_too_large_a_window_is_refused(tmp_path):
    raw = bytearray(zlib.compress(b"voxels" * 50))
    raw[:2] = b"\x88\x1c"

    with open_regular(put(tmp_path, "x", bytes(raw))) as file, pytest.raises(VolumeError):
        everything(DeflateStream(file, wrapper="zlib"))


@pytest.mark.usefixtures("_both_inflaters")
def test_endless_empty_members_are_refused_and_a_few_thousand_read(tmp_path):
    empty, whole = gzip.compress(b"", mtime=0), zipped(b"voxels")

    with open_regular(put(tmp_path, "some.gz", empty * 5000 + whole + empty * 5000)) as file:
        assert everything(DeflateStream(file)) == b"voxels"
    with (
        open_regular(put(tmp_path, "endless.gz", whole + empty * 100_000)) as file,
        pytest.raises(VolumeError, match="empty members"),
    ):
        everything(DeflateStream(file))


@pytest.mark.parametrize("length", [0, 3000, 5000])
def test_the_name_in_a_gzip_header_is_stepped_over_up_to_4096_letters(tmp_path, length):
    member = zipped(b"voxels")
    named = b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * length + b"\0" + member[10:]

    with open_regular(put(tmp_path, "x.gz", named * 3)) as file:
        if length < 4096:
            assert everything(DeflateStream(file)) == b"voxels" * 3
        else:
            with pytest.raises(VolumeError, match="text without end"):
                everything(DeflateStream(file))
