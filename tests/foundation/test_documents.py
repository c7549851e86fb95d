"""JSON that is read back: strict, bounded, and sealed."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mim3d.foundation.documents import (
    DocumentError,
    LaterVersion,
    bounded,
    deepest,
    parsed,
    read_document,
    read_object,
    sealed,
    unsealed,
    versioned,
    write_sealed,
)
from mim3d.foundation.errors import UserError

NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | st.text() | NUMBERS


def _around(inside: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.lists(inside, max_size=4) | st.dictionaries(st.text(), inside, max_size=4)


JSON = st.recursive(LEAVES, _around, max_leaves=30)


@given(JSON)
@settings(deadline=None, max_examples=150)
def test_whatever_json_can_hold_is_read_as_pythons_reader_reads_it(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=2)):
        try:
            content = text.encode()
        except UnicodeEncodeError:  # half a letter, unescaped: no UTF-8
            continue
        assert parsed(content) == json.loads(text)


@given(st.text(alphabet='[]{}",:\\1 a', max_size=300))
@settings(deadline=None, max_examples=300)
def test_depth_agrees_with_a_slow_reading_of_whole_strings(text: str) -> None:
    depth = most = 0
    inside = escaped = False
    for letter in text:
        if inside:
            inside = letter != '"' or escaped
            escaped = letter == "\\" and not escaped
        elif letter == '"':
            inside, escaped = True, False
        elif letter in "[{":
            depth += 1
            most = max(most, depth)
        elif letter in "]}":
            depth -= 1
    if "\\" in "".join(text.split('"')[::2]):
        return  # outside of a string a backslash is no JSON, whatever is counted

    content = text.encode()
    brackets = content.count(b"[") + content.count(b"{")

    assert deepest(content) == (max(most, 0) if brackets > 50 else 0)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[" * 51 + b"]" * 51, "nested more than 50"),
        (b"[" * 2_000_000, "nested more than 50"),
        (b'{"a":' * 60 + b"1" + b"}" * 60, "nested more than 50"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key `a` twice"),
        (b"[NaN]", "holds `NaN`"),
        (b"-Infinity", "holds `-Infinity`"),
        (b"1e999", "too large"),
        (b"9" * 5000, "too long"),
        (b"\xff\xfe[\x00", "not UTF-8"),
        (b"{", "line 1"),
        (b"", "no JSON"),
        (b"[1]\n\n[2]", "line 3"),
    ],
)
def test_what_is_no_sound_json_is_refused_with_the_reason(content: bytes, why: str) -> None:
    with pytest.raises(DocumentError, match=why):
        parsed(content)


def test_fifty_deep_and_brackets_within_words_are_fine() -> None:
    assert parsed(b"[" * 50 + b"]" * 50)
    assert parsed(json.dumps(["[[{" * 100, '"[' * 100])) == ["[[{" * 100, '"[' * 100]


def test_a_byte_order_mark_is_no_obstacle() -> None:
    assert parsed(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_a_file_may_have_so_many_bytes_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"[1, 2]")

    assert bounded(path, 6) == b"[1, 2]"
    with pytest.raises(DocumentError, match="larger than"):
        read_document(path, most=5)


def test_a_missing_file_a_list_and_a_torn_object_become_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content, why in ((None, "No such file"), ("[1]", "no object"), ('{"a"', "no JSON")):
        if content is not None:
            path.write_text(content)
        with pytest.raises(UserError, match=why):
            read_object(path)


def test_the_seal_is_the_digest_of_all_bytes_before_it(tmp_path: Path) -> None:
    write_sealed(tmp_path / "a.json", {"b": [1, {"c": "d"}], "e": None})
    content = (tmp_path / "a.json").read_bytes()

    head, _, tail = content.rpartition(b'"checksum": "')
    digest = hashlib.sha256(head + b'"checksum": "').hexdigest()

    assert tail == digest.encode() + b'"\n}\n'
    assert unsealed(content) == {"b": [1, {"c": "d"}], "e": None}
    assert json.loads(content)["e"] is None


@pytest.mark.parametrize("value", [{}, {"a": 1}, {"a": {"checksum": "0" * 64}, "b": [[]]}])
def test_every_flipped_bit_of_a_sealed_document_is_found(value: dict[str, object]) -> None:
    content = sealed(value).encode()
    assert unsealed(content) == value

    for place in range(len(content)):
        for bit in range(8):
            other = bytearray(content)
            other[place] ^= 1 << bit
            with pytest.raises(DocumentError):
                unsealed(bytes(other))


def test_a_document_without_seal_or_with_more_behind_it_is_none() -> None:
    content = sealed({"a": 1}).encode()

    for other in (b'{"a": 1}', content + b" ", content[:-1], content + content):
        with pytest.raises(DocumentError):
            unsealed(other)


def test_what_json_cannot_say_is_not_sealed() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        sealed({"a": math.nan})
    with pytest.raises(ValueError, match="own key"):
        sealed({"checksum": 1})


def _is_first(record: dict[str, object]) -> bool:
    return record.get("format") == 1


def test_a_document_of_the_version_before_there_were_seals_is_read_as_it_is() -> None:
    assert versioned(b'{"format": 1, "a": 2}', {"format": 2}, _is_first) == {"format": 1, "a": 2}
    assert versioned(sealed({"format": 2, "a": 2}).encode(), {"format": 2}, _is_first)["a"] == 2


@pytest.mark.parametrize("content", [b'{"a": 2}', b'{"format": 2, "a": 2}', b'{"format": "1"}'])
def test_only_the_first_version_needs_no_seal(content: bytes) -> None:
    with pytest.raises(DocumentError, match="checksum is missing"):
        versioned(content, {"format": 2}, _is_first)


def test_a_sealed_document_is_not_taken_for_a_first_one() -> None:
    content = sealed({"format": 2, "a": 2}).replace('"format": 2', '"format": 1').encode()

    with pytest.raises(DocumentError, match="checksum is wrong"):
        versioned(content, {"format": 2}, _is_first)


def test_a_later_version_is_said_before_its_seal_is_looked_at() -> None:
    with pytest.raises(LaterVersion) as error:
        versioned(b'{"format": 1, "records": 7}', {"format": 1, "records": 2}, lambda _: False)

    assert (error.value.key, error.value.found) == ("records", 7)


@pytest.mark.parametrize("content", [b"[]", b"3", b'"a"'])
def test_what_is_no_object_has_no_version(content: bytes) -> None:
    with pytest.raises(DocumentError, match="no object"):
        versioned(content, {"format": 2}, _is_first)


def test_a_seal_stands_on_a_line_of_its_own() -> None:
    head = '{"a": 1,\n"checksum": "'
    content = f'{head}{hashlib.sha256(head.encode()).hexdigest()}"\n}}\n'

    with pytest.raises(DocumentError, match="missing"):
        unsealed(content.encode())
