"""The tree of settings behind a config class: its keys, their types, and the name that was meant.

A setting is named by its dotted key, `optim.lr`: the section's field and the setting's own. Any
frozen dataclass whose fields all have defaults is a config class.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Iterator
from typing import Any, TypeGuard

SIMILARITY = 0.6
"""How alike (difflib's ratio) two names must be for one to be offered in place of the other."""


@functools.cache
def hints(kind: type) -> dict[str, Any]:
    """The fields of a config class with their resolved types, in order."""
    resolved = typing.get_type_hints(kind)
    return {field.name: resolved[field.name] for field in dataclasses.fields(kind) if field.init}


def is_section(hint: Any) -> TypeGuard[type]:
    """Whether a field holds settings of its own."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


@functools.cache
def settings(kind: type) -> dict[str, Any]:
    """Every dotted key of a config class with its type."""
    return dict(_settings(kind, ""))


def _settings(kind: type, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, hint in hints(kind).items():
        if is_section(hint):
            yield from _settings(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, hint


def value_of(config: Any, key: str) -> Any:
    """The value of a dotted key."""
    for name in key.split("."):
        config = getattr(config, name)
    return config


def title(kind: type) -> str:
    """What messages call a config class: `PretrainConfig` and its plan's are `pretrain`."""
    return kind.__name__.removesuffix("Config").removesuffix("Plan").lower()


def nearest(key: str, kind: type) -> str | None:
    """The dotted key that was probably meant, or None.

    First a key with the same last part elsewhere (`lr` for `optim.lr`), then a section's own name
    (`trainng`), then the most similar key as a whole, then the one whose last part is most similar.
    """
    known = settings(kind)
    last = key.rpartition(".")[2]
    same = [candidate for candidate in known if candidate.rpartition(".")[2] == last]
    if same:
        return difflib.get_close_matches(key, same, n=1, cutoff=0.0)[0]
    sections = dict.fromkeys(known_key.partition(".")[0] for known_key in known if "." in known_key)
    section = similar(key, sections) if "." not in key else None
    return section or similar(key, known) or _by_last_part(last, known)


def _by_last_part(last: str, known: typing.Iterable[str]) -> str | None:
    ends: dict[str, str] = {}
    for candidate in known:
        ends.setdefault(candidate.rpartition(".")[2], candidate)
    found = similar(last, ends)
    return ends[found] if found else None


def similar(name: str, known: typing.Iterable[str]) -> str | None:
    """The most similar of some names, or None where none is near."""
    # Names are cut because difflib takes quadratic time and a file may hold any name.
    found = difflib.get_close_matches(name[:100], list(known), n=1, cutoff=SIMILARITY)
    return found[0] if found else None
