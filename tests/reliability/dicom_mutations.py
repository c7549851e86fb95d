"""Mutations of the header of a DICOM file: of its bytes, and of what its elements say."""

from __future__ import annotations

import struct

import numpy as np

from tests.reliability.dicom_series import (
    BIG,
    EXPLICIT,
    IMPLICIT,
    PIXELS,
    RLE,
    Elements,
    encoded,
)

TEXTS = (
    b"", b" ", b"\0", b"nan", b"inf", b"-inf", b"1e308", b"-1e308\\1e308", b"1e-320", b"1e999",
    b"0", b"-1", b"1", b"0.5", b"2", b"1_0", b"0x10", b"1,5", b"\\", b"\\\\\\", b"1\\2\\3",
    b"1\\0\\0\\0\\1\\0",
    b"0\\0\\0\\0\\0\\0", b"1e200\\0\\0\\0\\1e200\\0", b"1e-200\\1e-200", b"9" * 1000, b"1\\" * 500,
    b"MONOCHROME1", b"RGB", b"\xff\xfe\x00", b"1" + b" " * 900,
)  # fmt: skip
SHORTS = (0, 1, 2, 3, 7, 8, 9, 12, 15, 16, 17, 32, 64, 255, 256, 4096, 32767, 32768, 65535)
FORMS = ("DS", "US", "UL", "SQ", "UN", "OB", "OW", "UT", "AT", "FD", "XX", "\0\0", "ss")
SYNTAXES = (EXPLICIT, IMPLICIT, BIG, RLE, *(f"1.2.840.10008.1.2.{end}" for end in (
    "1.99", "4.50", "4.57", "4.70", "4.80", "4.90", "4.100", "7", "5.1", "")))  # fmt: skip


def mutated_bytes(raw: bytes, random: np.random.Generator) -> bytes:
    """One to four injuries of the bytes before the pixels."""
    data = bytearray(raw)
    names = (struct.pack(order + "HH", *PIXELS) for order in "<>")
    end = max(raw.rfind(name) for name in names) + 12
    for _ in range(int(random.choice([1, 1, 1, 2, 4]))):
        at = int(random.integers(128, min(end, len(data))))
        length = int(random.choice([1, 2, 4, 8, 40]))
        other = int(random.integers(128, end))
        injuries = (
            (at, at + 1, bytes([data[at] ^ 1 << int(random.integers(8))])),
            (at, at + 1, bytes([int(random.integers(256))])),
            (at, at + 1, bytes([int(random.choice(list(b"0123456789.-+eE\\ \0naif")))])),
            (at, at + length, bytes(length)),
            (at, at + length, b"\xff" * length),
            (at, at, random.bytes(length)),
            (at, at, bytes(data[other : other + length])),
            (at, at + length, b""),
            (at, at + length, bytes(data[other : other + length])),
        )
        start, stop, content = injuries[int(random.integers(len(injuries)))]
        data[start:stop] = content
    return bytes(data)


def mutated_elements(elements: Elements, syntax: str, random: np.random.Generator) -> bytes:
    """A file one or two of whose elements say something else, or that holds one more."""
    elements = dict(elements)
    for _ in range(int(random.choice([1, 1, 2]))):
        tags = [tag for tag in elements if tag != PIXELS]
        tag = tags[int(random.integers(len(tags)))]
        form, value = elements[tag]
        kind = int(random.integers(6))
        if kind == 0 and form != "US":
            elements[tag] = (form, TEXTS[int(random.integers(len(TEXTS)))])
        elif kind <= 1:
            order = ">H" if syntax == BIG else "<H"
            elements[tag] = (form, struct.pack(order, SHORTS[int(random.integers(len(SHORTS)))]))
        elif kind == 2:
            elements[tag] = (FORMS[int(random.integers(len(FORMS)))], value)
        elif kind == 3:
            del elements[tag]
        elif kind == 4:
            elements[(0x0019, 0x1001)] = ("UN", random.bytes(int(random.integers(0, 300))))
        else:
            return _with_sequence(encoded(elements, syntax), syntax, random)
    raw = encoded(elements, syntax)
    if random.random() < 0.1:
        other = SYNTAXES[int(random.integers(len(SYNTAXES)))].encode()
        raw = raw.replace(syntax.encode().ljust(len(other), b"\0"), other, 1)
    return raw


def _with_sequence(raw: bytes, syntax: str, random: np.random.Generator) -> bytes:
    """A private sequence of undefined length, nested deep, before the last elements."""
    order = ">" if syntax == BIG else "<"
    depth, closed = int(random.choice([1, 3, 15, 17, 40, 400])), random.random() < 0.7
    form = bytes(random.choice([b"SQ", b"UN"]))
    head = struct.pack(f"{order}HH", 0x0019, 0x1002)
    head += b"" if syntax == IMPLICIT else form + b"\0\0"
    opening = head + b"\xff" * 4 + struct.pack(f"{order}HH", 0xFFFE, 0xE000) + b"\xff" * 4
    ends = ((0xFFFE, 0xE00D), (0xFFFE, 0xE0DD))
    closing = b"".join(struct.pack(f"{order}HHI", *end, 0) for end in ends)
    place = raw.rfind(struct.pack(f"{order}HH", 0x0020, 0x000E))
    inside = opening * depth + (closing * depth if closed else b"")
    return raw[:place] + inside + raw[place:]
