"""The few elements of a DICOM file that decide about voxels and place, by own code.

Source: DICOM PS3.5 (encoding) and PS3.10 (file format). Elements are walked, not loaded: values of
no interest are passed over by their length, sequences by their items. Where the pixels lie and
whether they are all there is found without decoding them.
"""

from __future__ import annotations

import io
import math
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from mim3d.data.files.streams import open_regular
from mim3d.foundation.errors import VolumeError

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
DIRECTORY = "1.2.840.10008.1.3.10"
LONG_FORMS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT",
              b"UV"}  # fmt: skip
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
PIXELS = (0x7FE0, 0x0010)
TEXTS = {
    (0x0002, 0x0002): "media_class",
    (0x0002, 0x0010): "syntax",
    (0x0008, 0x0016): "object_class",
    (0x0008, 0x0060): "modality",
    (0x0020, 0x000E): "series",
    (0x0028, 0x0004): "photometric",
}
NUMBERS = {
    (0x0018, 0x0050): "thickness",
    (0x0018, 0x0088): "between",
    (0x0020, 0x0032): "position",
    (0x0020, 0x0037): "orientation",
    (0x0028, 0x0008): "frames",
    (0x0028, 0x0030): "spacing",
    (0x0028, 0x1052): "intercept",
    (0x0028, 0x1053): "slope",
}
SHORTS = {
    (0x0028, 0x0002): "samples",
    (0x0028, 0x0010): "rows",
    (0x0028, 0x0011): "columns",
    (0x0028, 0x0100): "bits_allocated",
    (0x0028, 0x0101): "bits_stored",
    (0x0028, 0x0102): "high_bit",
    (0x0028, 0x0103): "signed",
}
LUT = (0x0028, 0x3000)
MOST_ELEMENTS = 100_000
DEEPEST = 16
LONGEST_VALUE = 1024

Tag = tuple[int, int]


@dataclass
class Tags:
    """What was found in one file; lists are empty and texts "" where the element is absent.

    Attributes:
        path: the file.
        texts: by the names of `TEXTS`, stripped.
        numbers: by the names of `NUMBERS` and `SHORTS`.
        has_lut: whether a modality look-up table is there.
        pixels: where the bytes of the pixels lie, as (start, length); several for a compressed
            frame in fragments; None where the file has no pixels.
    """

    path: Path
    texts: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, list[float]] = field(default_factory=dict)
    has_lut: bool = False
    pixels: list[tuple[int, int]] | None = None

    def text(self, name: str) -> str:
        """A text, empty where the element is absent."""
        return self.texts.get(name, "")

    def whole(self, name: str, default: int = -1) -> int:
        """A whole number, or the default where it is absent."""
        found = self.numbers.get(name) or [float(default)]
        if len(found) != 1 or not float(found[0]).is_integer():
            raise _damaged(self.path, f"an impossible `{name}`")
        return int(found[0])

    def several(self, name: str, count: int) -> list[float]:
        """Exactly `count` finite numbers, or none at all where the element is absent."""
        found = self.numbers.get(name) or []
        if found and (len(found) != count or not all(map(math.isfinite, found))):
            raise _damaged(self.path, f"an impossible `{name}`")
        return found

    @property
    def is_native(self) -> bool:
        """Whether the pixels are not compressed."""
        return self.text("syntax") in (IMPLICIT, EXPLICIT, BIG)


def has_preamble(path: Path) -> bool:
    """Whether a file says that it is DICOM (PS3.10, 7.1)."""
    with open_regular(path) as file:
        return file.read(132)[128:] == b"DICM"


def read_tags(path: Path) -> Tags:
    """Walks a file up to its pixels.

    Raises:
        VolumeError: the file is damaged, cut short, or in an encoding that is not read.
    """
    tags = Tags(path)
    with io.BufferedReader(open_regular(path)) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(132)
        walker = Walker(file, size, path)
        walker.collect(tags, until_group=3)
        syntax = tags.text("syntax")
        if not syntax or syntax == DEFLATED:
            raise _damaged(path, "no transfer syntax that is read")
        walker.explicit = syntax != IMPLICIT
        walker.order = ">" if syntax == BIG else "<"
        walker.collect(tags, until_group=0x10000)
    return tags


class Walker:
    """Steps through the elements of an open file."""

    def __init__(self, file: BinaryIO, size: int, path: Path) -> None:
        self._file = file
        self._size = size
        self._path = path
        self._count = 0
        self.explicit = True
        self.order = "<"

    def collect(self, tags: Tags, until_group: int) -> None:
        """Keeps the elements of interest up to a group, or to the end of the pixels."""
        last: Tag = (0, 0)
        while self._file.tell() < self._size:
            place = self._file.tell()
            if self._peek_group() >= until_group:
                self._file.seek(place)
                return
            self._file.seek(place)
            tag, form, length = self._head()
            if tag <= last and tag not in (ITEM_END, SEQUENCE_END):
                raise _damaged(self._path, "elements out of order")
            last = tag
            if tag == PIXELS:
                if (length == UNDEFINED) == tags.is_native:
                    raise _damaged(self._path, "pixels in a form that its encoding does not have")
                tags.pixels = self._pixels(length)
                return
            self._keep(tags, tag, form, length)

    def _keep(self, tags: Tags, tag: Tag, form: bytes, length: int) -> None:
        if tag == LUT:
            tags.has_lut = True
        wanted = tag in TEXTS or tag in NUMBERS or tag in SHORTS
        if not wanted or length == UNDEFINED:
            self._pass_over(length, form, 0)
            return
        if length > LONGEST_VALUE:
            raise _damaged(self._path, "an element far too long")
        value = self._read(length)
        if tag in TEXTS:
            tags.texts[TEXTS[tag]] = value.decode("latin-1").strip("\0 ")
        elif tag in NUMBERS:
            tags.numbers[NUMBERS[tag]] = self._decimals(value)
        elif length:
            if length != 2:
                raise _damaged(self._path, "a size of another form")
            tags.numbers[SHORTS[tag]] = [float(struct.unpack(f"{self.order}H", value)[0])]

    def _decimals(self, value: bytes) -> list[float]:
        text = value.decode("latin-1").strip("\0 ")
        try:
            if "_" in text:
                raise ValueError
            return [float(part) for part in text.split("\\")] if text else []
        except ValueError:
            raise _damaged(self._path, "a number that is none") from None

    def _pixels(self, length: int) -> list[tuple[int, int]]:
        """Native: one range. Compressed: the fragments behind the offset table (PS3.5, A.4)."""
        start = self._file.tell()
        if length != UNDEFINED:
            if start + length > self._size:
                raise _cut(self._path, self._size - start, length)
            return [(start, length)]
        fragments: list[tuple[int, int]] = []
        while True:
            tag, _, length = self._item()
            if tag == SEQUENCE_END:
                return fragments[1:]
            if tag != ITEM or length == UNDEFINED:
                raise _damaged(self._path, "fragments out of order")
            fragments.append((self._file.tell(), length))
            self._seek(length)

    def _pass_over(self, length: int, form: bytes, depth: int) -> None:
        if length != UNDEFINED:
            self._seek(length)
            return
        if depth > DEEPEST:
            raise _damaged(self._path, "sequences too deep")
        # PS3.5, 6.2.2: UN of undefined length is encoded as implicit little endian.
        explicit, order = self.explicit, self.order
        if form == b"UN":
            self.explicit, self.order = False, "<"
        while True:
            tag, _, length = self._item()
            if tag == SEQUENCE_END:
                break
            if tag != ITEM:
                raise _damaged(self._path, "a sequence without items")
            if length != UNDEFINED:
                self._seek(length)
                continue
            while True:
                tag, inner, length = self._head()
                if tag == ITEM_END:
                    break
                self._pass_over(length, inner, depth + 1)
        self.explicit, self.order = explicit, order

    def _peek_group(self) -> int:
        return int(struct.unpack(f"{self.order}H", self._read(2))[0])

    def _head(self) -> tuple[Tag, bytes, int]:
        """Tag, value representation and length of the next element."""
        self._count += 1
        if self._count > MOST_ELEMENTS:
            raise _damaged(self._path, "too many elements")
        group, element = struct.unpack(f"{self.order}HH", self._read(4))
        if group == 0xFFFE or not self.explicit:
            return (group, element), b"", self._number("I")
        form = self._read(2)
        if not form.isalpha() or not form.isupper():
            raise _damaged(self._path, "an element of no known form")
        if form in LONG_FORMS:
            self._read(2)
            return (group, element), form, self._number("I")
        return (group, element), form, self._number("H")

    def _item(self) -> tuple[Tag, bytes, int]:
        group, element = struct.unpack(f"{self.order}HH", self._read(4))
        return (group, element), b"", self._number("I")

    def _number(self, form: str) -> int:
        raw = self._read(struct.calcsize(form))
        return int(struct.unpack(f"{self.order}{form}", raw)[0])

    def _read(self, count: int) -> bytes:
        value = self._file.read(count)
        if len(value) != count:
            raise _cut(self._path, len(value), count)
        return value

    def _seek(self, count: int) -> None:
        place = self._file.tell() + count
        if place > self._size:
            raise _cut(self._path, self._size - self._file.tell(), count)
        self._file.seek(place)


def _damaged(path: Path, what: str) -> VolumeError:
    return VolumeError(
        f"its slice `{path.name}` has {what}", remedy="export the series again", code="damaged"
    )


def _cut(path: Path, found: int, needed: int) -> VolumeError:
    return VolumeError(
        f"its slice `{path.name}` is cut short ({found} of {needed} bytes are there)",
        remedy="copy or export the series again",
        code="cut-short",
    )
