"""`mim3d predict`: from a fine-tuned run and scans to label maps on the scans' own grids."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from mim3d.config.verbs import PredictConfig
from mim3d.data.cohort import Case, read_cohort
from mim3d.data.files import content_key, write_label, write_volume
from mim3d.data.prepare import image_key, read_images
from mim3d.data.volume import Volume
from mim3d.foundation.atomic import sweep, write_json
from mim3d.foundation.errors import ConfigError, ExitCode, UserError
from mim3d.foundation.reporting import PlainReporter, Reporter, duration
from mim3d.inference import predict as inference
from mim3d.inference.label_files import write_label_files
from mim3d.inference.segmenter import Segmenter
from mim3d.inference.windows import WindowCount
from mim3d.pictures.colours import paints
from mim3d.pictures.overlay import draw_overlay
from mim3d.workflows.loading import load_preparation, load_segmenter, run_digest
from mim3d.workflows.result import Result

RECORD = "predictions.json"
"""Which prediction was made of what, so that the same command goes on where it stopped."""


@dataclass(frozen=True)
class _Job:
    """One case and where its prediction goes."""

    case: Case
    output: Path

    @cached_property
    def keys(self) -> tuple[str | None, ...]:
        """Hash of each image's content; None where a file is missing."""
        return tuple(content_key(path) if path.exists() else None for path in self.case.images)

    @property
    def source(self) -> str | None:
        """The key under which a run remembers what it was trained on; None if a file is missing."""
        if None in self.keys:
            return None
        return image_key({"images": [{"key": key} for key in self.keys]})

    def is_there(self, config: PredictConfig) -> bool:
        """Whether all that is asked for has been written."""
        wanted = [self.output]
        wanted += [self.probabilities] if config.inference.save_probabilities else []
        wanted += [self.picture] if config.pictures else []
        return all(path.is_file() for path in wanted)

    @property
    def picture(self) -> Path:
        return self.output.parent / "pictures" / f"{self.case.case_id}.png"

    @property
    def probabilities(self) -> Path:
        return self.output.with_name(self.output.name.replace(".nii.gz", "_probabilities.nii.gz"))


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
    """Segments scans; each output bears its input's name and lies on its input's grid.

    Running it again keeps what is done; what was made of another input, run or setting is made
    anew.

    Args:
        runs: a run folder, or several joined by commas, whose probabilities are averaged.
        inputs: files, DICOM folders, or anything `prepare` takes as a source.
        out: the folder of the predictions.
        config: the sliding window and what is written.
        reporter: where progress goes.
        overwrite: predict again what is already there.
        dry_run: list what would be predicted, and stop.

    Returns:
        The files; exit code 4 if some inputs were refused, 3 if all were.

    Raises:
        UserError: no run, no input, or two inputs of one name.
    """
    config = config or PredictConfig()
    reporter = reporter or PlainReporter()
    folder = Path(out)
    jobs = _jobs(inputs, folder)
    names = [name for name in runs.split(",") if name]
    segmenters = [
        load_segmenter(
            name, checkpoint=config.checkpoint, device=config.device, precision=config.precision
        )
        for name in names
    ]
    reporter.say(
        f"predicting {len(jobs)} case(s) with {', '.join(f'`{name}`' for name in names)} into "
        f"`{out}`"
    )
    if dry_run:
        lines = [f"{job.output.name}" for job in jobs]
        return Result(text="\n".join([*lines, "nothing was written (--dry_run)"]))
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    classes = segmenters[0].classes
    assert classes is not None  # a run has its class table
    labels = write_label_files(folder, classes, segmenters[0].regions)
    trained = {key for name in names for key in load_preparation(name)["trained_on"].values()}
    _warn_of_training_cases(jobs, trained, reporter)

    settings = _settings(names, config)
    record = {} if overwrite else _record(folder)
    refused: list[str] = []
    windows = WindowCount(0)
    began = time.monotonic()
    for done, job in enumerate(jobs):
        key = {**_key(job, settings), "trained_on": job.source in trained}
        if record.get(job.output.name) == key and job.is_there(config):
            continue
        spent = time.monotonic() - began
        left = f", {duration(spent / done * (len(jobs) - done))} left" if done else ""
        reporter.progress(done, len(jobs), f"{job.case.case_id}: {done} of {len(jobs)}{left}")
        try:
            progress = partial(_windows, reporter, job.case.case_id)
            windows += _predict_one(job, segmenters, config, progress)
        except UserError as error:
            refused.append(f"{job.case.case_id}: {error}")
            reporter.warn(f"`{job.case.case_id}` is left out: {error}")
            if error.remedy:
                reporter.warn(f"hint: {error.remedy}")
            continue
        record[job.output.name] = key
        write_json(folder / RECORD, record)
    return _result(folder, jobs, refused, windows, labels[1], time.monotonic() - began)


def _jobs(inputs: Sequence[str], folder: Path) -> list[_Job]:
    if not inputs:
        raise ConfigError(
            "there is no input to predict",
            remedy="name files, DICOM folders or a folder of images after the run",
            code="no-input",
        )
    jobs: dict[str, _Job] = {}
    for source in inputs:
        for case in read_cohort(source).cases:
            job = _Job(case, folder / f"{case.case_id}.nii.gz")
            if job.output.resolve().parent != folder.resolve():
                raise ConfigError(
                    f"`{case.case_id}` is no name of a file in the output folder", code="name"
                )
            if job.output.name in jobs:
                raise ConfigError(
                    f"two inputs would both become `{job.output.name}`",
                    remedy="predict them into different folders",
                    code="same-name",
                )
            if any(job.output.resolve() == image.resolve() for image in case.images):
                raise ConfigError(
                    f"the prediction of `{case.case_id}` would overwrite its own input",
                    remedy="choose another --out",
                    code="overwrites-input",
                )
            jobs[job.output.name] = job
    return list(jobs.values())


def _predict_one(
    job: _Job, segmenters: Sequence[Segmenter], config: PredictConfig, progress: Any
) -> WindowCount:
    volume = read_images(job.case.images, align=config.align_channels, read=config.read)
    prediction = inference.predict(segmenters, volume, config.inference, progress=progress)
    if prediction.probabilities is not None:
        write_volume(job.probabilities, prediction.probabilities.voxels, like=volume)
    if config.pictures:
        _draw(job, volume, prediction.labels, segmenters[0])
    write_label(job.output, prediction.labels.voxels[0], volume)
    return prediction.windows


def _draw(job: _Job, volume: Volume, labels: Volume, segmenter: Segmenter) -> None:
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


def _warn_of_training_cases(
    jobs: Sequence[_Job], trained: Collection[str], reporter: Reporter
) -> None:
    seen = [job.case.case_id for job in jobs if job.source in trained]
    if seen:
        reporter.warn(
            f"{len(seen)} of {len(jobs)} inputs were trained on, their Dice will flatter: "
            f"{', '.join(seen[:5])}{' ...' if len(seen) > 5 else ''}"
        )


def _settings(runs: Sequence[str], config: PredictConfig) -> dict[str, Any]:
    """What decides a prediction besides its input."""
    return {
        "runs": [run_digest(run, config.checkpoint) for run in runs],
        "inference": asdict(config.inference),
        "precision": config.precision,
        "align_channels": config.align_channels,
    }


def _key(job: _Job, settings: dict[str, Any]) -> dict[str, Any]:
    """What a prediction was made of; JSON types, so that it compares with what was stored."""
    return dict(json.loads(json.dumps({"images": job.keys, **settings})))


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except ValueError:
        return {}  # made anew: the record only saves work


def _result(
    folder: Path,
    jobs: Sequence[_Job],
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
        lines.append(f"look: itksnap -g IMAGE -s {folder}/NAME.nii.gz -l {names}")
    facts = {
        "predicted": made,
        "refused": list(refused),
        "seconds": seconds,
        "windows": {"run": windows.run, "skipped": windows.skipped},
    }
    return Result("\n".join(lines), facts, (folder,), code)
