"""What people type for one setting on the command line: `96,96,96`, `none`."""

from __future__ import annotations

from typing import Any

from mim3d.config.building import Entry, typed
from mim3d.config.nodes import load
from mim3d.config.values import is_nested, is_word, takes_number, takes_tuple
from mim3d.foundation.errors import ConfigError


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
        entry = entry_of(text, hint)
    except ConfigError:
        entry = Entry(text)  # a bracket that does not close fits no setting
    return typed(name, entry, hint)


def entry_of(text: str, hint: Any) -> Entry:
    """What was typed for one setting, before it is fitted to its type."""
    if is_word(text, hint) and text not in ("null", "~"):
        return Entry(text)
    return Entry(load(spelled_out(text, hint)))
