"""From what a person writes to a typed value, strictly: nothing is guessed, nothing is rounded."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

NULLS = frozenset({"", "~", "null", "Null", "NULL"})
TRUTHS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
# No octal (`010`), no base 60 (`1:30`) and no `yes`: YAML 1.1 reads them as what nobody meant.
WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)")
# `1e-4` is a number here, for YAML 1.1 it is text.
NUMBER = re.compile(r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)")
LONGEST_NUMBER = 40
LARGEST_WHOLE = 2**63 - 1
LARGEST_NUMBER = 1e300

_SINGULAR = {int: "a whole number", float: "a number", bool: "`true` or `false`", str: "text"}
_PLURAL = {int: "whole numbers", float: "numbers", bool: "`true` or `false`", str: "texts"}


class Refused(ValueError):
    """A value that does not fit its setting; says what was expected."""


def resolve(text: str) -> bool | int | float | str | None:
    """A plain scalar as null, truth value, number or text, by how it is written."""
    if text in NULLS:
        return None
    if text in TRUTHS:
        return TRUTHS[text]
    if len(text) > LONGEST_NUMBER:
        return text
    if WHOLE.fullmatch(text):
        return int(text)
    return float(text) if NUMBER.fullmatch(text) else text


def convert(value: Any, hint: Any) -> Any:
    """The value as its setting's type; lists become tuples, whole numbers numbers.

    Args:
        value: null, truth value, number, text, or lists and tuples of these.
        hint: the type of a config's field.

    Raises:
        Refused: the value is of another type; the message is what was expected.
    """
    for choice in alternatives(hint):
        converted = _fit(value, choice)
        if converted is not _MISFIT:
            return converted
    raise Refused(expectation(hint))


_MISFIT = object()


def _fit(value: Any, hint: Any) -> Any:
    origin = typing.get_origin(hint)
    if hint is type(None):
        # Docs say `none`, YAML says `null`; text keeps its own word (see `alternatives`).
        return None if value is None or value == "none" else _MISFIT
    if origin is Literal:
        # By type too: True == 1 must not pass for the choice 1.
        same = (choice for choice in typing.get_args(hint) if type(choice) is type(value))
        return next((choice for choice in same if choice == value), _MISFIT)
    if origin is tuple:
        return _fit_tuple(value, typing.get_args(hint))
    if hint is float and type(value) in (int, float):
        # Not a number and infinity fail the comparison.
        return float(value) if abs(value) <= LARGEST_NUMBER else _MISFIT
    if hint is int and type(value) is int:
        return value if abs(value) <= LARGEST_WHOLE else _MISFIT
    if hint is str and type(value) is str:
        return value if _is_writable(value) else _MISFIT
    return value if hint is bool and type(value) is bool else _MISFIT


def _is_writable(text: str) -> bool:
    """Whether text can be a file's name or content: no NUL, no half of a surrogate pair."""
    return "\0" not in text and text.encode(errors="replace").decode() == text


def _fit_tuple(value: Any, kinds: tuple[Any, ...]) -> Any:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return _MISFIT
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        return _MISFIT
    try:
        return tuple(convert(item, kind) for item, kind in zip(value, kinds, strict=True))
    except Refused:
        return _MISFIT


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types a field may have, exact ones first: text before null, so that `none` stays text."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return (hint,)
    order = {str: 0, bool: 1, int: 2, float: 3, type(None): 9}
    return tuple(sorted(typing.get_args(hint), key=lambda choice: order.get(choice, 4)))


def takes_tuple(hint: Any) -> bool:
    """Whether a field may hold several values, so that commas part them."""
    return any(typing.get_origin(choice) is tuple for choice in alternatives(hint))


def is_nested(hint: Any) -> bool:
    """Whether a field holds tuples of tuples."""
    insides = [typing.get_args(choice)[0] for choice in alternatives(hint) if takes_tuple(choice)]
    return any(takes_tuple(inside) for inside in insides)


def takes_text(hint: Any) -> bool:
    """Whether a field takes text as it is written."""
    return any(
        choice is str or typing.get_origin(choice) is Literal for choice in alternatives(hint)
    )


def takes_number(hint: Any) -> bool:
    """Whether a field may hold a number by itself."""
    return any(choice in (int, float) for choice in alternatives(hint))


def is_word(text: str, hint: Any) -> bool:
    """Whether text stays as it is written: no list, though a field may hold either."""
    if not takes_text(hint):
        return False
    may_be_list = takes_tuple(hint) and str not in alternatives(hint)
    return not (may_be_list and ("," in text or text.lstrip().startswith("[")))


def words(hint: Any) -> tuple[str, ...]:
    """All the words a field chooses from; empty where it is no choice."""
    found: list[str] = []
    for choice in alternatives(hint):
        if typing.get_origin(choice) is Literal:
            found.extend(str(word) for word in typing.get_args(choice))
        elif typing.get_origin(choice) is tuple:
            found.extend(word for item in typing.get_args(choice)[:1] for word in words(item))
    return tuple(found)


def expectation(hint: Any) -> str:
    """What a field takes, in words: `3 whole numbers or null`."""
    parts: list[str] = []
    for choice in alternatives(hint):
        part = "`null`" if choice is type(None) else _expected(choice)
        # `int | float` is simply a number.
        if choice is float and _SINGULAR[int] in parts:
            parts.remove(_SINGULAR[int])
        parts.append(part)
    return " or ".join(parts)


def _expected(hint: Any, plural: bool = False) -> str:
    choices = alternatives(hint)
    if len(choices) > 1:  # `int | float` is simply a number
        some = [choice for choice in choices if choice is not int or float not in choices]
        return " or ".join(_expected(choice, plural) for choice in some)
    if typing.get_origin(hint) is Literal:
        return ("of " if plural else "one of ") + ", ".join(f"`{word}`" for word in words(hint))
    if typing.get_origin(hint) is not tuple:
        return (_PLURAL if plural else _SINGULAR).get(hint, str(hint))
    kinds = typing.get_args(hint)
    inner = "lists" if typing.get_origin(kinds[0]) is tuple else _expected(kinds[0], plural=True)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return f"a list {inner}" if inner.startswith("of") else f"a list of {inner}"
    return f"{len(kinds)} {inner}"


def shown(value: Any) -> str:
    """A value or key for a message: on one line, and short."""
    text = {None: "null", True: "true", False: "false"}[value] if _is_word(value) else str(value)
    text = "".join(letter if letter.isprintable() else "?" for letter in text[:61])
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)
