"""From the nodes of a file to its settings by dotted key, each with its place."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from mim3d.config.building import Entry, check_key, typed
from mim3d.config.nodes import plain
from mim3d.config.removed import is_dropped
from mim3d.config.tree import hints, is_section, settings, title
from mim3d.foundation.errors import ConfigError


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
            elif not is_dropped(key, plain(value), title(self.root), place):
                check_key(key, self.root, place)
                yield key, Entry(plain(value), place)

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
        if plain(node) is None:
            return []  # every line of the section is commented out
        name = f"`{self.prefix[:-1]}`{self._place(node)}" if self.prefix else self.source
        raise ConfigError(f"{name} must hold lines of `key: value`", code="config")

    def _place(self, node: yaml.Node) -> str:
        return f" in {self.source} line {node.start_mark.line + 1}"


def typed_node(name: str, place: str, node: yaml.Node, hint: Any) -> Any:
    """What stands at one place of a file, as its type.

    Raises:
        ConfigError: the value is of another type.
    """
    return typed(name, Entry(plain(node), place), hint)
