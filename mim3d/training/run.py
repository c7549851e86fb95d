"""A run folder: what it was asked for, where it stands, and who may write in it."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from mim3d.config.nodes import load
from mim3d.config.removed import is_dropped
from mim3d.config.training import TrainingConfig
from mim3d.config.writing import dump
from mim3d.foundation.atomic import (
    TEMPORARY,
    make_folder,
    sweep,
    temporary_name,
    write_json,
    write_text,
)
from mim3d.foundation.disk import check_there
from mim3d.foundation.documents import read_object, write_sealed
from mim3d.foundation.errors import ConfigError, Interrupted, StoppedError, UserError
from mim3d.foundation.lock import NAME as LOCK
from mim3d.foundation.lock import FolderLock
from mim3d.foundation.versions import versions
from mim3d.training import fabric
from mim3d.training.checkpoints import Checkpoints

logger = logging.getLogger(__name__)

CONFIG, VERSIONS, STATUS, RESULTS = "config.yaml", "versions.json", "status.json", "results.json"
CURVE = "curve.json"
OWN = (
    STATUS, RESULTS, CURVE, "checkpoints", "preparation.json", "init.json", "probes.json",
    "log.jsonl", "tensorboard", "pictures",
)  # fmt: skip
"""What a run has made, in the order in which `overwrite` removes it; nothing else is touched.

Config and versions are replaced and never removed: by them a folder is known as a run, at whatever
moment a process in it was killed.
"""
MAY_DIFFER = frozenset({"training.strategy", "training.collective_timeout_seconds"})
"""Settings that change how a run is computed and not what: it may go on with others."""


class Run:
    """A folder that one training command owns. Use it in a `with` block.

    Leaving the block releases the folder and writes how it ended: `done` when the training came
    to its last step and nothing was raised, else `interrupted`, `stopped` or `failed`. Processes
    other than the first one hold the same face and write nothing.

    Args:
        folder: the run's.
        writes: whether this process is the one that writes.
        is_done: whether an earlier command finished the run.
        replaces: whether what is there belongs to another run, which stays until this one begins.
    """

    def __init__(
        self, folder: Path, *, writes: bool = True, is_done: bool = False, replaces: bool = False
    ) -> None:
        self.folder = folder
        self.writes = writes
        self.is_done = is_done
        self.checkpoints = Checkpoints(folder / "checkpoints", self.begin)
        self.checkpoints.are_anothers = replaces
        self.note: str | None = None
        """What is worth telling of how the run was found: a stale lock, leftovers."""
        self._lock: FolderLock | None = None
        self._is_trained = False
        self._waiting: list[Callable[[], None]] = []

    @classmethod
    def create_or_continue(
        cls,
        folder: Path | str,
        config: Mapping[str, Any],
        *,
        defaults: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> Run:
        """Makes the folder, goes on with an unfinished run of the same config, or finds it done.

        Under several processes the first one does it and the others take its answer.

        Args:
            folder: made if absent.
            config: resolved; nested mappings of what JSON can hold.
            defaults: the same of a config that says nothing: what a setting meant in a run of a
                version that did not know it.
            overwrite: begin again where a run stands, which is removed by `begin`; a folder that is
                no run is never removed.

        Returns:
            The run, locked unless it is done.

        Raises:
            ConfigError: the folder holds a run of another config (the keys are listed), or files
                that are no run.
            UserError: another process works in the folder.
        """
        folder = Path(folder)
        if fabric.processes().world == 1:
            return cls._open(folder, config, defaults or {}, overwrite)
        device = config.get("training", {}).get("device", "auto")
        machine = fabric.start(TrainingConfig(device=device))
        opened: list[Run] = []

        def open_first() -> bool:
            opened.append(cls._open(folder, config, defaults or {}, overwrite))
            return opened[0].is_done

        is_done = machine.first(open_first)
        if opened:
            return opened[0]
        return cls(folder, writes=False, is_done=is_done, replaces=overwrite)

    @classmethod
    def _open(
        cls,
        folder: Path,
        config: Mapping[str, Any],
        defaults: Mapping[str, Any],
        overwrite: bool,
    ) -> Run:
        # As it will be read back: tuples are lists there.
        config = load(dump(config))
        _check_is_run_or_empty(folder)
        if not overwrite and (folder / CONFIG).is_file():
            _check_same_config(folder, config, defaults)
            if read_status(folder).get("state") == "done":
                return cls(folder, is_done=True)
        make_folder(folder)
        run = cls(folder, replaces=overwrite)
        run._lock = FolderLock(folder)
        run._lock.take()
        try:
            # To replace a run waits for `begin`: until then config or device may be refused.
            run._write(partial(run._prepare, config, overwrite))
        except BaseException:
            run._lock.release()
            raise
        return run

    def _prepare(self, config: Mapping[str, Any], overwrite: bool) -> None:
        assert self._lock is not None
        if overwrite:
            _empty(self.folder)
        leftovers = sweep(self.folder) + self.checkpoints.sweep()
        notes = [self._lock.note] if self._lock.note else []
        if leftovers:
            notes.append(f"removed {leftovers} unfinished files of a process that was killed")
        self.note = "; ".join(notes) or None
        write_json(self.folder / VERSIONS, self._versions(overwrite))
        if overwrite or not (self.folder / CONFIG).is_file():
            write_text(self.folder / CONFIG, dump(config))

    def _versions(self, overwrite: bool) -> dict[str, str]:
        """The versions of this session, behind those of earlier ones that had part in the run."""
        path = self.folder / VERSIONS
        before = read_object(path) if path.is_file() and not overwrite else {}
        return {
            name: now if before.get(name, now) == now else _then(str(before[name]), now)
            for name, now in versions().items()
        }

    def begin(self) -> None:
        """Makes sure that the folder is this run's, and removes the run that it replaces.

        Called in every process when training begins, and before every checkpoint and status.

        Raises:
            DiskError: the folder is gone.
            UserError: another process has taken it over.
        """
        if self._lock is not None:
            check_there(self.folder / STATUS)
            self._lock.check()
        if not self.checkpoints.are_anothers:
            return
        self.checkpoints.are_anothers = False
        for write in self._waiting:
            self._write(write)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.end(error)
        elif self._is_trained:
            self.finish()
        self.release()

    def release(self) -> None:
        """Gives the folder back without a word on how it ended."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def write_json(self, name: str, content: Any) -> None:
        """Writes a whole JSON file into the folder, once the run has begun."""
        self._write(partial(write_json, self.folder / name, content))

    def write_sealed(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a whole JSON file that ends with a checksum of itself, once the run has begun."""
        self._write(partial(write_sealed, self.folder / name, content))

    def _write(self, write: Callable[[], None]) -> None:
        if self.checkpoints.are_anothers:
            self._waiting.append(write)
        elif self.writes:
            write()

    def progress(self, step: int, steps: int) -> None:
        """Notes how far the training is."""
        self._write_status("running", step=step, steps=steps, reason=None)

    def trained(self, summary: Mapping[str, Any]) -> None:
        """Notes that the last step is made; the run is done when its block ends well."""
        self._is_trained = True
        self._write_status("running", training=dict(summary))

    def finish(self, results: Mapping[str, Any] | None = None) -> None:
        """Notes that all is done, with `results.json` if results are given."""
        if results is not None:
            self.write_json(RESULTS, results)
        self._write_status("done", reason=None)
        self.is_done = True

    def end(self, error: BaseException) -> None:
        """Notes that an error ended the work; a second Ctrl-C, or no begin, ends without a word."""
        if isinstance(error, KeyboardInterrupt) or self.checkpoints.are_anothers:
            return
        state = "failed"
        if isinstance(error, Interrupted | KeyboardInterrupt | SystemExit):
            state = "interrupted"
        elif isinstance(error, StoppedError):
            state = "stopped"
        known = isinstance(error, UserError)
        try:
            self._write_status(state, reason=str(error) if known else type(error).__name__)
        except UserError as other:
            # What ended the work is the message; that it could not be noted is none.
            logger.warning("%s", other)

    def results(self) -> dict[str, Any]:
        """`results.json`, or the training's own summary where nothing else was written."""
        path = self.folder / RESULTS
        if path.is_file():
            return read_object(path)
        return dict(read_status(self.folder).get("training", {}))

    def _write_status(self, state: str, **changes: Any) -> None:
        if self.writes:
            self.begin()
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            status = {**read_status(self.folder), "state": state, "updated": now, **changes}
            write_json(self.folder / STATUS, status)


def _then(before: str, now: str) -> str:
    """`2.12.0 then 2.13.0`; the last of several is told once where it goes on."""
    return before if before.endswith(f" then {now}") else f"{before} then {now}"


def read_status(folder: Path) -> dict[str, Any]:
    """`status.json`: `state`, `step`, `steps`, `reason`, `updated`; empty where there is none."""
    path = folder / STATUS
    return read_object(path) if path.is_file() else {}


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both values; None stands for a key that is absent."""
    left, right = _flat(one), _flat(other)
    return {
        key: (left.get(key), right.get(key))
        for key in sorted(left.keys() | right.keys())
        if key not in left or key not in right or left[key] != right[key]
    }


def _flat(mapping: Mapping[str, Any], head: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{head}{key}.")
        else:
            flat[f"{head}{key}"] = value
    return flat


def _check_same_config(
    folder: Path, config: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    there, place = load((folder / CONFIG).read_text(encoding="utf-8")), f" in `{folder / CONFIG}`"
    known, plain = _flat(there), _flat(load(dump(defaults)))
    differing = {
        key: values
        for key, values in differing_keys(there, config).items()
        # A setting that an older version did not know was none there, or its default.
        if key not in MAY_DIFFER
        and values != (None, None)
        and not (key not in known and key in plain and plain[key] == values[1])
        and not is_dropped(key, values[0], place=place)
    }
    if not differing:
        return
    listed = ", ".join(f"`{key}` ({was} there, {is_} now)" for key, (was, is_) in differing.items())
    raise ConfigError(
        f"run folder `{folder}` holds a run of another config: {listed}",
        remedy="choose another --out, or add `--overwrite` to start again; a longer run is a new "
        "run with `--init`",
        code="config-differs",
    )


def _check_is_run_or_empty(folder: Path) -> None:
    if not folder.exists() or all((folder / name).is_file() for name in (CONFIG, VERSIONS)):
        return
    ours = (LOCK, TEMPORARY, VERSIONS)
    if folder.is_dir() and all(item.name.startswith(ours) for item in folder.iterdir()):
        return
    raise ConfigError(
        f"`{folder}` exists and is not a run folder",
        remedy="choose another --out",
        code="not-a-run",
    )


def _empty(folder: Path) -> None:
    for name in OWN:
        item = folder / name
        if item.is_dir() and not item.is_symlink():
            # In one move: half a checkpoint is none that a run could go on from.
            removed = temporary_name(item)
            os.replace(item, removed)
            shutil.rmtree(removed)
        else:
            item.unlink(missing_ok=True)
