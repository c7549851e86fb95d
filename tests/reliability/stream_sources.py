"""Good files of known volumes, in every wrapping that has a stream, and what they must read as."""

from __future__ import annotations

import functools
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mim3d.data.files import ReadWarning, read_volume
from mim3d.data.volume import Volume
from mim3d.foundation.errors import VolumeError
from mim3d.foundation.randomness import generator
from tests.data.files.making import AFFINE, meta, nifti, nrrd, scan, zipped

SMALL, LARGE = (11, 13, 7), (64, 56, 48)


@dataclass(frozen=True)
class Source:
    """A good file, or two of them.

    Args:
        name: the file that is read.
        raw: the bytes of the file that holds the stream.
        start: where the stream begins in them.
        stream_name: the file that holds the stream.
        header: the bytes of the header where it is a file of its own.
        is_checked: whether a check value stands over every voxel.
    """

    name: str
    raw: bytes
    start: int
    stream_name: str = ""
    header: bytes = b""
    is_checked: bool = True

    def put(self, folder: Path, raw: bytes) -> Path:
        """Writes the file with another stream; the path that is read."""
        path = folder / self.name
        if self.header:
            path.write_bytes(self.header)
        (folder / (self.stream_name or self.name)).write_bytes(raw)
        return path


@functools.cache
def truth(shape: tuple[int, int, int], seed: int) -> NDArray[np.int16]:
    """The voxels of the files: a slope under noise of about seven bits."""
    noise = generator(seed, *shape, "truth").normal(0, 40, shape)
    return (scan(shape) + noise).astype(np.int16)


@functools.cache
def compressed(shape: tuple[int, int, int], seed: int) -> tuple[Source, ...]:
    """Files whose voxels stand under a check value; those of `LARGE` have more than 100 kB."""
    voxels = truth(shape, seed)
    raw = nifti(voxels)
    third = len(raw) // 3
    members = b"".join(zipped(raw[at : at + third]) for at in range(0, len(raw), third))
    plain = voxels.tobytes(order="F")
    detached = nrrd(voxels, encoding="gzip", data_file="x.raw.gz").split(b"\n\n")[0] + b"\n\n"
    local = b"ElementDataFile = LOCAL\n"
    pair = nifti(voxels, change=_as_pair)
    return (
        Source("a.nii.gz", zipped(raw), 0),
        Source("b.nii.gz", zipped(raw, 1), 0),
        Source("c.nii.gz", members, 0),
        Source("d.nii.gz", zipped(nifti(voxels, version=2)), 0),
        Source("e.nii.gz", _blocks(raw), 0),
        Source("f.nii.gz", zipped(raw, 0), 0),
        Source("g.hdr", zipped(pair[352:]), 0, "g.img.gz", pair[:352]),
        Source("h.nrrd", nrrd(voxels), nrrd(voxels).index(b"\n\n") + 2),
        Source("i.nhdr", zipped(plain), 0, "x.raw.gz", detached),
        Source("j.mha", meta(voxels), meta(voxels).index(local) + len(local)),
        Source("k.mha", _unsized(voxels), _unsized(voxels).index(local) + len(local)),
    )


@functools.cache
def plain(shape: tuple[int, int, int], seed: int) -> tuple[Source, ...]:
    """Files without compression, and text."""
    voxels = truth(shape, seed)
    written = {
        "l.nii": (nifti(voxels), 0),
        "m.nii": (nifti(voxels, version=2, order=">"), 0),
        "n.nrrd": (nrrd(voxels, encoding="raw"), -voxels.nbytes),
        "o.nrrd": (nrrd(voxels, encoding="ascii"), 0),
        "p.mha": (meta(voxels, compressed=False), 0),
    }
    return tuple(
        Source(name, raw, start % len(raw), is_checked=False)
        for name, (raw, start) in written.items()
    )


def verdict(path: Path, expected: NDArray[np.int16]) -> str:
    """`equal`, `refused`, or `wrong`: what the reader makes of a file that stands for `expected`.

    Raises:
        MemoryError: the reader asked for more than there is.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ReadWarning)
        try:
            volume = read_volume(path)
        except VolumeError as error:
            if error.code == "memory":
                raise MemoryError from None
            return "refused"
    return "equal" if is_truth(volume, expected) else "wrong"


def is_truth(volume: Volume, expected: NDArray[np.int16]) -> bool:
    """Whether voxels, their type and their place are those of the sources."""
    voxels = volume.voxels
    same = voxels.shape == (1, *expected.shape) and voxels.dtype == np.int16
    return same and bool((voxels[0] == expected).all()) and np.allclose(volume.affine, AFFINE)


def _as_pair(header: dict[str, object]) -> None:
    header["magic"] = b"ni1"
    header["vox_offset"] = 0


def _blocks(raw: bytes) -> bytes:
    """One member of many deflate blocks that begin at whole bytes, under a full header."""
    squeeze = zlib.compressobj(6, zlib.DEFLATED, -15)
    parts = [raw[at : at + 9_000] for at in range(0, len(raw), 9_000)]
    body = b"".join(squeeze.compress(part) + squeeze.flush(zlib.Z_FULL_FLUSH) for part in parts)
    head = b"\x1f\x8b\x08\x1e" + bytes(6) + struct.pack("<H", 3) + b"abcname\0comment\0"
    head += struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    return head + body + squeeze.flush() + struct.pack("<2I", zlib.crc32(raw), len(raw))


def _unsized(voxels: NDArray[np.int16]) -> bytes:
    return meta(voxels, CompressedDataSize="")
