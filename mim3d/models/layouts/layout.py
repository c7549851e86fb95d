"""Layouts: how other programs call the tensors of a vision transformer, and of a UNETR around it.

A layout is a JSON file beside this module, so that a new source is a file and no code. Templates of
keys hold `{i}` for a number and `{p}` for `weight` or `bias`; a target that ends in `[k]` is part k
of three that are joined.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from mim3d.foundation.documents import parsed
from mim3d.foundation.errors import WeightsError

FILES = (
    "selfmedmae_unetr",
    "selfmedmae",
    "mim_med3d",
    "monai_unetr",
    "mim_med3d_unetr",
    "monai_mae",
    "monai_vitautoenc",
    "facebook_mae",
    "monai_vit",
)
"""The layouts, in the order in which they are tried: what has more marks of its own first."""
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""Prefixes that a training program puts before all keys; they come off while one of them fits."""
PLACES = {"i": r"(?P<i>\d{1,4})", "p": "(?P<p>weight|bias)"}


@dataclass(frozen=True)
class Layout:
    """One program's checkpoint.

    Args:
        layout: how `--convert.layout` calls it.
        source: the program and version whose code was read.
        marks: keys that tell it from others; all must be there.
        keys: template of a key to template of ours, `encoder.*` or `decoder.*`.
        unused: beginnings of keys that the program makes and never uses, and why.
        outside: beginnings of keys that have no counterpart here, and what they are.
        inside: beginnings of keys that the encoder computes with: an unknown one is refused.
        norm_epsilon: of its LayerNorms.
        table_has_class: whether the first row of the position table is the class token's.
        heads: width to attention heads, where a head is not 64 wide.
        taps: blocks passed where its decoder reads, without the last; `quarters` is behind the
            first block of each quarter but the first; None where it has no decoder of ours.
        remarks: what a user should know of it.
    """

    layout: str
    source: str
    marks: tuple[str, ...]
    keys: Mapping[str, str]
    unused: Mapping[str, str] = field(default_factory=dict)
    outside: Mapping[str, str] = field(default_factory=dict)
    inside: tuple[str, ...] = ()
    norm_epsilon: float = 1e-5
    table_has_class: bool = False
    heads: Mapping[str, int] = field(default_factory=dict)
    taps: str | tuple[int, ...] | None = None
    remarks: tuple[str, ...] = ()

    def ours(self, key: str) -> str | None:
        """Our name of a key; None where it has none."""
        for template, target in self.keys.items():
            found = _pattern(template).fullmatch(key)
            if found:
                return target.format_map(found.groupdict())
        return None

    def reason(self, key: str) -> str | None:
        """Why a key has no name of ours; None where that is not known."""
        for beginning, why in {**self.unused, **self.outside}.items():
            if _pattern(beginning).match(key):
                return why
        return None

    def is_inside(self, key: str) -> bool:
        """Whether the encoder computes with a key that has no name of ours."""
        return any(key.startswith(one) for one in self.inside) and self.reason(key) is None

    def fits(self, keys: Iterable[str]) -> bool:
        """Whether all marks are among the keys."""
        return set(self.marks) <= set(keys)

    def tap_numbers(self, depth: int) -> tuple[int, int, int, int]:
        """Blocks passed where its decoder reads hidden states, the last included."""
        if isinstance(self.taps, tuple):
            one, two, three = self.taps
        else:
            one, two, three = (quarter * (depth // 4) + 1 for quarter in (1, 2, 3))
        return one, two, three, depth


@cache
def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template)
    for name, pattern in PLACES.items():
        escaped = escaped.replace(rf"\{{{name}\}}", pattern)
    return re.compile(escaped)


@cache
def layouts() -> tuple[Layout, ...]:
    """All layouts, in the order in which they are tried."""
    return tuple(_layout(_content(name)) for name in FILES)


def guessed(keys: Iterable[str]) -> Layout | None:
    """The layout whose marks are all among the keys; None if there is none."""
    keys = set(keys)
    return next((one for one in layouts() if one.fits(keys)), None)


def layout_of(name: str, keys: Iterable[str], *, source: str) -> Layout:
    """The layout that was named, in the form that fits the keys.

    Args:
        name: as `--convert.layout` has it.
        keys: of the checkpoint, without wrappers.
        source: the checkpoint, in messages.

    Raises:
        WeightsError: no form of it fits; the missing marks are named.
    """
    keys = set(keys)
    forms = [one for one in layouts() if one.layout == name]
    for one in forms:
        if one.fits(keys):
            return one
    lacking = [mark for mark in forms[-1].marks if mark not in keys]
    other = guessed(keys)
    hint = (
        f"it looks like `--convert.layout {other.layout}`"
        if other is not None
        else f"its first keys are {_listed(sorted(keys))}; `--convert.layout plain` takes our own "
        "keys, perhaps by a `--key_map`"
    )
    raise WeightsError(
        f"`{source}` is no checkpoint of the layout `{name}`: it has no {_listed(lacking)}",
        remedy=hint,
        code="layout",
    )


def unwrapped(keys: Iterable[str]) -> dict[str, str]:
    """Old key to key without wrappers; those that would become alike stay as they are."""
    short = {key: _short(key) for key in keys}
    return short if len(set(short.values())) == len(short) else {key: key for key in short}


def _short(key: str) -> str:
    while prefix := next((one for one in WRAPPERS if key.startswith(one)), ""):
        key = key[len(prefix) :]
    return key


def _content(name: str) -> dict[str, Any]:
    """A file with the keys of what it includes behind their prefix; its own come first."""
    text = (resources.files(__package__) / f"{name}.json").read_bytes()
    own: dict[str, Any] = parsed(text)
    for other, prefix in own.pop("include", {}).items():
        included = _content(other)
        for part in ("keys", "unused", "outside"):
            there = {f"{prefix}{key}": value for key, value in included.get(part, {}).items()}
            own[part] = {**own.get(part, {}), **there}
        inside = [f"{prefix}{one}" for one in included.get("inside", [])]
        own["inside"] = [*own.get("inside", []), *inside]
    return own


def _layout(content: Mapping[str, Any]) -> Layout:
    lists = {key: tuple(value) for key, value in content.items() if isinstance(value, list)}
    return Layout(**{**content, **lists})


def _listed(keys: Iterable[str], most: int = 3) -> str:
    names = list(keys)
    shown = ", ".join(f"`{name[:80]}`" for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
