"""From a config back to plain values and to YAML that is read back to the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from mim3d.config.building import Config, check_finite
from mim3d.config.tree import hints, is_section, settings, value_of
from mim3d.config.values import resolve

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def to_mapping(config: DataclassInstance) -> dict[str, Any]:
    """A config as nested mappings of plain values, tuples as lists; complete, in field order.

    Raises:
        ConfigError: it holds a number that is not finite.
    """
    check_finite(config)
    return _mapping(config)


def _mapping(config: DataclassInstance) -> dict[str, Any]:
    return {
        name: _mapping(value) if is_section(hint) else _listed(value)
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
