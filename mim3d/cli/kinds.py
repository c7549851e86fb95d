"""Which verb's config a command takes that takes those of several: `mim3d plan CONFIG`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mim3d.cli.calls import Call
from mim3d.cli.line import Line, read_line
from mim3d.cli.verb import Verb
from mim3d.config.nodes import load
from mim3d.config.reading import read_config
from mim3d.config.shipped import shipped_names
from mim3d.config.tree import hints
from mim3d.foundation.errors import ConfigError

if TYPE_CHECKING:
    from mim3d.workflows.result import Result


def with_kind(name: str, verb: Verb, arguments: Sequence[str]) -> Verb:
    """The verb with the config class that `--verb` names, or that the config's settings belong to.

    Where they fit several it is the first one's, and the result says so.

    Args:
        name: the verb as typed.
        verb: its entry in the table, with `kinds`.
        arguments: what follows it.

    Raises:
        ConfigError: the line cannot be read.
    """
    word = _said(arguments)
    if word is not None and word not in verb.kinds:
        known = " or ".join(f"`{kind}`" for kind in verb.kinds)
        raise ConfigError(f"`--verb {word}` is not one of {known}")
    fitting = [word] if word is not None else _found(name, verb, arguments)
    chosen = replace(verb, config=verb.kinds[fitting[0]])
    return chosen if len(fitting) == 1 else _assuming(chosen, fitting)


def _assuming(verb: Verb, fitting: Sequence[str]) -> Verb:
    """The verb, whose result says what was taken and the word for another."""
    others = " or ".join(f"`--verb {word}`" for word in fitting[1:])
    assumed = f"a config of `{fitting[0]}` (for another add {others})"

    def run(call: Call) -> Result:
        return verb.run(replace(call, assumed=(*call.assumed, assumed)))

    return replace(verb, run=run)


def _said(arguments: Sequence[str]) -> str | None:
    for place, token in enumerate(arguments):
        option, equals, value = token.partition("=")
        if option == "--verb":
            return value if equals else next(iter(arguments[place + 1 :]), "")
    return None


def _found(name: str, verb: Verb, arguments: Sequence[str]) -> list[str]:
    """The kinds that config and line may be of, the one that is taken first."""
    lines: dict[str, Line] = {}
    failure: ConfigError | None = None
    for word, kind in verb.kinds.items():
        try:
            lines[word] = read_line(name, replace(verb, config=kind), arguments)
        except ConfigError as error:
            failure = failure or error
    if not lines:
        assert failure is not None
        raise failure
    first = next(iter(lines))
    source = next(iter(lines[first].words.get("CONFIG", [])), None)
    if source is None:
        return [first]
    fitting = [word for word in _fitting(source, verb) if word in lines] or list(lines)[:1]
    if len(fitting) > 1 and Path(source).parent.name in fitting:
        return [Path(source).parent.name]
    return fitting


def _fitting(source: str, verb: Verb) -> list[str]:
    """The kinds a config can be of; where it fits none, the one that has most of its sections."""
    path = Path(source)
    if not path.is_file():
        return [word for word in verb.kinds if source in shipped_names(word)]
    fitting = [word for word, kind in verb.kinds.items() if _fits(path, kind)]
    if fitting:
        return fitting
    try:
        sections = set(load(path.read_text(encoding="utf-8")))
    except (ConfigError, OSError, UnicodeDecodeError):
        return []  # whoever reads it next says what is wrong
    kinds = verb.kinds
    return [max(kinds, key=lambda word: len(sections & hints(kinds[word]).keys()))]


def _fits(path: Path, kind: type) -> bool:
    try:
        read_config(path, kind)
    except ConfigError:
        return False
    return True
