"""From text to YAML's nodes and plain values, with limits on what strangers can write.

A file is taken as text of at most 1 MiB, nested at most 50 deep, without anchors, aliases or tags.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mim3d.config.values import resolve, shown
from mim3d.foundation.errors import ConfigError

MAX_BYTES = 2**20
MAX_DEPTH = 50
MAX_ITEMS = 10_000
"""Keys, values and brackets of a file: a hundred times what the largest config has."""

# libyaml's parser gives the same nodes about ten times as fast; PyYAML's wheels carry it.
_LOADER: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


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


def plain(node: yaml.Node) -> Any:
    """A node as null, truth value, number, text, or lists and mappings of these."""
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.style else resolve(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [plain(item) for item in node.value]
    return {str(name.value): plain(value) for name, value in node.value}


def load(text: str) -> Any:
    """One value in YAML as plain value: `1e-4`, `[96, 96, 96]`, `[[1, 2], [3, 4]]`.

    Raises:
        ConfigError: not YAML, for example a bracket that does not close.
    """
    node = parse(text, f"`{shown(text)}`")
    return None if node is None else plain(node)
