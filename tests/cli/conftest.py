"""Workflows that only write down how they were called."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, field

import pytest

from mim3d.cli.main import main
from mim3d.foundation.errors import ExitCode
from mim3d.workflows.result import Result

WORKFLOWS = (
    "prepare", "pretrain", "finetune", "predict", "evaluate", "demo", "doctor", "info", "benchmark",
)  # fmt: skip


@dataclass
class Calls:
    """What the fake workflows were called with, and what they do."""

    seen: list[tuple[str, tuple, dict]] = field(default_factory=list)
    raises: BaseException | None = None
    says: tuple[str, ...] = ()
    result: Result = field(default_factory=lambda: Result(text="done", facts={"dice": 0.5}))

    def answer(self, name, arguments, keywords):
        self.seen.append((name, arguments, keywords))
        for text in self.says:
            keywords["reporter"].say(text)
        if self.raises is not None:
            raise self.raises
        return self.result

    @property
    def only(self):
        """The one call there was: verb, positional and keyword arguments without the reporter."""
        ((name, arguments, keywords),) = self.seen
        return name, arguments, {key: value for key, value in keywords.items() if key != "reporter"}


@pytest.fixture
def calls(monkeypatch):
    """Puts fakes in place of all workflows."""
    for variable in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(variable, raising=False)
    recorded = Calls()
    for name in WORKFLOWS:
        module = types.ModuleType(f"mim3d.workflows.{name}")

        def workflow(*arguments, _name=name, **keywords):
            return recorded.answer(_name, arguments, keywords)

        setattr(module, name, workflow)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return recorded


@dataclass
class Ended:
    """How a command ended."""

    code: ExitCode
    out: str
    err: str


@pytest.fixture
def mim3d(calls, capsys, tmp_path, monkeypatch):
    """Runs a command in an empty folder, on fake workflows."""
    monkeypatch.chdir(tmp_path)

    def command(line):
        code = main(line.split() if isinstance(line, str) else line)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return command
