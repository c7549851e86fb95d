from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mim3d.config.read import ReadConfig
from mim3d.data.files import meta_image, nrrd, texts
from mim3d.data.files.streams import open_regular
from mim3d.data.files.texts import NumberStream, header_lines, real_numbers, whole_numbers
from mim3d.foundation.errors import VolumeError

from .making import put

WORDS = st.sampled_from(
    ["NRRD0004", "type", "sizes", "dimension", "space", "encoding", "endian", "space directions",
     "NDims", "DimSize", "ElementType", "ElementDataFile", "ObjectType", ":", "=", ":=", "#", "\n",
     "\r\n", " ", "3", "11 13 7", "short", "raw", "(1,0,0)", "none", "nan", "1e999", "LOCAL",
     "Image", "MET_SHORT", "-1", "\0", "é"]
)  # fmt: skip
HEADERS = st.one_of(st.binary(max_size=300), st.lists(WORDS, max_size=60).map(
    lambda words: "".join(words).encode("latin-1")
))  # fmt: skip


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(raw=HEADERS)
@pytest.mark.parametrize("room", [nrrd, meta_image])
def test_any_bytes_are_a_header_or_an_error(tmp_path_factory, room, raw):
    path = put(tmp_path_factory.getbasetemp(), "header", raw)

    try:
        with room.opened(path, ReadConfig()) as (layout, _):
            assert layout.stored_bytes > 0
    except VolumeError as error:
        assert error.what
        assert error.code


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(text=st.text(alphabet="0123456789+-. _eEnaif\t", max_size=30), count=st.integers(1, 4))
def test_numbers_are_read_as_python_reads_them_or_refused(text, count):
    """Python's own `int` and `float`, less what a header may not hold: `_`, `nan`, `inf`."""
    for read, convert in ((whole_numbers, int), (real_numbers, float)):
        try:
            expected = [convert(word) for word in text.split()]
        except ValueError:
            expected = []
        is_good = len(expected) == count and "_" not in text and all(map(math.isfinite, expected))
        try:
            assert read(text, count, "name") == expected
            assert is_good
        except VolumeError:
            assert not is_good or len(text) > 20


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    numbers=st.lists(st.integers(-32768, 32767), min_size=1, max_size=40),
    gaps=st.lists(st.sampled_from([" ", "\n", "\r\n", "\t  "]), min_size=40, max_size=40),
    feed=st.integers(1, 20),
    bite=st.integers(1, 9),
)
def test_numbers_of_text_come_out_whatever_the_pieces(tmp_path_factory, numbers, gaps, feed, bite):
    text = "".join(f"{n}{gap}" for n, gap in zip(numbers, gaps, strict=False)).rstrip()
    path = put(tmp_path_factory.getbasetemp(), "numbers", text.encode())
    found = bytearray()

    with pytest.MonkeyPatch.context() as patch, open_regular(path) as file:
        patch.setattr(texts, "FEED", feed)
        stream = NumberStream(file, 0, np.dtype("<i2"))
        buffer = bytearray(bite)
        while count := stream.fill(memoryview(buffer)):
            found += buffer[:count]
        stream.finish(len(found))

    assert np.frombuffer(found, "<i2").tolist() == numbers


def test_more_numbers_than_the_header_tells_of_are_counted(tmp_path):
    with open_regular(put(tmp_path, "numbers", b"1 2 3")) as file:
        stream = NumberStream(file, 0, np.dtype("<i2"))
        stream.fill(memoryview(bytearray(4)))
        with pytest.raises(VolumeError, match="at least 6 bytes of voxels, more than the 4"):
            stream.finish(4)


@pytest.mark.parametrize("raw", [b"a\n" * (1 << 19), b"b" * (1 << 16), b"x\n" + b"c" * (1 << 17)])
def test_a_header_without_end_is_refused(tmp_path, raw):
    path = put(tmp_path, "header", raw)

    with io.FileIO(path) as file, pytest.raises(VolumeError, match="too long"):
        list(header_lines(file))
