"""What every verb returns: something to print, something to save, and how it ended."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mim3d.foundation.errors import ExitCode


@dataclass(frozen=True)
class Result:
    """The end of a verb.

    Args:
        text: what the command line prints to standard output.
        facts: the same as numbers and words, for `--json` and for programs.
        files: what was written and is worth opening.
        exit_code: how the command ends.
    """

    text: str
    facts: dict[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    exit_code: ExitCode = ExitCode.DONE

    def __str__(self) -> str:
        lines = [self.text, *(f"wrote {path}" for path in self.files)]
        return "\n".join(line for line in lines if line)

    def as_json(self) -> dict[str, Any]:
        """The result as JSON types."""
        content = asdict(self)
        content["files"] = [str(path) for path in self.files]
        content["exit_code"] = int(self.exit_code)
        return content
