"""Plain values become typed ones, or are refused with what was expected."""

from __future__ import annotations

import math
from typing import Literal

import pytest

from mim3d.config.values import Refused, convert, expectation, resolve

Axis = Literal["x", "y", "z"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.5e+3", 1500.0),
        (".5", 0.5),
        ("-3", -3),
        ("10_000", 10_000),
        ("true", True),
        ("null", None),
        ("", None),
        ("~", None),
        # What YAML 1.1 would read as 8, 90, True, 16 and infinity.
        ("010", "010"),
        ("1:30", "1:30"),
        ("yes", "yes"),
        ("0x10", "0x10"),
        (".inf", ".inf"),
        ("nan", "nan"),
        ("1.2.840.10008", "1.2.840.10008"),
        ("5_", "5_"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_a_plain_scalar_is_what_it_looks_like(text, value):
    resolved = resolve(text)

    assert resolved == value
    assert type(resolved) is type(value)


@pytest.mark.parametrize(
    ("value", "hint", "converted"),
    [
        (1, float, 1.0),
        ([1, 2, 3], tuple[int, int, int], (1, 2, 3)),
        ([1, 2], tuple[float, float], (1.0, 2.0)),
        ([[1, 2], [3, 4]], tuple[tuple[int, int], ...], ((1, 2), (3, 4))),
        ([], tuple[Axis, ...], ()),
        (["x", "z"], tuple[Axis, ...], ("x", "z")),
        (5, int | float | None, 5),
        (0.5, int | float | None, 0.5),
        (None, int | float | None, None),
        ("none", tuple[int, int] | None, None),
        ("none", str | None, "none"),
        ("none", Literal["none", "layer"], "none"),
        (False, bool, False),
    ],
)
def test_a_fitting_value_becomes_its_type(value, hint, converted):
    assert convert(value, hint) == converted
    assert type(convert(value, hint)) is type(converted)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (True, int),
        (True, float),
        (1, bool),
        (1.0, int),
        ("1", int),
        (5, str),
        (None, str),
        (math.nan, float),
        (math.inf, float),
        (10**400, float),
        (2**63, int),
        ("a\0b", str),
        ("\ud83d", str),
        ([1, 2], tuple[int, int, int]),
        ([1, 2, "3"], tuple[int, int, int]),
        ("abc", tuple[str, str, str]),
        (["w"], tuple[Axis, ...]),
        ({"a": 1}, str | None),
        (True, Literal[1, 2]),
        ("none", int),
    ],
)
def test_a_value_of_another_type_is_refused(value, hint):
    with pytest.raises(Refused):
        convert(value, hint)


def test_what_is_expected_is_said_in_words():
    assert expectation(int | float | None) == "a number or `null`"
    assert expectation(tuple[int, int, int]) == "3 whole numbers"
    assert expectation(tuple[Axis, ...]) == "a list of `x`, `y`, `z`"
    assert expectation(tuple[tuple[int, int], ...]) == "a list of lists"
    assert expectation(tuple[int | float, ...]) == "a list of numbers"
    assert expectation(Literal["a", "b"]) == "one of `a`, `b`"
    assert expectation(bool) == "`true` or `false`"
