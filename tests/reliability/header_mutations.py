"""Changes of headers: of NIfTI by its fields and bytes, of text by its grammar and letters."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Literal

import nibabel
import numpy as np

Draw = np.random.Generator
WHOLE = (0, 1, -1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 16, 64, 255, 256, 348, 512, 540, 1024,
         32767, -32768, 2**31 - 1, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63))  # fmt: skip
REAL = (0.0, -0.0, 1.0, -1.0, 2.0, 0.5, 352.0, 353.0, 348.0, 544.0, 1e-30, 1e30, -1e30, 3e38,
        float("nan"), float("inf"), float("-inf"), 1e-3, 1e3, 1e9, -352.0, 0.9999)  # fmt: skip
PLACES = {
    version: [
        (name, kind.base, offset, int(np.prod(kind.shape, dtype=int)))
        for name, (kind, offset) in (
            (name, field[:2]) for name, field in (form.template_dtype.fields or {}).items()
        )
    ]
    for version, form in ((1, nibabel.Nifti1Header), (2, nibabel.Nifti2Header))
}
VALUES = (
    "", " ", "0", "-1", "1", "2", "3", "4", "5", "7", "11", "13", "20", "100", "256", "1000", "-5",
    "nan", "inf", "-inf", "1e400", "1e-400", "0x10", "1_0", "+7", "07", "7.0", "1e1", "2147483648",
    "9223372036854775808", "99999999999999999999", "999999999999999999999999", "9" * 5000, "True",
    "false", "yes", "none", "???", "LPS", "RAS", "LAS", "left-posterior-superior", "scanner-xyz",
    "raw", "gzip", "gz", "ascii", "hex", "bzip2", "bz2", "little", "big", "block", "short",
    "ushort", "float", "double", "int8", "uint64", "MET_SHORT", "MET_USHORT", "MET_FLOAT",
    "MET_DOUBLE", "MET_UCHAR_ARRAY", "MET_RGB", "LOCAL", "local", "LIST", "LIST 2",
    "x%03d.raw 1 9 1",
    "/etc/passwd", "../x", ".", "..", "x.nrrd", "x.mha", "x.raw\0y", "http://a/b", "A" * 300,
    "A" * 70_000, " " * 60_000 + ")", "(" * 30_000, "( " * 30_000, "%a" * 30_000, "(0,0,0)",
    "(nan,0,0)", "(1,0,0) (0,1,0) (0,0,1)", "(1,0,0) (0,1,0)", "(1,0) (0,1)", "none none none",
    "none (1,0,0) (0,1,0) (0,0,1)", "(1,2,3,4,5)", "1 1 1", "0 0 0", "-1 -1 -1",
    "1 0 0 0 1 0 0 0 1",
    "11 13 7", "7 13 11", "13 11 7", "11 13 8", "11 13 5", "11 13 6", "11 13 7 1", "1 11 13 7",
    "1001 1 1", "11 91 1", "32767 32767 32767", "1 " * 20_000, '"mm" "mm" "mm"', '"m" "m" "m"',
    '"mm" "m" "mm"', "cm", "um", "RGB-color", "domain domain time", "list domain domain",
    "space space space", "vector space space", "\x00", "\x7f", "\xff\xfe", "é",
)  # fmt: skip
NAMES = (
    "type", "dimension", "sizes", "spacings", "thicknesses", "axis mins", "centers", "labels",
    "units", "kinds", "space", "space dimension", "space units", "space origin",
    "space directions", "measurement frame", "endian", "encoding", "data file", "datafile",
    "byte skip", "line skip", "lineskip", "min", "max", "block size", "content", "number",
    "sample units", "NDims", "DimSize", "ElementType", "ElementSpacing", "ElementSize",
    "TransformMatrix", "Rotation", "Orientation", "Offset", "Position", "Origin", "BinaryData",
    "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData", "CompressedDataSize",
    "HeaderSize", "HeaderSizePerSlice", "ElementNumberOfChannels", "ElementDataFile",
    "ElementToIntensityFunctionSlope", "DistanceUnits", "ObjectType", "Name", "Comment",
    "AnatomicalOrientation", "CenterOfRotation", "Modality", "ID", "A field nobody knows",
)  # fmt: skip


def mutated_nifti(header: bytes, version: int, draw: Draw) -> bytes:
    """One to three changes of a binary header."""
    data = bytearray(header)
    for _ in range(int(draw.choice([1, 1, 1, 2, 3]))):
        if len(data) > 8:
            BINARY[int(draw.integers(len(BINARY)))](data, version, draw)
    return bytes(data)


def _set_field(data: bytearray, version: int, draw: Draw) -> None:
    _, kind, offset, count = PLACES[version][int(draw.integers(len(PLACES[version])))]
    order: Literal["<", ">"] = "<" if struct.unpack("<i", data[:4])[0] in (348, 540) else ">"
    at = offset + kind.itemsize * int(draw.integers(count))
    if kind.kind == "S":
        data[offset : offset + kind.itemsize] = draw.bytes(kind.itemsize)
    elif kind.kind == "f":
        value = np.array(REAL[int(draw.integers(len(REAL)))], np.float64)
        with np.errstate(over="ignore"):
            data[at : at + kind.itemsize] = value.astype(kind.newbyteorder(order)).tobytes()
    else:
        value = WHOLE[int(draw.integers(len(WHOLE)))] % 2 ** (8 * kind.itemsize)
        raw = value.to_bytes(kind.itemsize, "little" if order == "<" else "big")
        data[at : at + kind.itemsize] = raw


def _shift_dims(data: bytearray, version: int, draw: Draw) -> None:
    """Sizes near the true ones, or in another order."""
    order = "<" if struct.unpack("<i", data[:4])[0] in (348, 540) else ">"
    form, at = (f"{order}8h", 40) if version == 1 else (f"{order}8q", 16)
    if len(data) < at + struct.calcsize(form):
        return
    count, *dims = struct.unpack_from(form, data, at)
    kind = int(draw.integers(4))
    if kind == 0:
        dims[:3] = draw.permutation(dims[:3]).tolist()
    elif kind == 1:
        count = int(draw.integers(0, 9))
    else:
        for _ in range(kind):
            dims[int(draw.integers(5))] += int(draw.integers(-3, 4))
    limit = 2**15 if version == 1 else 2**63
    dims = [max(-limit, min(size, limit - 1)) for size in dims]
    struct.pack_into(form, data, at, count, *dims)


def _flip(data: bytearray, version: int, draw: Draw) -> None:
    data[int(draw.integers(len(data)))] ^= 1 << int(draw.integers(8))


def _overwrite(data: bytearray, version: int, draw: Draw) -> None:
    at, length = int(draw.integers(len(data))), int(draw.choice([1, 2, 4, 8, 32, 128]))
    filling = [draw.bytes(length), bytes(length), b"\xff" * length, b"\x7f" * length]
    size = len(data)
    data[at : at + length] = filling[int(draw.integers(4))]
    del data[size:]


def _swap_fields(data: bytearray, version: int, draw: Draw) -> None:
    size = int(draw.choice([2, 4, 8]))
    first, second = sorted((draw.integers(0, len(data) // size, 2) * size).tolist())
    if second + size <= len(data) and first != second:
        kept = data[first : first + size]
        data[first : first + size] = data[second : second + size]
        data[second : second + size] = kept


def _turn_bytes(data: bytearray, version: int, draw: Draw) -> None:
    size = int(draw.choice([2, 4, 8]))
    at = int(draw.integers(len(data) // size)) * size
    data[at : at + size] = data[at : at + size][::-1]


def _move(data: bytearray, version: int, draw: Draw) -> None:
    at = int(draw.integers(len(data)))
    if draw.integers(2):
        del data[at : at + int(draw.choice([1, 2, 4, 16]))]
    else:
        data[at:at] = bytes(int(draw.choice([1, 2, 4, 16])))


BINARY: tuple[Callable[[bytearray, int, Draw], None], ...] = (
    _set_field, _set_field, _set_field, _shift_dims, _flip, _flip, _overwrite, _swap_fields,
    _turn_bytes, _move,
)  # fmt: skip


def mutated_text(header: bytes, draw: Draw) -> bytes:
    """One to four changes of the lines of a header; its end stays where it is, mostly."""
    text = header.decode("latin-1")
    end = "\n\n" if text.endswith("\n\n") else "\n"
    lines = text.removesuffix(end).split("\n")
    mark = " = " if "=" in lines[0] else ": "
    for _ in range(int(draw.choice([1, 1, 1, 2, 4]))):
        TEXT[int(draw.integers(len(TEXT)))](lines, mark, draw)
    joined = "\r\n".join(lines) if draw.random() < 0.03 else "\n".join(lines)
    raw = bytearray((joined + end).encode("latin-1", "replace"))
    if draw.random() < 0.15:
        for _ in range(int(draw.integers(1, 4))):
            raw[int(draw.integers(len(raw)))] = int(draw.integers(256))
    return bytes(raw)


def _at(lines: list[str], draw: Draw) -> int:
    return int(draw.integers(len(lines)))


def _set_value(lines: list[str], mark: str, draw: Draw) -> None:
    at = _at(lines, draw)
    name = lines[at].partition(mark.strip())[0].rstrip()
    lines[at] = name + mark + VALUES[int(draw.integers(len(VALUES)))]


def _set_word(lines: list[str], mark: str, draw: Draw) -> None:
    at = _at(lines, draw)
    words = lines[at].split(" ")
    words[int(draw.integers(len(words)))] = VALUES[int(draw.integers(len(VALUES)))]
    lines[at] = " ".join(words)


def _set_digit(lines: list[str], mark: str, draw: Draw) -> None:
    """Numbers near the true ones."""
    at = _at(lines, draw)
    places = [index for index, letter in enumerate(lines[at]) if letter in "0123456789.-"]
    if places:
        place = places[int(draw.integers(len(places)))]
        letter = "0123456789.-e, "[int(draw.integers(15))]
        lines[at] = lines[at][:place] + letter + lines[at][place + 1 :]


def _set_number(lines: list[str], mark: str, draw: Draw) -> None:
    """An absurd number in the place of one."""
    at = _at(lines, draw)
    numbers = list(re.finditer(r"-?[0-9]+(\.[0-9]*)?", lines[at]))
    if numbers:
        found = numbers[int(draw.integers(len(numbers)))]
        value = (*WHOLE, *REAL)[int(draw.integers(len(WHOLE) + len(REAL)))]
        lines[at] = f"{lines[at][: found.start()]}{value}{lines[at][found.end() :]}"


def _add(lines: list[str], mark: str, draw: Draw) -> None:
    name = NAMES[int(draw.integers(len(NAMES)))]
    line = name + mark + VALUES[int(draw.integers(len(VALUES)))]
    lines.insert(_at(lines, draw), line)


def _double(lines: list[str], mark: str, draw: Draw) -> None:
    lines.insert(_at(lines, draw), lines[_at(lines, draw)])


def _remove(lines: list[str], mark: str, draw: Draw) -> None:
    if len(lines) > 1:
        del lines[_at(lines, draw)]


def _exchange(lines: list[str], mark: str, draw: Draw) -> None:
    first, second = _at(lines, draw), _at(lines, draw)
    lines[first], lines[second] = lines[second], lines[first]


def _exchange_values(lines: list[str], mark: str, draw: Draw) -> None:
    first, second = _at(lines, draw), _at(lines, draw)
    one, two = (lines[at].partition(mark.strip()) for at in (first, second))
    lines[first], lines[second] = one[0] + one[1] + two[2], two[0] + two[1] + one[2]


def _change_case(lines: list[str], mark: str, draw: Draw) -> None:
    at = _at(lines, draw)
    lines[at] = lines[at].upper() if draw.integers(2) else lines[at].lower()


def _foreign_line(lines: list[str], mark: str, draw: Draw) -> None:
    choices = ("# a comment", "key:=value", "", " ", "\t", "\r", "no mark", mark, ":=", "=", ":",
               "#" * 65_000, "key:=" + "v" * 65_600, "a = b", "Comment = x")  # fmt: skip
    lines.insert(_at(lines, draw), choices[int(draw.integers(len(choices)))])


def _spaces(lines: list[str], mark: str, draw: Draw) -> None:
    at = _at(lines, draw)
    lines[at] = lines[at].replace(mark, "  " + mark.strip() + "\t ", 1) + "  "


TEXT: tuple[Callable[[list[str], str, Draw], None], ...] = (
    _set_value, _set_value, _set_word, _set_word, _set_digit, _set_digit, _set_number, _set_number,
    _add, _add, _double,
    _remove, _exchange, _exchange_values, _change_case, _foreign_line, _spaces,
)  # fmt: skip
