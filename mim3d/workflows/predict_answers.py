"""`mim3d predict` with a run of whole volumes: one CSV of classes and probabilities, or numbers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mim3d.data.prepare import read_images
from mim3d.evaluation.predictions import (
    NAME,
    Prediction,
    read_predictions,
    write_predictions,
)
from mim3d.foundation.atomic import make_folder, sweep, write_json
from mim3d.foundation.disk import check_written
from mim3d.foundation.documents import read_object
from mim3d.foundation.errors import DiskError, ExitCode, ResourceError, UserError
from mim3d.foundation.memory import lack_told
from mim3d.foundation.reporting import duration
from mim3d.inference.classifier import Classifier, classify
from mim3d.workflows.loading import load_classifier
from mim3d.workflows.prediction_jobs import (
    RECORD,
    Asked,
    Job,
    key_of,
    refuse_foreign,
    settings_of,
    warn_of_training_cases,
)
from mim3d.workflows.prediction_notes import (
    Note,
    find_note,
    in_order,
    in_turn,
    leave_note,
    stamp,
    take_notes,
)
from mim3d.workflows.result import Result
from mim3d.workflows.run_record import load_preparation
from mim3d.workflows.tasks.classification import predictions_of

KEPT_EVERY_SECONDS = 30.0
"""How often what is done so far is written: a file of all cases, for each case anew, takes long."""


def predict_answers(asked: Asked) -> Result:
    """Answers for whole volumes.

    Args:
        asked: the command.

    Raises:
        UserError: a run that is no classifier, runs of different targets, or no input.
    """
    config, reporter = asked.config, asked.reporter
    classifiers = [
        load_classifier(
            name, checkpoint=config.checkpoint, device=config.device, precision=config.precision
        )
        for name in asked.runs
    ]
    asked = asked.mirrored([one.model for one in classifiers])
    reporter.say(
        f"predicting {', '.join(f'`{one.name}`' for one in classifiers[0].table)} of "
        f"{len(asked.jobs)} case(s) with {', '.join(f'`{name}`' for name in asked.runs)} into "
        f"`{asked.folder / NAME}`"
    )
    if asked.dry_run:
        lines = [job.case.case_id for job in asked.jobs]
        return Result(text="\n".join([*lines, "nothing was written (--dry_run)"]))
    make_folder(asked.folder)
    sweep(asked.folder)
    trained = {key for name in asked.runs for key in load_preparation(name)["trained_on"].values()}
    warn_of_training_cases(asked.jobs, trained, reporter)
    return _Work(asked, classifiers, trained).run()


@dataclass(eq=False)
class _Work:
    """One command's way through its cases.

    Args:
        asked: the command.
        classifiers: one a run.
        trained: keys of what the runs were trained on.
    """

    asked: Asked
    classifiers: Sequence[Classifier]
    trained: Collection[str]
    made: dict[str, list[Prediction]] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    is_memory_alone: bool = True

    def __post_init__(self) -> None:
        self.stamp = stamp(self.asked.folder)
        self.settings = settings_of(self.asked.runs, self.asked.config)
        self.began = self.kept = time.monotonic()

    def run(self) -> Result:
        """Goes through all cases, and tells what was done.

        Raises:
            ConfigError: it would replace a file that is not ours.
        """
        path = self.asked.folder / NAME
        if not self.asked.overwrite and path.exists() and not path.with_name(RECORD).is_file():
            refuse_foreign(self.asked.folder, [path])
        self.take_notes()
        if not self.asked.overwrite:
            self.recall()
        with contextlib.closing(in_turn(self.asked)) as turn:
            for done, job in enumerate(turn):
                self.take(done, job)
        self.take_notes()
        return self.result()

    def recall(self) -> None:
        """Takes up what an earlier command predicted; what cannot be read is made anew."""
        self.stamp = stamp(self.asked.folder)
        self.record, self.made = _recorded(self.asked.folder)

    def take(self, done: int, job: Job) -> None:
        """Predicts a case, keeps what is there, or leaves the case out and says why.

        Raises:
            DiskError: it cannot be written; the next one could not either.
        """
        asked, name = self.asked, job.case.case_id
        key = {**key_of(job, self.settings), "trained_on": job.source in self.trained}
        if channels := self._channels(job):
            key["channels"] = list(channels)
        if asked.shard is not None:
            self._look(job)
        if self.record.get(name) != key:
            spent, total = time.monotonic() - self.began, len(asked.jobs)
            left = f", {duration(spent / done * (total - done))} left" if done else ""
            asked.reporter.progress(done, total, f"{name}: {done} of {total}{left}")
            try:
                with lack_told(_lack):
                    self.made[name] = self._predict(job, channels)
            except DiskError:
                raise
            except UserError as error:
                self._leave_out(job, error)
                return
            self.record[name] = key
            if asked.shard is not None:
                rows = tuple(_as_json(row) for row in self.made[name])
                leave_note(asked, job, Note(name, key, rows))
            elif time.monotonic() - self.kept > KEPT_EVERY_SECONDS:
                self.keep()
        self.finished.add(name)

    def _predict(self, job: Job, channels: tuple[str, ...]) -> list[Prediction]:
        config = self.asked.config
        volume = read_images(job.case.images, align=config.align_channels, read=config.read)
        classifiers = self.classifiers
        if channels:
            classifiers = [one.for_channels(channels) for one in classifiers]
        return predictions_of(job.case.case_id, classify(classifiers, volume, config.inference))

    def _channels(self, job: Job) -> tuple[str, ...]:
        """The names of a case's channels, where a run goes by them; empty where none does."""
        if self.asked.config.channels:
            return self.asked.config.channels
        is_by_name = any(one.model.takes_some for one in self.classifiers)
        return (job.channel_names or ()) if is_by_name else ()

    def _look(self, job: Job) -> None:
        """Takes up what other commands have said of a case since."""
        # The note first: it goes when the record has what it says.
        note = find_note(self.asked, job)
        if stamp(self.asked.folder) != self.stamp:
            self.recall()
        if note is not None:
            _enter(note, self.record, self.made)

    def take_notes(self) -> None:
        """Takes what this and other commands noted into the two files.

        Raises:
            DiskError: they cannot be written.
        """
        folder = self.asked.folder

        def merge(notes: Sequence[Note]) -> None:
            record, made = _recorded(folder)
            for note in notes:
                _enter(note, record, made)
            names = [job.case.case_id for job in self.asked.everyone]
            _write(folder, in_order(record, names), made)

        take_notes(folder, self.asked.reporter, merge)

    def _leave_out(self, job: Job, error: UserError) -> None:
        name = job.case.case_id
        self.is_memory_alone = self.is_memory_alone and isinstance(error, ResourceError)
        # What an earlier command said of it was of another input.
        self.made.pop(name, None)
        self.record.pop(name, None)
        if self.asked.shard is not None:
            leave_note(self.asked, job, Note(name, None))
        # Results may be kept: names in a path or of a slice are for the person alone.
        self.refused.append(f"{name}: left out ({error.code})")
        self.asked.reporter.warn(f"`{name}` is left out: {error}")
        if error.remedy:
            self.asked.reporter.warn(f"hint: {error.remedy}")

    def keep(self) -> None:
        """Writes what is done so far; the answers first, for the record says that they are there.

        Raises:
            DiskError: it cannot be written.
        """
        _write(self.asked.folder, self.record, self.made)
        self.kept = time.monotonic()

    def result(self) -> Result:
        """Writes everything, and tells what was done."""
        folder, jobs = self.asked.folder, self.asked.jobs
        made, seconds = len(jobs) - len(self.refused), time.monotonic() - self.began
        lines = [f"{made} of {len(jobs)} cases predicted in {duration(seconds)}", *self.refused]
        files = []
        if self.asked.shard is not None:
            self.recall()  # as the notes made it, of all shards
        else:
            self.keep()
        if self.made:
            files = [folder / NAME]
            check_written([*files, folder / RECORD])
            lines.append(f"next: mim3d evaluate {folder / NAME} LABELS")
        code = ExitCode.DONE if not self.refused else ExitCode.PARTIAL if made else ExitCode.INPUT
        if self.is_memory_alone and self.refused and not made:
            code = ExitCode.RESOURCES
        more, told = self.asked.told(self.made)
        facts = {"predicted": made, "refused": list(self.refused), "seconds": seconds, **told}
        return Result("\n".join([*lines, *more]), facts, tuple(files), code)


Made = dict[str, list[Prediction]]


def _recorded(folder: Path) -> tuple[dict[str, Any], Made]:
    """Keys and answers by case, of what both files know; nothing where one cannot be read."""
    if not ((folder / RECORD).is_file() and (folder / NAME).is_file()):
        return {}, {}
    try:
        record, rows = read_object(folder / RECORD), read_predictions(folder / NAME)
    except UserError:
        return {}, {}
    made: Made = {}
    for row in rows:
        made.setdefault(row.case_id, []).append(row)
    record = {name: key for name, key in record.items() if name in made}
    return record, {name: rows for name, rows in made.items() if name in record}


def _write(folder: Path, record: dict[str, Any], made: Made) -> None:
    """Writes the answers, then the record, which says that they are there."""
    if not made:
        # What lay there was of inputs that are refused now.
        for name in (NAME, RECORD):
            (folder / name).unlink(missing_ok=True)
        return
    if not (folder / RECORD).is_file():
        write_json(folder / RECORD, {})  # says whose the answers are, should this end between
    write_predictions(folder / NAME, [row for name in sorted(made) for row in made[name]])
    write_json(folder / RECORD, record)


def _enter(note: Note, record: dict[str, Any], made: Made) -> None:
    """Puts what a note says of a case in place of what was known of it."""
    record.pop(note.name, None)
    made.pop(note.name, None)
    if note.key is not None:
        record[note.name] = note.key
        made[note.name] = [_from_json(row) for row in note.rows]


def _as_json(row: Prediction) -> dict[str, Any]:
    given = row.probabilities
    # Classes are numbers, which are no keys in JSON.
    pairs = None if given is None else [[value, share] for value, share in given.items()]
    return {**vars(row), "probabilities": pairs}


def _from_json(row: dict[str, Any]) -> Prediction:
    pairs = row["probabilities"]
    return Prediction(**{**row, "probabilities": None if pairs is None else dict(pairs)})


def _lack() -> ResourceError:
    return ResourceError(
        "memory does not suffice",
        remedy="take a smaller `--inference.window` or `--inference.windows_per_batch`, or a "
        "machine with more memory",
        code="out-of-memory",
    )
