"""The one strict reader of YAML and JSON, and the way back from a config to YAML.

A file holds only what differs from the defaults. It is taken as text of at most 1 MiB, nested at
most 50 deep, without anchors, aliases, tags or duplicate keys; every key must be a field of the
config class and every value of that field's type. Whatever else is in the file becomes one
`ConfigError` that names file, line, key and, where one is near, the key that was meant.

This is the only module that imports yaml.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from mim3d.config.removed import gone, is_dropped, removed
from mim3d.config.shipped import locate
from mim3d.config.tree import hints, is_section, nearest, settings, similar, title, value_of
from mim3d.config.values import (
    Refused,
    convert,
    is_nested,
    is_word,
    resolve,
    takes_number,
    takes_tuple,
    words,
)
from mim3d.foundation.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

MAX_BYTES = 2**20
MAX_DEPTH = 50
MAX_ITEMS = 10_000
"""Keys, values and brackets of a file: a hundred times what the largest config has."""

# libyaml's parser gives the same nodes about ten times as fast; PyYAML's wheels carry it.
_LOADER: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


@dataclass(frozen=True)
class Entry:
    """One setting as it was given.

    Args:
        value: null, truth value, number, text or nested lists of these; a mapping fits no setting.
        place: where it stands, for messages: `` in `a.yaml` line 7``, or empty.
    """

    value: Any
    place: str = ""


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
        entries[key] = _entry_of(value, settings(kind)[key]) if is_text else Entry(value)
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


# From text to nodes


def text_of(path: Path) -> str:
    """The text of a config file.

    Raises:
        ConfigError: it cannot be read, is too large or is not UTF-8.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise ConfigError(f"config `{path}` cannot be read: {reason}", code="config") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config `{path}` is not UTF-8 text", code="config") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"config `{path}` is larger than 1 MiB", code="config")
    # JSON may be indented by tabs, YAML may not; inside JSON's strings a tab is never literal.
    return text.replace("\t", " ") if path.suffix.lower() == ".json" else text


def parse(text: str, source: str) -> yaml.Node | None:
    """The node tree of a document; None if it is empty.

    Args:
        text: YAML or JSON.
        source: what messages call it.

    Raises:
        ConfigError: not YAML, more than one document, nested more than 50 deep, or with anchors,
            aliases or tags.
    """
    try:
        # Events first: they come one by one, so nothing deep or growing is ever built.
        _check_events(text, source)
        return yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        problem = (error.problem or error.context or "broken").replace("\n", " ")
        raise ConfigError(f"{source}{line} is not YAML: {problem}", code="config") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise ConfigError(f"{source} holds characters that YAML forbids", code="config") from error


def _check_events(text: str, source: str) -> None:
    depth = documents = 0
    event: Any
    for items, event in enumerate(yaml.parse(text, Loader=_LOADER)):
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        problem = None
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            problem = "has an anchor or alias; write the value out"
        elif getattr(event, "tag", None) is not None:
            problem = "has a tag; write a plain value"
        elif depth > MAX_DEPTH:
            problem = f"is nested more than {MAX_DEPTH} deep"
        elif items > MAX_ITEMS:
            problem = f"is reached after {MAX_ITEMS} keys and values; no config has so many"
        elif documents > 1:
            problem = "begins a second document; a config is one"
        if problem:
            line = event.start_mark.line + 1
            raise ConfigError(f"{source} line {line} {problem}", code="config")


# From nodes to entries


@dataclass(frozen=True)
class Section:
    """One section of a file.

    Args:
        root: the config class of the file.
        source: what messages call the file.
        prefix: the section's key and a dot; empty for the whole file.
    """

    root: type
    source: str
    prefix: str = ""

    def entries(self, node: yaml.Node, kind: type) -> Iterator[tuple[str, Entry]]:
        """The settings below a node by dotted key."""
        for name, place, value in self.pairs(node):
            key, hint = f"{self.prefix}{name}", hints(kind).get(name)
            if hint is None and key in getattr(kind, "APART", ()):
                continue  # whoever knows that section reads it by itself
            if hint is None and "." in name and key in settings(self.root):
                section, _, last = key.rpartition(".")
                what = f"`{key}`{place} must be written as `{last}:` below `{section}:`"
                raise ConfigError(what, code="unknown-key")
            if is_section(hint):
                below = dataclasses.replace(self, prefix=f"{key}.")
                yield from below.entries(value, hint)
            elif not is_dropped(key, _plain(value), title(self.root), place):
                check_key(key, self.root, place)
                yield key, Entry(_plain(value), place)

    def pairs(self, node: yaml.Node) -> Iterator[tuple[str, str, yaml.Node]]:
        """Name, place and node of each line below a node; a name stands there once."""
        seen: dict[str, int] = {}
        for name_node, value in self._pairs(node):
            name = name_node.value if isinstance(name_node, yaml.ScalarNode) else "[...]"
            place = self._place(name_node)
            if name in seen:
                what = f"`{self.prefix}{name}`{place} was given before, in line {seen[name]}"
                raise ConfigError(what, remedy="keep one of the two", code="config")
            seen[name] = name_node.start_mark.line + 1
            yield name, place, value

    def _pairs(self, node: yaml.Node) -> list[tuple[yaml.Node, yaml.Node]]:
        if isinstance(node, yaml.MappingNode):
            return list(node.value)
        if _plain(node) is None:
            return []  # every line of the section is commented out
        name = f"`{self.prefix[:-1]}`{self._place(node)}" if self.prefix else self.source
        raise ConfigError(f"{name} must hold lines of `key: value`", code="config")

    def _place(self, node: yaml.Node) -> str:
        return f" in {self.source} line {node.start_mark.line + 1}"


def _plain(node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.style else resolve(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    return {str(name.value): _plain(value) for name, value in node.value}


def spelled_out(text: str, hint: Any) -> str:
    """What was typed for one value as YAML: `96,96,96` gets its brackets, `none` becomes `null`.

    Args:
        text: what was typed.
        hint: the type of the setting, which tells what commas and words mean.
    """
    if is_word(text, hint):
        return text
    text = text.strip()
    if text == "none":
        return "null"
    if not takes_tuple(hint) or text in ("null", "~", "[]"):
        return text
    if takes_number(hint) and "," not in text:
        return text  # `0.75` where two numbers may stand too
    return text if text.startswith("[[" if is_nested(hint) else "[") else f"[{text}]"


def load(text: str) -> Any:
    """One value in YAML as plain value: `1e-4`, `[96, 96, 96]`, `[[1, 2], [3, 4]]`.

    Raises:
        ConfigError: not YAML, for example a bracket that does not close.
    """
    node = parse(text, f"`{_shown(text)}`")
    return None if node is None else _plain(node)


def typed_text(text: str, hint: Any, name: str) -> Any:
    """What was typed for one setting, as its type.

    Args:
        text: what was typed.
        hint: the type of the setting.
        name: what messages call the setting.

    Raises:
        ConfigError: the value does not fit.
    """
    try:
        entry = _entry_of(text, hint)
    except ConfigError:
        entry = Entry(text)  # a bracket that does not close fits no setting
    return _typed(name, entry, hint)


def _entry_of(text: str, hint: Any) -> Entry:
    if is_word(text, hint) and text not in ("null", "~"):
        return Entry(text)
    return Entry(load(spelled_out(text, hint)))


# From entries to a config


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
    shown, section = _shown(key), key.rpartition(".")[0]
    owner = f"`{section}`" if section in hints(kind) else f"`mim3d {title(kind)}`"
    if is_section(hints(kind).get(key)):
        what = f"`{shown}`{place} is a section; its settings are lines of `key: value` below it"
        raise ConfigError(what, code="config")
    meant = nearest(key, kind)
    raise ConfigError(
        f"`{shown}`{place} is not a setting of {owner}",
        remedy=f"did you mean `{meant}`?" if meant else None,
        code="unknown-key",
    )


def built(default: Config, entries: Mapping[str, Entry]) -> Config:
    """A config with some settings replaced, each as the type of its field."""
    known = settings(type(default))
    values = {key: _typed(key, entry, known[key]) for key, entry in entries.items()}
    return _replaced(default, values, "")


def _typed(key: str, entry: Entry, hint: Any) -> Any:
    try:
        return convert(entry.value, hint)
    except Refused as error:
        raise ConfigError(
            f"`{key}`{entry.place} is `{_shown(entry.value)}`, expected {error}",
            remedy=_meant(entry.value, hint),
            code="wrong-type",
        ) from None


def typed_node(name: str, place: str, node: yaml.Node, hint: Any) -> Any:
    """What stands at one place of a file, as its type.

    Raises:
        ConfigError: the value is of another type.
    """
    return _typed(name, Entry(_plain(node), place), hint)


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


# From a config back to text


def to_mapping(config: DataclassInstance) -> dict[str, Any]:
    """A config as nested mappings of plain values, tuples as lists; complete, in field order."""
    return {
        name: to_mapping(value) if is_section(hint) else _listed(value)
        for name, hint in hints(type(config)).items()
        for value in [getattr(config, name)]
    }


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def differences(first: Config, second: Config) -> list[str]:
    """The dotted keys in which two configs of one class differ."""
    keys = settings(type(first))
    return [key for key in keys if value_of(first, key) != value_of(second, key)]


class _Dumper(yaml.SafeDumper):
    """Block mappings, lists on one line, and text quoted where the reader would see a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _dump_list(dumper: _Dumper, value: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)


def _dump_text(dumper: _Dumper, value: str) -> yaml.Node:
    style = None if resolve(value) == value else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(list, _dump_list)
_Dumper.add_representer(str, _dump_text)


def dump(mapping: Mapping[str, Any]) -> str:
    """A mapping as the YAML that `read_config` reads back to the same values."""
    return yaml.dump(dict(mapping), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _shown(value: Any) -> str:
    """A value or key for a message: on one line, and short."""
    text = {None: "null", True: "true", False: "false"}[value] if _is_word(value) else str(value)
    text = "".join(letter if letter.isprintable() else "?" for letter in text[:61])
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)
