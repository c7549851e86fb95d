"""What became of a source: cases prepared, kept and refused, and how a command ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mim3d.data.cohort import Case
from mim3d.data.prepare.summary import why_refused
from mim3d.data.store.layout import read_json, sidecar_path
from mim3d.foundation.disk import check_written
from mim3d.foundation.errors import ExitCode
from mim3d.foundation.reporting import duration
from mim3d.foundation.shard import Shard


@dataclass(frozen=True)
class Refusal:
    """One row of the quarantine."""

    case_id: str
    file: str
    code: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class PreparationResult:
    """What became of a source.

    Args:
        store: the folder.
        prepared: cases prepared in this call.
        kept: cases that an earlier call had prepared and whose source has not changed.
        refused: the quarantine; of a shard that did not merge the store, its own rows.
        seconds: how long it took.
        fingerprint: of all cases in the store; empty where all were refused, or some are to come.
        shard: which of several commands this was; the cases above are then its own.
        left: cases that other shards have still to prepare, at least; the last one merges.
        is_changed: whether the manifest is another one than before.
    """

    store: Path
    prepared: tuple[str, ...]
    kept: tuple[str, ...]
    refused: tuple[Refusal, ...]
    seconds: float
    fingerprint: dict[str, Any] = field(repr=False, default_factory=dict)
    shard: Shard | None = None
    left: int = 0
    is_changed: bool = False

    def __repr__(self) -> str:
        return (
            f"PreparationResult({str(self.store)!r}: {len(self.prepared)} prepared, "
            f"{len(self.kept)} kept, {len(self.refused)} refused, {duration(self.seconds)})"
        )

    @property
    def exit_code(self) -> ExitCode:
        """What a command that ends with this says."""
        if not self.refused:
            return ExitCode.DONE
        # Who merges speaks for the store; it may have refused all of its own cases.
        is_usable = self.prepared or self.kept or (self.shard is not None and self.fingerprint)
        return ExitCode.PARTIAL if is_usable else ExitCode.INPUT


def outcome(
    folder: Path, answers: Sequence[dict[str, Any]], judged: Sequence[Case], seconds: float
) -> PreparationResult:
    """What became of the cases of a command, by its answers and their sidecars.

    Args:
        folder: the store.
        answers: one a case of the command.
        judged: cases whose refusals count: those of the command, or of the whole store.
        seconds: how long it took.

    Raises:
        DiskError: a sidecar is gone.
    """
    check_written(sidecar_path(folder, answer["case_id"]) for answer in answers)
    refused = []
    states = {str(answer["case_id"]): str(answer["state"]) for answer in answers}
    ended: dict[str, list[str]] = {"prepared": [], "kept": []}
    for case_id in sorted({*states, *(case.case_id for case in judged)}):
        # `rebuild` may have refused a case that was prepared alone.
        why = why_refused(read_json(sidecar_path(folder, case_id)))
        if why is not None:
            refused.append(Refusal(case_id, **why))
        elif case_id in states:
            # Refused here and prepared by another command since: it is there.
            ended["prepared" if states[case_id] == "prepared" else "kept"].append(case_id)
    prepared, kept = tuple(ended["prepared"]), tuple(ended["kept"])
    return PreparationResult(folder, prepared, kept, tuple(refused), seconds)
