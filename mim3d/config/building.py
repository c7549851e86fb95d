"""From settings by dotted key to a config: known keys alone, each value of its field's type."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from mim3d.config.removed import gone, removed
from mim3d.config.tree import hints, is_section, nearest, settings, similar, title, value_of
from mim3d.config.values import Refused, convert, shown, words
from mim3d.foundation.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


@dataclass(frozen=True)
class Entry:
    """One setting as it was given.

    Args:
        value: null, truth value, number, text or nested lists of these; a mapping fits no setting.
        place: where it stands, for messages: `` in `a.yaml` line 7``, or empty.
    """

    value: Any
    place: str = ""


def check_key(key: str, kind: type, place: str = "") -> None:
    """Raises `ConfigError`, with the name that was probably meant, for an unknown dotted key.

    Args:
        key: the dotted key.
        kind: the config class.
        place: where it stands, for the message: `` in `a.yaml` line 7``.
    """
    if key in settings(kind):
        return
    if known := removed(key, title(kind)):
        raise gone(key, known, place)
    section = key.rpartition(".")[0]
    owner = f"`{section}`" if section in hints(kind) else f"`mim3d {title(kind)}`"
    if is_section(hints(kind).get(key)):
        what = (
            f"`{shown(key)}`{place} is a section; its settings are lines of `key: value` below it"
        )
        raise ConfigError(what, code="config")
    meant = nearest(key, kind)
    raise ConfigError(
        f"`{shown(key)}`{place} is not a setting of {owner}",
        remedy=f"did you mean `{meant}`?" if meant else None,
        code="unknown-key",
    )


def built(default: Config, entries: Mapping[str, Entry]) -> Config:
    """A config with some settings replaced, each as the type of its field."""
    known = settings(type(default))
    values = {key: typed(key, entry, known[key]) for key, entry in entries.items()}
    return _replaced(default, values, "")


def typed(key: str, entry: Entry, hint: Any) -> Any:
    """The value of a setting, as its type.

    Raises:
        ConfigError: the value is of another type.
    """
    try:
        return convert(entry.value, hint)
    except Refused as error:
        raise ConfigError(
            f"`{key}`{entry.place} is `{shown(entry.value)}`, expected {error}",
            remedy=_meant(entry.value, hint),
            code="wrong-type",
        ) from None


def check_finite(config: DataclassInstance) -> None:
    """Raises `ConfigError` for a number that is not finite: of those, none is read from text."""
    for key, hint in settings(type(config)).items():
        value = value_of(config, key)
        if not _is_finite(value):
            typed(key, Entry(value), hint)


def _is_finite(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _meant(value: Any, hint: Any) -> str | None:
    if isinstance(value, float) and value.is_integer():
        return f"write `{int(value)}`"  # only where a whole number is wanted is 1e3 refused
    word = similar(value, words(hint)) if isinstance(value, str) else None
    return f"did you mean `{word}`?" if word else None


def _replaced(config: Config, values: Mapping[str, Any], prefix: str) -> Config:
    changes: dict[str, Any] = {}
    for name, hint in hints(type(config)).items():
        key = f"{prefix}{name}"
        if is_section(hint):
            changes[name] = _replaced(getattr(config, name), values, f"{key}.")
        elif key in values:
            changes[name] = values[key]
    return dataclasses.replace(config, **changes)
