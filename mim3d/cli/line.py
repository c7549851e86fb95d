"""From what was typed to positional arguments, switches and settings as text.

`-` and `_` are the same in the name of an option; `--key value` and `--key=value` are the same.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from mim3d.cli.aliases import ALIASES
from mim3d.cli.verb import Verb
from mim3d.config.tree import hints, is_section, nearest, settings, similar
from mim3d.config.values import TRUTHS
from mim3d.foundation.errors import ConfigError

SHORT = {"-h": "help", "-q": "quiet", "-v": "verbose", "-o": "out"}
WITH_VALUE = frozenset({"out", "config", "verb"})
# `-1000,1000` is a value, `-o` is an option.
NEGATIVE = re.compile(r"-[.\d].*")


@dataclass(frozen=True)
class Line:
    """A command line, taken apart.

    Args:
        words: positional arguments by name.
        switches: the switches that were set, with their value where they have one.
        settings: dotted key to text.
        typed: dotted key to the option as it was typed, for messages.
    """

    words: dict[str, list[str]] = field(default_factory=dict)
    switches: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    typed: dict[str, str] = field(default_factory=dict)


def read_line(name: str, verb: Verb, arguments: Sequence[str]) -> Line:
    """Takes the arguments of a verb apart.

    Args:
        name: the verb as typed.
        verb: its entry in the table.
        arguments: what follows it.

    Raises:
        ConfigError: an unknown or repeated option, one without its value, or too few or too many
            positional arguments.
    """
    line, tokens, words = Line(), deque(arguments), list[str]()
    while tokens:
        token = tokens.popleft()
        if token == "--":
            words.extend(tokens)
            break
        if not token.startswith("-"):
            words.append(token)
        else:
            _take_option(token, tokens, line, name, verb)
    if not {"help", "version"} & line.switches.keys():
        line.words.update(_named(words, name, verb))
    return line


def _take_option(token: str, tokens: deque[str], line: Line, name: str, verb: Verb) -> None:
    """Stores one option, with its value from behind `=` or from the next token."""
    typed, has_value, value = token.partition("=")
    option = SHORT.get(typed) or typed.removeprefix("--").replace("-", "_")
    if not (typed.startswith("--") or typed in SHORT):
        raise _unknown(typed, option, name, verb)
    key = _key(option, verb)
    if key is None and option not in verb.all_switches:
        raise _unknown(typed, option, name, verb)
    takes_value = option in WITH_VALUE if key is None else not _is_switch(key, verb, tokens)
    if has_value and not takes_value and key is None:
        raise ConfigError(f"`{typed}` takes no value")
    if takes_value and not has_value:
        value = _next_value(typed, tokens)
    if has_value and not value:
        raise ConfigError(f"`{typed}=` has no value", remedy=f"write `{typed} null` for none")
    if (key or option) in (line.switches if key is None else line.settings):
        raise ConfigError(f"`{typed}` is given twice", remedy="keep one of the two")
    if key is None:
        line.switches[option] = value
    else:
        line.settings[key] = value or "true"
        line.typed[key] = typed


def _key(option: str, verb: Verb) -> str | None:
    """The setting an option stands for, by its dotted key or by a short name."""
    known = settings(verb.config) if verb.config else {}
    candidates = (option, *ALIASES.get(option, ()))
    return next((candidate for candidate in candidates if candidate in known), None)


def _is_switch(key: str, verb: Verb, tokens: deque[str]) -> bool:
    """Whether a truth value stands alone: `--keep_paths` is `--keep_paths true`."""
    assert verb.config is not None
    return settings(verb.config)[key] is bool and not (tokens and tokens[0] in TRUTHS)


def _next_value(typed: str, tokens: deque[str]) -> str:
    if not tokens or (tokens[0].startswith("-") and not NEGATIVE.fullmatch(tokens[0])):
        raise ConfigError(f"`{typed}` needs a value", remedy=f"write `{typed} VALUE`")
    return tokens.popleft()


def _unknown(typed: str, option: str, name: str, verb: Verb) -> ConfigError:
    what = f"`{typed}` is not an option of `mim3d {name}`"
    if typed == "-i" and name == "predict":
        remedy = "inputs stand without it: `mim3d predict RUN INPUT... --out DIR`"
        return ConfigError(what, remedy=remedy)
    if verb.config is not None and is_section(hints(verb.config).get(option)):
        remedy = f"write `{typed}.KEY VALUE`; `mim3d {name} --help` lists them"
        return ConfigError(f"`{typed}` is a section of settings", remedy=remedy)
    meant = similar(option, sorted(verb.all_switches))
    if meant is None and verb.config is not None:
        meant = nearest(option, verb.config) or similar(option, ALIASES)
    remedy = f"did you mean `--{meant}`?" if meant else f"`mim3d {name} --help` lists them"
    return ConfigError(what, remedy=remedy, code="unknown-option")


def _named(words: list[str], name: str, verb: Verb) -> dict[str, list[str]]:
    """The positional arguments by name."""
    named: dict[str, list[str]] = {}
    rest = deque(words)
    for positional in verb.positionals:
        taken = [rest.popleft() for _ in range(len(rest) if positional.many else min(1, len(rest)))]
        if len(taken) < positional.least:
            raise ConfigError(
                f"`mim3d {name}` needs {positional.name}: {positional.text}",
                remedy=f"for example `{verb.examples[0]}`",
            )
        named[positional.name] = taken
    if rest:
        raise ConfigError(
            f"`{rest[0]}` is one argument too many for `mim3d {name}`",
            remedy="several values of one setting are parted by commas: `96,96,96`",
        )
    return named
