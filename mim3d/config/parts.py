"""Sections of a file that belong to another config class than the file's own, read as strictly.

A convergence benchmark lists its arms this way: each changes some settings of two other configs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mim3d.config.building import built
from mim3d.config.entries import Section, typed_node
from mim3d.config.nodes import parse, text_of
from mim3d.config.tree import similar
from mim3d.foundation.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


@dataclass(frozen=True)
class Part:
    """A piece of a file.

    Args:
        name: its key.
        place: where it stands, for messages: `` in `a.yaml` line 7``.
        source: what messages call the piece that this one lies in: `` `a.yaml` ``.
        node: what stands there.
    """

    name: str
    place: str
    source: str
    node: Any

    def parts(self, within: str | None = None) -> dict[str, Part]:
        """What lies below it, by name.

        Args:
            within: what messages about the pieces call this one; none is the same file.

        Raises:
            ConfigError: it is no mapping, or a name stands there twice.
        """
        source = within or self.source
        section = Section(object, source, f"{self.name}.")
        return {
            name: Part(name, place, source, node) for name, place, node in section.pairs(self.node)
        }

    def said(self, base: Config) -> frozenset[str]:
        """The dotted keys of a config that it names."""
        return frozenset(dict(Section(type(base), self.source).entries(self.node, type(base))))

    def over(self, base: Config) -> Config:
        """A config with the settings of this piece in place of its own.

        Raises:
            ConfigError: a key is no setting of it, or a value of the wrong type.
        """
        kind = type(base)
        return built(base, dict(Section(kind, self.source).entries(self.node, kind)))

    def value(self, hint: Any) -> Any:
        """It as a value of a type.

        Raises:
            ConfigError: it is of another type.
        """
        return typed_node(self.name, self.place, self.node, hint)


def section_of(path: Path, name: str) -> Part | None:
    """A section at the top of a file; None where it is not there.

    Raises:
        ConfigError: the file cannot be read, or is not what a config may be.
    """
    source = f"`{path}`"
    root = parse(text_of(path), source)
    if root is None:
        return None
    for key, place, node in Section(object, source).pairs(root):
        if key == name:
            return Part(key, place, source, node)
    return None


def check_names(parts: Iterable[Part], known: Iterable[str]) -> None:
    """Raises `ConfigError`, with the name that was probably meant, for any other name."""
    known = tuple(known)
    for part in parts:
        if part.name not in known:
            meant = similar(part.name, known)
            listed = f"it is one of {', '.join(f'`{name}`' for name in known)}"
            raise ConfigError(
                f"`{part.name}`{part.place} is no setting of an arm",
                remedy=f"did you mean `{meant}`?" if meant else listed,
                code="unknown-key",
            )
