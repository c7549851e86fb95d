"""Help texts and typed values of a verb's settings, by jsonargparse from its config class."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import jsonargparse

from mim3d.cli.aliases import ALIASES
from mim3d.cli.line import Line
from mim3d.cli.text import listed, wrapped
from mim3d.cli.verb import Verb
from mim3d.config.nodes import load
from mim3d.config.spelling import spelled_out, typed_text
from mim3d.config.tree import hints, is_section, settings
from mim3d.config.values import takes_tuple, words
from mim3d.foundation.errors import ConfigError, ExitCode

SWITCHES = {
    "out": ("-o, --out PATH", "where to write"),
    "config": ("--config FILE", "YAML file of settings, or the name of one that ships"),
    "verb": ("--verb VERB", "the verb whose config CONFIG is, where it fits several"),
    "overwrite": ("--overwrite", "start again where something already stands"),
    "dry_run": ("--dry_run", "say what would be done, how long it takes and what is written; stop"),
    "json": ("--json", "print the result as JSON"),
    "print_config": ("--print_config", "print the resolved config as YAML; stop"),
    "quiet": ("-q, --quiet", "only warnings and errors"),
    "verbose": ("-v, --verbose", "more detail"),
    "debug": ("--debug", "show the traceback of any error"),
    "version": ("--version", "show the version"),
    "help": ("-h, --help", "show this text"),
}
INDENT = 30


def typed_settings(verb: Verb, line: Line) -> dict[str, Any]:
    """The settings of a command line as values of their types.

    Raises:
        ConfigError: a value does not fit its setting.
    """
    if not line.settings:
        return {}
    known = settings(_config(verb))
    # Our own conversion first: it refuses in words, and also what jsonargparse would take but no
    # file may say (`yes`, `0x10`).
    for key, text in line.settings.items():
        typed_text(text, known[key], line.typed[key])
    texts = {key: spelled_out(text, known[key]) for key, text in line.settings.items()}
    options = [f"--{key}={text}" for key, text in texts.items()]
    given = _parser(verb).parse_args(options, defaults=False)
    return {key: given[key] for key in texts}


def _config(verb: Verb) -> type:
    assert verb.config is not None, "only a verb with a config has settings"
    return verb.config


def _parser(verb: Verb) -> jsonargparse.ArgumentParser:
    # The attribute docstrings of the dataclasses are the help; our loader reads each value, so
    # that a file and the command line take the same words for the same things.
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    jsonargparse.set_loader("mim3d", load, exceptions=(ConfigError,), json_superset=False)
    parser = jsonargparse.ArgumentParser(
        exit_on_error=False, add_help=False, parser_mode="mim3d", allow_abbrev=False
    )
    parser.add_class_arguments(_config(verb))
    return parser


def help_text(name: str, verb: Verb) -> str:
    """Everything `mim3d VERB --help` says."""
    parts = [
        wrapped(verb.story),
        "examples:\n" + "\n".join(f"  {example}" for example in verb.examples),
        f"usage: mim3d {name} {_usage(verb)}",
    ]
    if verb.positionals:
        rows = [(positional.name, positional.text) for positional in verb.positionals]
        parts.append(listed("arguments:", rows, indent=INDENT))
    rows = [row for switch, row in SWITCHES.items() if switch in verb.all_switches]
    parts.append(listed("options:", rows, indent=INDENT))
    if verb.config is not None:
        parts.extend(listed(title, rows, indent=INDENT) for title, rows in _groups(verb))
    codes = ", ".join(f"{code.value} {code.name.lower()}" for code in ExitCode)
    parts.append(wrapped(f"exit codes: {codes.replace('_', '-')}"))
    return "\n\n".join(parts) + "\n"


def _usage(verb: Verb) -> str:
    shown = []
    for positional in verb.positionals:
        word = positional.name + ("..." if positional.many else "")
        shown.append(word if positional.least else f"[{word}]")
    if verb.needs_out:
        shown.append("--out PATH")
    return " ".join([*shown, "[--option VALUE ...]"])


def _groups(verb: Verb) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The settings by section: title, and one row a setting."""
    config = _config(verb)
    actions = {action.dest: action for action in _parser(verb)._actions}
    shorts = {key: short for short in ALIASES for key in [_target(short, config)] if key}
    top = [key for key in settings(config) if "." not in key]
    sections = {name: hint for name, hint in hints(config).items() if is_section(hint)}
    rows = {key: _row(actions[key], settings(config)[key], shorts.get(key)) for key in actions
            if key in settings(config)}  # fmt: skip
    if top:
        yield "settings:", [rows[key] for key in top]
    for section, kind in sections.items():
        story = (kind.__doc__ or "").strip().splitlines()[0].rstrip(".")
        keys = [f"{section}.{name}" for name in settings(kind)]
        yield f"{section}: {story}", [rows[key] for key in keys]


def _target(short: str, config: type) -> str | None:
    known = settings(config)
    if short in known:
        return None
    return next((key for key in ALIASES[short] if key in known), None)


def _row(action: argparse.Action, hint: Any, short: str | None) -> tuple[str, str]:
    text = " ".join((action.help or "").split())
    text = f"{text[:1].upper()}{text[1:]}"
    if choices := words(hint):
        text += f" One of {', '.join(choices)}." if not takes_tuple(hint) else ""
    if short:
        text += f" In short --{short}."
    return f"--{action.dest}", f"{text} [{_default(action.default)}]"


def _default(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_default(item) for item in value) or "empty"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
