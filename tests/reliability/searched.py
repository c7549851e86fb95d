"""Names looked for in whatever a program wrote: as any text, compressed or inside containers."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401 - registers the filters of a store
import numpy as np

ENCODINGS = ("utf-8", "latin-1", "utf-16-le", "utf-16-be", "utf-32-le")


def found_names(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Which names occur, and where first.

    Looked for are whole names and family names, in any case, in several encodings, in the paths
    and bytes of all files: as they are, unpacked from gzip, from PNG chunks and from HDF5.
    """
    spelled = {
        name: {part.encode(code).lower() for code in ENCODINGS for part in _parts(name)}
        for name in names
    }
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        shown = str(path.relative_to(folder))
        for where, content in [("its path", shown.encode()), *_contents(path)]:
            lower = content.lower()
            for name, spellings in spelled.items():
                if name not in found and any(spelling in lower for spelling in spellings):
                    found[name] = f"{shown}: {where}"
    return found


def _parts(name: str) -> list[str]:
    return [name, name.partition("^")[0]]


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_symlink():
        yield "where it points", str(path.readlink()).encode()
        return
    if not path.is_file():
        return
    raw = path.read_bytes()
    yield "as it is", raw
    if raw.startswith(b"\x1f\x8b"):
        yield "unpacked", zlib.decompressobj(47).decompress(raw)
    elif raw.startswith(b"\x89PNG"):
        yield from _png(raw)
    elif raw.startswith(b"\x89HDF"):
        yield from _hdf5(path)


def _png(raw: bytes) -> Iterator[tuple[str, bytes]]:
    place, pixels = 8, b""
    while place < len(raw):
        size, kind = struct.unpack(">I4s", raw[place : place + 8])
        data = raw[place + 8 : place + 8 + size]
        place += size + 12
        if kind == b"IDAT":
            pixels += data
        elif kind in (b"zTXt", b"iCCP", b"iTXt"):
            for start in range(len(data)):
                if data[start : start + 1] == b"\x78":
                    try:
                        yield kind.decode(), zlib.decompressobj().decompress(data[start:])
                    except zlib.error:
                        continue
    yield "its pixels", zlib.decompress(pixels)


def _hdf5(path: Path) -> Iterator[tuple[str, bytes]]:
    with h5py.File(path, "r") as file:
        items: list[tuple[str, h5py.Group | h5py.Dataset]] = [("/", file)]
        file.visititems(lambda name, item: items.append((name, item)))
        for name, item in items:
            yield "a name in it", name.encode()
            for key, value in item.attrs.items():
                yield f"attribute {key}", f"{key} {value}".encode()
            if isinstance(item, h5py.Dataset):
                yield f"data set {name}", np.asarray(item[()]).tobytes()


def pack_check(name: str, folder: Path) -> None:
    """Leaves a name in each kind of container that is searched, to see that it is found."""
    with h5py.File(folder / "a.h5", "w") as file:
        text = np.frombuffer(name.encode(), np.uint8)
        file.create_dataset("x", data=text, compression="gzip")
    (folder / "b.gz").write_bytes(gzip.compress(name.encode("utf-16-le")))
    chunk = b"iTXtk\0\1\0\0\0" + zlib.compress(name.encode())
    ends = [b"IDAT" + zlib.compress(b"0"), b"IEND"]
    chunks = [struct.pack(">I", len(c) - 4) + c + bytes(4) for c in (chunk, *ends)]
    (folder / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
