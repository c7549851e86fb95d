"""`mim3d predict`: from a fine-tuned run and scans to label maps on the scans' own grids.

Runs of whole volumes say answers in place of label maps (`predict_answers`).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mim3d.config.verbs import PredictConfig
from mim3d.data.cohort.cases import stem
from mim3d.data.files import write_label, write_volume
from mim3d.data.files.segments import ENDING, write_segmentation
from mim3d.data.prepare import read_images
from mim3d.data.volume import Volume
from mim3d.foundation.atomic import make_folder, sweep, utf8, write_json
from mim3d.foundation.disk import check_there, check_written, explained
from mim3d.foundation.documents import read_object
from mim3d.foundation.errors import ConfigError, DiskError, ExitCode, ResourceError, UserError
from mim3d.foundation.memory import gigabytes, lack_told
from mim3d.foundation.reporting import PlainReporter, Reporter, duration
from mim3d.foundation.shard import asked_shard
from mim3d.inference import predict as inference
from mim3d.inference.forecast import Forecast
from mim3d.inference.label_files import label_texts, write_label_files
from mim3d.inference.relief import Relief
from mim3d.inference.segmenter import Segmenter
from mim3d.inference.windows import WindowCount
from mim3d.models.unetr import UNETR
from mim3d.pictures.colours import paints
from mim3d.pictures.overlay import draw_overlay
from mim3d.workflows.loading import load_segmenter, task_of
from mim3d.workflows.predict_answers import predict_answers
from mim3d.workflows.prediction_jobs import (
    RECORD,
    Asked,
    Job,
    foreign_of,
    jobs_of,
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


def predict(
    runs: str,
    inputs: Sequence[str],
    *,
    out: str,
    config: PredictConfig | None = None,
    reporter: Reporter | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Result:
    """Predicts what a run has learned: label maps of scans, or answers for whole volumes.

    A label map bears its input's name and lies on its input's grid; answers go to one CSV.

    Running it again keeps what is done; what was made of another input, run or setting is made
    anew. With `config.shard` it is one of several commands that predict into one folder, one after
    the other or at the same time.

    Args:
        runs: a run folder, or several joined by commas, whose probabilities are averaged.
        inputs: files, DICOM folders, or anything `prepare` takes as a source.
        out: the folder of the predictions.
        config: the sliding window and what is written.
        reporter: where progress goes.
        overwrite: predict again what is already there, and replace what others left there.
        dry_run: list what would be predicted, and stop.

    Returns:
        The files; exit code 4 if some inputs were refused, 3 if all were.

    Raises:
        UserError: no run, no input, two inputs of one name, files of others at the outputs, or a
            shard that would overwrite.
    """
    config = config or PredictConfig()
    shard = asked_shard(config.shard, overwrite=overwrite)
    names = [name for name in runs.split(",") if name]
    jobs = jobs_of(inputs, Path(out), config)
    asked = Asked(
        names,
        jobs if shard is None else shard.share(jobs),
        Path(out),
        config,
        reporter or PlainReporter(),
        overwrite=overwrite,
        dry_run=dry_run,
        shard=shard,
        everyone=jobs,
    )
    return PREDICTING[task_of(names[0])](asked)


def predict_labels(asked: Asked) -> Result:
    """Label maps; raises as `predict`."""
    names, jobs, reporter = asked.runs, asked.jobs, asked.reporter
    config, folder = asked.config, asked.folder
    segmenters = [
        load_segmenter(
            name, checkpoint=config.checkpoint, device=config.device, precision=config.precision
        )
        for name in names
    ]
    asked = asked.mirrored(segmenters)
    config = asked.config
    if config.inference.patch == "by_spacing":
        _check_can_follow(names, segmenters)
    reporter.say(
        f"predicting {len(jobs)} case(s) with {', '.join(f'`{name}`' for name in names)} into "
        f"`{folder}`"
    )
    if asked.dry_run:
        lines = [f"{job.output.name}" for job in jobs]
        return Result(text="\n".join([*lines, "nothing was written (--dry_run)"]))
    make_folder(folder)
    for used in (folder, folder / "pictures"):
        sweep(used)
    classes = segmenters[0].classes
    assert classes is not None  # a run has its class table
    # Before the record is read: another shard enters what it is about to write.
    found = {path: job for job in jobs for path in job.files if path.exists()}
    trained = {key for name in names for key in load_preparation(name)["trained_on"].values()}
    work = _Work(asked, segmenters, settings_of(names, config), trained)
    work.take_notes()
    work.record = _record(folder)
    if not asked.overwrite:
        texts = label_texts(classes, segmenters[0].regions)
        refuse_foreign(folder, [*foreign_of(found, work.record), *_other_tables(folder, texts)])
    labels = write_label_files(folder, classes, segmenters[0].regions)
    warn_of_training_cases(jobs, trained, reporter)
    with contextlib.closing(in_turn(asked)) as turn:
        for done, job in enumerate(turn):
            work.take(done, len(jobs), job)
    work.take_notes()
    return work.result(labels)


PREDICTING: dict[str, Callable[[Asked], Result]] = {
    "segmentation": predict_labels,
    "classification": predict_answers,
    "regression": predict_answers,
}
"""By the task of the run."""


def _check_can_follow(names: Sequence[str], segmenters: Sequence[Segmenter]) -> None:
    for name, segmenter in zip(names, segmenters, strict=True):
        if not segmenter.can_follow:
            raise ConfigError(
                f"`inference.patch` is `by_spacing`, but the convolutional stem of `{name}` only "
                "knows the patch it was made for",
                remedy="leave it out: `auto` keeps the patch there and says so",
                code="patch-of-stem",
            )


@dataclass(eq=False)
class _Work:
    """One command's way through its cases.

    Args:
        asked: the command.
        segmenters: one a run.
        settings: what decides a prediction besides its input.
        trained: keys of what the runs were trained on.
    """

    asked: Asked
    segmenters: Sequence[Segmenter]
    settings: dict[str, Any]
    trained: Collection[str]
    record: dict[str, Any] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    is_memory_alone: bool = True

    def __post_init__(self) -> None:
        self.folder, self.config = self.asked.folder, self.asked.config
        self.reporter = self.asked.reporter
        self.stamp = stamp(self.folder)
        self.windows = WindowCount(0)
        self.began = time.monotonic()
        self.forecast = Forecast(lambda need: self.reporter.say(f"plan of a volume: {need}"))
        device = torch.device(self.segmenters[0].device)
        self.relief = Relief(device, self.config.inference.windows_per_batch)

    def take(self, done: int, total: int, job: Job) -> None:
        """Predicts a case, keeps what is there, or leaves the case out and says why.

        Raises:
            DiskError: it cannot be written; the next one could not either.
        """
        name = job.output.name
        key = {**key_of(job, self.settings), "trained_on": job.source in self.trained}
        if channels := self._channels(job):
            key["channels"] = list(channels)
        if self.asked.shard is not None:
            self._look(job)
        is_same = self.record.get(name) == key and not self.asked.overwrite
        if not is_same or not job.is_there(self.config):
            spent = time.monotonic() - self.began
            left = f", {duration(spent / done * (total - done))} left" if done else ""
            self.reporter.progress(done, total, f"{job.case.case_id}: {done} of {total}{left}")
            try:
                with lack_told(partial(_lack, self.forecast)):
                    self._predict(job)
            except DiskError:
                raise
            except UserError as error:
                self._leave_out(job, key, error)
                return
            self._enter(job, key)
        self.finished.append(name)

    def _enter(self, job: Job, key: dict[str, Any] | None) -> None:
        """Puts into the record what a prediction is made of; None where it is gone.

        Raises:
            DiskError: it cannot be written.
        """
        note = Note(job.output.name, key)
        _take_up(note, self.record)
        check_there(self.folder / RECORD)
        if self.asked.shard is not None:
            leave_note(self.asked, job, note)
        else:
            write_json(self.folder / RECORD, self.record)

    def _look(self, job: Job) -> None:
        """Takes up what other commands have said of a case since."""
        # The note first: it goes when the record has what it says.
        note, found = find_note(self.asked, job), stamp(self.folder)
        if found != self.stamp:
            self.record, self.stamp = _record(self.folder), found
        if note is not None:
            _take_up(note, self.record)

    def take_notes(self) -> None:
        """Takes what this and other commands noted into the record.

        Raises:
            DiskError: it cannot be written.
        """

        def merge(notes: Sequence[Note]) -> None:
            record = _record(self.folder)
            for note in notes:
                _take_up(note, record)
            names = [job.output.name for job in self.asked.everyone]
            write_json(self.folder / RECORD, in_order(record, names))

        take_notes(self.folder, self.reporter, merge)

    def _leave_out(self, job: Job, key: dict[str, Any], error: UserError) -> None:
        self.is_memory_alone = self.is_memory_alone and isinstance(error, ResourceError)
        if self.record.get(job.output.name, key) != key:
            # Of another input, run or setting: nobody should take it for one of this command.
            for path in job.files:
                with explained(path):
                    path.unlink(missing_ok=True)
            self._enter(job, None)
        # Results may be kept: names in a path or of a slice are for the person alone.
        self.refused.append(f"{job.case.case_id}: left out ({error.code})")
        self.reporter.warn(f"`{job.case.case_id}` is left out: {error}")
        if error.remedy:
            self.reporter.warn(f"hint: {error.remedy}")

    def _predict(self, job: Job) -> None:
        config = self.config
        volume = read_images(job.case.images, align=config.align_channels, read=config.read)
        channels = self._channels(job)
        segmenters = self.segmenters
        if channels:
            segmenters = [one.for_channels(channels) for one in segmenters]
        for one in segmenters:
            self._tell_spacing(job, one, volume.spacing_mm)
        prediction = inference.predict(
            segmenters,
            volume,
            config.inference,
            progress=partial(_windows, self.reporter, job.case.case_id),
            forecast=self.forecast,
            relief=self.relief,
        )
        check_there(job.output)
        self._enter(job, {})
        self._remove_others(job)
        if prediction.probabilities is not None:
            write_volume(job.probabilities, prediction.probabilities.voxels, like=volume)
        if config.pictures:
            _draw(job, volume, prediction.labels, self.segmenters[0])
        _write(job, prediction.labels.voxels[0], volume, self.segmenters[0])
        self.windows += prediction.windows

    def _remove_others(self, job: Job) -> None:
        """Removes what belonged to the label map that is replaced, and is not made anew.

        A label map of the other format keeps it: that one stays.
        """
        case_id, name = job.case.case_id, job.output.name
        if any(other != name and stem(Path(other)) == case_id for other in self.record):
            return
        for path in job.files:
            is_asked = path in job.outputs(self.config) or path.name in self.record
            if not is_asked and path.is_file():
                with explained(path):
                    path.unlink()
                self.reporter.say(f"`{path.name}` went with the label map that it belonged to")

    def _tell_spacing(self, job: Job, segmenter: Segmenter, spacing_mm: Sequence[float]) -> None:
        """Says what becomes of a volume whose spacing training never saw."""
        rule, network = segmenter.rule, segmenter.network
        seen_mm = spacing_mm if rule is None or rule.spacing_mm is None else rule.spacing_mm
        patch = segmenter.patch_at(seen_mm)
        if patch is None or not isinstance(network, UNETR):
            return
        assert segmenter.spacings_mm is not None  # else there is no patch to say
        low, high = (" x ".join(f"{side:.3g}" for side in end) for end in segmenter.spacings_mm)
        trained = low if low == high else f"{low} to {high}"
        what = (
            f"`{job.case.case_id}` has voxels of {' x '.join(f'{s:.3g}' for s in seen_mm)} mm, "
            f"training had {trained} mm"
        )
        if self.config.inference.patch != "fixed" and segmenter.can_follow:
            sizes = [" x ".join(map(str, one)) for one in (patch, network.encoder.patch)]
            self.reporter.say(f"{what}: patches of {sizes[0]} voxels in place of {sizes[1]}")
        else:
            self.reporter.warn(f"{what}, and its patches keep their voxels: expect a poor result")

    def _channels(self, job: Job) -> tuple[str, ...]:
        """The names of a case's channels, where a run goes by them; empty where none does."""
        if self.config.channels:
            return self.config.channels
        is_by_name = any(one.takes_some for one in self.segmenters)
        return (job.channel_names or ()) if is_by_name else ()

    def result(self, labels: Sequence[Path]) -> Result:
        """What is told in the end; looks first whether all that was written is there.

        Args:
            labels: files that name the label values; the second is for ITK-SNAP.

        Raises:
            DiskError: it is not.
        """
        jobs = self.asked.jobs
        written = [RECORD, *self.finished] if self.finished else []
        check_written([*labels, *(self.folder / name for name in written)])
        seconds = time.monotonic() - self.began
        result = _result(self.folder, jobs, self.refused, self.windows, labels[1], seconds)
        plans = [vars(need) | {"windows": vars(need.windows)} for need in self.forecast.needs]
        if self.is_memory_alone and self.refused and len(self.refused) == len(jobs):
            result = replace(result, exit_code=ExitCode.RESOURCES)
        made = [name for name, key in _record(self.folder).items() if key]
        lines, facts = self.asked.told(made)
        text = "\n".join([result.text, *lines])
        return replace(result, text=text, facts={**result.facts, "plans": plans, **facts})


def _lack(forecast: Forecast) -> ResourceError:
    """What is said where memory ran out, with what was planned."""
    planned = forecast.needs[-1].peak_bytes if forecast.needs else None
    said = "" if planned is None else f": about {gigabytes(planned)} are needed"
    return ResourceError(
        f"memory does not suffice{said}",
        remedy="take a smaller `--inference.window` or `--inference.windows_per_batch`, or a "
        "machine with more memory",
        code="out-of-memory",
    )


def _write(job: Job, labels: NDArray[Any], volume: Volume, segmenter: Segmenter) -> None:
    assert segmenter.classes is not None
    if job.output.name.endswith(ENDING):
        write_segmentation(job.output, labels, volume, segmenter.classes)
    else:
        write_label(job.output, labels, volume)


def _draw(job: Job, volume: Volume, labels: Volume, segmenter: Segmenter) -> None:
    assert segmenter.classes is not None
    draw_overlay(
        job.picture,
        image=np.asarray(volume.voxels[0], np.float32),
        prediction=labels.voxels[0],
        spacing_mm=volume.spacing_mm,
        table=paints(segmenter.classes),
        title=job.case.case_id,
    )


def _windows(reporter: Reporter, case_id: str, done: int, total: int) -> None:
    reporter.progress(done, total, f"{case_id}: window {done} of {total}")


def _other_tables(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Files that name label values otherwise, in a folder that holds no predictions."""
    if (folder / RECORD).is_file():
        return []
    there = {folder / name: text for name, text in texts.items() if (folder / name).is_file()}
    return [path for path, text in there.items() if path.read_bytes() != utf8(text)]


def _take_up(note: Note, record: dict[str, Any]) -> None:
    if note.key is None:
        record.pop(note.name, None)
    else:
        record[note.name] = note.key


def _record(folder: Path) -> dict[str, Any]:
    """What is known of the predictions that are still there, or were being written."""
    path = folder / RECORD
    try:
        record = read_object(path) if path.is_file() else {}
    except UserError:
        return {}
    return {name: key for name, key in record.items() if key == {} or os.path.isfile(folder / name)}


def _result(
    folder: Path,
    jobs: Sequence[Job],
    refused: Sequence[str],
    windows: WindowCount,
    names: Path,
    seconds: float,
) -> Result:
    made = len(jobs) - len(refused)
    code = ExitCode.DONE if not refused else ExitCode.PARTIAL if made else ExitCode.INPUT
    lines = [f"{made} of {len(jobs)} cases predicted in {duration(seconds)}", *refused]
    if windows.run:
        lines.append(
            f"{windows.run:,} windows, {windows.skipped:,} more of nothing but air skipped"
        )
    if made:
        ending = jobs[0].output.name.removeprefix(jobs[0].case.case_id)
        lines.append(f"look: itksnap -g IMAGE -s {folder}/NAME{ending} -l {names}")
    facts = {
        "predicted": made,
        "refused": list(refused),
        "seconds": seconds,
        "windows": {"run": windows.run, "skipped": windows.skipped},
    }
    return Result("\n".join(lines), facts, (folder,), code)
