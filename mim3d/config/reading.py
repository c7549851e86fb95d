"""The one strict reader of configs in YAML and JSON.

A file holds only what differs from the defaults. It is taken as text of at most 1 MiB, nested at
most 50 deep, without anchors, aliases, tags or duplicate keys; every key must be a field of the
config class and every value of that field's type. Whatever else is in the file becomes one
`ConfigError` that names file, line, key and, where one is near, the key that was meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim3d.config.building import Config, Entry, built, check_key
from mim3d.config.entries import Section
from mim3d.config.nodes import parse, text_of
from mim3d.config.removed import is_dropped
from mim3d.config.shipped import locate
from mim3d.config.spelling import entry_of
from mim3d.config.tree import hints, is_section, settings, title

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def read_config(
    path_or_name: str | Path | None,
    kind: type[Config],
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """A config from a file, with some settings replaced.

    Args:
        path_or_name: a YAML or JSON file, the bare name of a config that ships with mim3d, or
            None for the defaults.
        kind: the config class, for example `PretrainConfig`.
        overrides: dotted key to value. Text is read as on the command line: `"96,96,96"`.

    Raises:
        ConfigError: the file is missing, too large or too deep; a key is unknown or given twice; a
            value has the wrong type.
    """
    return built(kind(), _said(path_or_name, kind, overrides))


def said_keys(
    path_or_name: str | Path | None,
    kind: type[DataclassInstance],
    overrides: Mapping[str, Any] | None = None,
) -> frozenset[str]:
    """The dotted keys that file and overrides name, whether or not they change a default.

    Arguments and errors are those of `read_config`.
    """
    return frozenset(_said(path_or_name, kind, overrides))


def _said(
    path_or_name: str | Path | None,
    kind: type[DataclassInstance],
    overrides: Mapping[str, Any] | None,
) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    if path_or_name is not None:
        path = locate(path_or_name, title(kind))
        root = parse(text_of(path), f"`{path}`")
        if root is not None:
            entries.update(Section(kind, f"`{path}`").entries(root, kind))
    for key, value in (overrides or {}).items():
        check_key(key, kind)
        is_text = isinstance(value, str)
        entries[key] = entry_of(value, settings(kind)[key]) if is_text else Entry(value)
    return entries


def from_mapping(mapping: Mapping[str, Any], kind: type[Config], *, where: str) -> Config:
    """A config from a nested mapping, for example out of a store's or a run's JSON.

    Args:
        mapping: section to key to value, as `to_mapping` gives it.
        kind: the config class.
        where: what the mapping was taken from, for messages.
    """
    place = f" in {where}"
    entries = {
        key: Entry(value, place)
        for key, value in _flat(mapping, kind)
        if not is_dropped(key, value, title(kind), place)
    }
    for key in entries:
        check_key(key, kind, place)
    return built(kind(), entries)


def _flat(mapping: Mapping[str, Any], kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in mapping.items():
        hint = hints(kind).get(name)
        if is_section(hint) and isinstance(value, Mapping):
            yield from _flat(value, hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
