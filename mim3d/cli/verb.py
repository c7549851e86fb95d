"""What one verb is: its words, its config, its switches, and what it calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mim3d.cli.calls import Call

if TYPE_CHECKING:
    from mim3d.workflows.result import Result

EVERYWHERE = frozenset({"help", "version", "quiet", "verbose", "debug"})
WRITES = frozenset({"out", "overwrite", "dry_run"})


@dataclass(frozen=True)
class Positional:
    """An argument without a name.

    Args:
        name: as it stands in the usage line.
        text: what it is.
        least: how many are needed, 0 or 1.
        many: whether more than one may follow.
    """

    name: str
    text: str
    least: int = 1
    many: bool = False


@dataclass(frozen=True)
class Verb:
    """What one verb is.

    Args:
        summary: one line for `mim3d --help`.
        story: what it does, for its own help.
        examples: lines to copy.
        run: calls the workflow.
        config: the config class, or None.
        positionals: arguments without name, in order.
        switches: which of `out`, `overwrite`, `dry_run`, `json`, `config` it takes.
        needs_out: whether `--out` must be given.
        kinds: config classes by verb, where CONFIG may be that of several; `config` is then the
            first one's until it is known.
    """

    summary: str
    story: str
    examples: tuple[str, ...]
    run: Callable[[Call], Result]
    config: type | None = None
    positionals: tuple[Positional, ...] = ()
    switches: frozenset[str] = frozenset()
    needs_out: bool = False
    kinds: Mapping[str, type] = field(default_factory=dict)

    @property
    def all_switches(self) -> frozenset[str]:
        """Its own switches and those of every verb."""
        return self.switches | EVERYWHERE | ({"print_config"} if self.config else set())
