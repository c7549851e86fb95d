"""What a run keeps of its store (`preparation.json`), and what is read off it later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mim3d.config.tree import hints
from mim3d.config.values import convert
from mim3d.data.asked_target import AskedTarget
from mim3d.data.classes import ClassTable
from mim3d.data.prepare import VolumeRule
from mim3d.foundation.documents import DocumentError, bounded, versioned
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.inference.sliding_window import Spacing
from mim3d.training.run import Run, differing_keys

PREPARATION = "preparation.json"
"""What a run keeps of its store."""
RECORD_FORMAT = 2
"""Of `preparation.json`: the first version had neither a format nor a checksum."""
TARGETS = "targets"
"""What the record of a run of whole volumes says of its outputs."""
RECORD: dict[str, type] = {
    "verb": str,
    "preparation": dict,
    "modalities": list,
    "channel_names": list,
    "trained_on": dict,
}
"""What a run keeps of its store has at least."""


def load_preparation(run: str | Path) -> dict[str, Any]:
    """What a run keeps of its store.

    Raises:
        UserError: it is missing, damaged or of a later version.
    """
    path = Path(run) / PREPARATION
    try:
        record = versioned(bounded(path), {"format": RECORD_FORMAT}, _is_first)
        absent = [name for name, kind in RECORD.items() if not isinstance(record.get(name), kind)]
        if absent:
            raise DocumentError(f"it has no `{absent[0]}`")
    except (OSError, DocumentError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _damaged(run, str(reason)) from error
    return record


def _is_first(record: Mapping[str, Any]) -> bool:
    """The first version began with the verb and had neither format nor checksum."""
    return "format" not in record and next(iter(record), None) == "verb"


def keep_preparation(run: Run, record: Mapping[str, Any]) -> None:
    """Writes `preparation.json` of a run, or finds that it goes on with the store it began with.

    Raises:
        ConfigError: the store has other cases, voxels or preparation than when the run began.
        UserError: what the run keeps is damaged.
    """
    if run.checkpoints.find() is not None and (run.folder / PREPARATION).is_file():
        there = load_preparation(run.folder)
        differing = {
            key: values
            for key, values in differing_keys(there, json.loads(json.dumps(record))).items()
            # What an older version did not write down was not another one.
            if values[0] is not None and key != "format"
        }
        if differing:
            first, (was, now) = next(iter(differing.items()))
            others = f" and {len(differing) - 1} more differ" if len(differing) > 1 else " differs"
            raise ConfigError(
                f"the store is not the one that run `{run.folder}` began with: `{first}`{others} "
                f"({_short(was)} then, {_short(now)} now)",
                remedy="choose another --out, or add `--overwrite` to start again",
                code="store-differs",
            )
    run.write_sealed(PREPARATION, record)


def classes_of(record: dict[str, Any], run: str | Path = "") -> ClassTable:
    """The class table of a run's record.

    Raises:
        UserError: it has none.
    """
    try:
        return ClassTable.from_json(record["classes"])
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _damaged(run, "its classes are no table") from error


def targets_of(record: dict[str, Any], run: str | Path = "") -> tuple[AskedTarget, ...]:
    """What the outputs of a run of whole volumes stand for.

    Raises:
        UserError: its record does not say.
    """
    try:
        table = tuple(AskedTarget.from_json(one) for one in record[TARGETS])
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _damaged(run, "its targets are none") from error
    if not table:
        raise _damaged(run, "it has no targets")
    return table


def spacings_of(record: dict[str, Any]) -> tuple[Spacing, Spacing] | None:
    """The smallest and the largest spacing of the store; None in records that do not say."""
    stored = record.get("fingerprint", {}).get("stored", {}).get("spacing_mm")
    if not isinstance(stored, dict):
        return None
    (lx, ly, lz), (hx, hy, hz) = stored["min"], stored["max"]
    return (lx, ly, lz), (hx, hy, hz)


def rule_of(
    window_hu: tuple[float, float] | None, record: dict[str, Any], run: str | Path
) -> VolumeRule:
    """What training did to a volume: the store's rule, with the run's own window if it has one.

    Raises:
        UserError: the record of the run does not say.
    """
    fields = hints(VolumeRule)
    try:
        stored = {name: convert(value, fields[name])
                  for name, value in record["preparation"].items() if name in fields}  # fmt: skip
        modalities = convert(record["modalities"], fields["modalities"])
    except ValueError as error:
        raise _damaged(run, f"its preparation is none ({error})") from error
    rule = VolumeRule.from_json(stored)
    if None in (rule.modalities or ()):  # a store of several, where each case decides
        modalities = rule.modalities
    if window_hu is None:
        return replace(rule, modalities=modalities)
    return replace(rule, modalities=modalities, window_hu=window_hu)


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."


def _damaged(run: str | Path, reason: str) -> UserError:
    return UserError(
        f"`{PREPARATION}` of run `{run}` cannot be used: {reason}",
        remedy="restore the file; it says what the run was trained on",
        code="run-damaged",
    )
