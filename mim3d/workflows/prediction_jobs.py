"""Which predictions are wanted: one a case, each in its place in the output folder."""

from __future__ import annotations

import json
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mim3d.config.verbs import PredictConfig
from mim3d.data.cohort import Case, read_cohort
from mim3d.data.cohort.cases import stem
from mim3d.data.files import content_key, is_there
from mim3d.data.prepare import image_key
from mim3d.foundation.documents import parsed
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.reporting import Reporter
from mim3d.foundation.shard import Shard
from mim3d.inference.segmenter import Segmenter, with_mirrors
from mim3d.workflows.run_weights import run_digest

RECORD = "predictions.json"
"""Which prediction was made of what, so that the same command goes on where it stopped.

An entry says that the files of a case are ours; an empty one, that they may not belong together.
"""


@dataclass(frozen=True)
class Job:
    """One case and where its prediction goes."""

    case: Case
    output: Path
    channel_names: tuple[str, ...] | None = None
    """What the source calls its channels, if it does."""

    @cached_property
    def keys(self) -> tuple[str | None, ...]:
        """Hash of each image's content; None where a file is missing."""
        return tuple(content_key(path) if is_there(path) else None for path in self.case.images)

    @property
    def source(self) -> str | None:
        """The key under which a run remembers what it was trained on; None if a file is missing."""
        if None in self.keys:
            return None
        return image_key({"images": [{"key": key} for key in self.keys]})

    def outputs(self, config: PredictConfig) -> list[Path]:
        """All that is asked for."""
        wanted = [self.output]
        wanted += [self.probabilities] if config.inference.save_probabilities else []
        wanted += [self.picture] if config.pictures else []
        return wanted

    @property
    def files(self) -> tuple[Path, Path, Path]:
        """All that may belong to it, asked for or not."""
        return self.probabilities, self.picture, self.output

    def is_there(self, config: PredictConfig) -> bool:
        """Whether all that is asked for has been written."""
        return all(path.is_file() for path in self.outputs(config))

    @property
    def picture(self) -> Path:
        """Where its picture goes."""
        return self.output.parent / "pictures" / f"{self.case.case_id}.png"

    @property
    def probabilities(self) -> Path:
        """Where its probabilities go."""
        return self.output.with_name(f"{self.case.case_id}_probabilities.nii.gz")


@dataclass(frozen=True)
class Asked:
    """One command.

    Args:
        runs: their folders, at least one.
        jobs: what is to be predicted.
        folder: of the predictions.
        config: the sliding window and what is written.
        reporter: where progress goes.
        overwrite: predict again what is already there.
        dry_run: list what would be predicted, and stop.
        shard: which of several commands this is; `jobs` are then its own.
        everyone: the jobs of all of them.
    """

    runs: Sequence[str]
    jobs: Sequence[Job]
    folder: Path
    config: PredictConfig
    reporter: Reporter
    overwrite: bool = False
    dry_run: bool = False
    shard: Shard | None = None
    everyone: Sequence[Job] = ()

    def mirrored(self, models: Sequence[Segmenter]) -> Asked:
        """The same with the mirrors of the runs, where none were asked for (`with_mirrors`)."""
        inference = with_mirrors(models, self.config.inference)
        return replace(self, config=replace(self.config, inference=inference))

    def told(self, made: Container[str]) -> tuple[list[str], dict[str, Any]]:
        """What a shard says of the folder: lines, and facts.

        Args:
            made: what lies in it, by `Job.output`'s names or by cases.
        """
        if self.shard is None:
            return [], {}
        missing = [job for job in self.everyone
                   if job.output.name not in made and job.case.case_id not in made]  # fmt: skip
        there = len(self.everyone) - len(missing)
        line = f"shard {self.shard} is done: {there} of all {len(self.everyone)} cases are there"
        return [line], {"shard": str(self.shard), "left": len(missing)}


def settings_of(runs: Sequence[str], config: PredictConfig) -> dict[str, Any]:
    """What decides a prediction besides its input."""
    return {
        "runs": [run_digest(run, config.checkpoint) for run in runs],
        "inference": asdict(config.inference),
        "precision": config.precision,
        "align_channels": config.align_channels,
    }


def key_of(job: Job, settings: dict[str, Any]) -> dict[str, Any]:
    """What a prediction was made of; JSON types, so that it compares with what was stored."""
    return dict(parsed(json.dumps({"images": job.keys, **settings})))


def jobs_of(inputs: Sequence[str], folder: Path, config: PredictConfig | None = None) -> list[Job]:
    """The cases of all inputs, in their order.

    Args:
        inputs: anything `prepare` takes.
        folder: of the predictions.
        config: which series of DICOM folders, and the format of label maps.

    Raises:
        ConfigError: there is none; two share a name; one would leave the folder or overwrite its
            own input or label map.
    """
    config = config or PredictConfig()
    if not inputs:
        raise ConfigError(
            "there is no input to predict",
            remedy="name files, DICOM folders or a folder of images after the run",
            code="no-input",
        )
    jobs: dict[str, Job] = {}
    for source in inputs:
        cohort = read_cohort(source, series=config.read.series)
        for case in cohort.cases:
            job = Job(case, folder / f"{case.case_id}.{config.label_format}", cohort.channel_names)
            if not _lies_in(job.output, folder):
                raise ConfigError(
                    f"`{case.case_id!r}` is no name of a file in the output folder", code="name"
                )
            if job.output.name in jobs:
                raise ConfigError(
                    f"two inputs would both become `{job.output.name}`",
                    remedy="predict them into different folders",
                    code="same-name",
                )
            own = dict.fromkeys(case.images, "input")
            if case.label is not None:
                own[case.label] = "label map"
            for path, what in own.items():
                if job.output.resolve() == path.resolve():
                    raise ConfigError(
                        f"the prediction of `{case.case_id}` would overwrite its own {what}",
                        remedy="choose another --out",
                        code="overwrites-input",
                    )
            jobs[job.output.name] = job
    return list(jobs.values())


def foreign_of(found: Mapping[Path, Job], record: Collection[str]) -> list[Path]:
    """What lies where predictions will go, and is not ours.

    Args:
        found: files, and of which prediction each would be.
        record: names of the predictions that are ours; their pictures and probabilities are, too.
    """
    # By case: a label map of the other format has the same picture.
    cases = {stem(Path(name)) for name in record}
    return [
        path
        for path, job in found.items()
        if path.name not in record and (path == job.output or job.case.case_id not in cases)
    ]


def refuse_foreign(folder: Path, foreign: Sequence[Path]) -> None:
    """Raises `ConfigError` where files that are not ours would be replaced."""
    if foreign:
        raise ConfigError(
            f"{len(foreign)} file(s) would be replaced that `mim3d predict` did not write there, "
            f"first `{foreign[0].relative_to(folder)}`",
            where=f"`{folder}`",
            remedy="choose another --out, or replace them with --overwrite",
            code="not-ours",
        )


def warn_of_training_cases(
    jobs: Sequence[Job], trained: Collection[str], reporter: Reporter
) -> None:
    """Warns of inputs that the runs were trained on."""
    seen = [job.case.case_id for job in jobs if job.source in trained]
    if seen:
        reporter.warn(
            f"{len(seen)} of {len(jobs)} inputs were trained on, their Dice will flatter: "
            f"{', '.join(seen[:5])}{' ...' if len(seen) > 5 else ''}"
        )


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a name, and what it may be a link to, is a plain one in the folder."""
    try:
        return path.resolve().parent == folder.resolve()
    except (OSError, RuntimeError, ValueError):  # a circle of links, a NUL, half a letter
        return False
