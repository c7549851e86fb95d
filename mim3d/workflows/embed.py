"""`mim3d embed`: from any run with an encoder and volumes to features for other programs."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mim3d.config.embed import EmbedConfig, EmbeddingConfig
from mim3d.config.inference import InferenceConfig
from mim3d.data.cohort import Case, read_cohort
from mim3d.data.features import CaseFeatures, Level, ending_of, write_features
from mim3d.data.prepare import read_images
from mim3d.data.store import Store, open_store
from mim3d.foundation.disk import check_written
from mim3d.foundation.errors import ConfigError, DiskError, ExitCode, ResourceError, UserError
from mim3d.foundation.memory import lack_told
from mim3d.foundation.reporting import PlainReporter, Reporter, duration
from mim3d.foundation.versions import versions
from mim3d.inference.seen import Seen, seen_volume
from mim3d.inference.windows import check_inference
from mim3d.workflows.frozen import FrozenEncoder, check_prepares, load_encoder
from mim3d.workflows.result import Result
from mim3d.workflows.run_weights import run_digest
from mim3d.workflows.tasks.classification import stored_volume


def embed(
    run: str,
    inputs: Sequence[str],
    *,
    out: str,
    config: EmbedConfig | None = None,
    reporter: Reporter | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Result:
    """Writes what a run's encoder knows of volumes: features of each, and of its patches.

    Args:
        run: a folder that `pretrain`, `finetune` or `convert` wrote.
        inputs: stores, files, DICOM folders, or anything `prepare` takes as a source.
        out: the file, which ends in `.h5` or `.csv`.
        config: which features, and how windows lie.
        reporter: where progress goes.
        overwrite: replace a file that is there.
        dry_run: list what would be read, and stop.

    Returns:
        The file; exit code 4 if some inputs were refused, 3 if all were.

    Raises:
        ConfigError: no input, two of one name, or a file at `out`.
        UserError: no such run; or the run and the input do not go together.
    """
    config = config or EmbedConfig()
    reporter = reporter or PlainReporter()
    ending = ending_of(out, config.embed.level or "volume")
    level: Level = config.embed.level or ("both" if ending == ".h5" else "volume")
    windows = windows_of(config.embed)
    check_inference(windows)
    frozen = load_encoder(
        run, checkpoint=config.checkpoint, device=config.device, precision=config.precision
    )  # fmt: skip
    jobs = [job for source in inputs for job in _jobs(source, frozen, config)]
    _check(jobs, Path(out), overwrite=overwrite)
    reporter.say(
        f"encoding {len(jobs)} case(s) with `{run}` (step {frozen.step:,}), "
        f"{frozen.network.width} features each, into `{out}`"
    )
    if dry_run:
        lines = [job.case_id for job in jobs]
        return Result("\n".join([*lines, "nothing was written (--dry_run)"]))
    work = _Work(frozen, windows, config.embed, reporter)
    made = write_features(out, work.of(jobs), level=level, about=about(frozen, windows, config))
    if made:
        check_written([Path(out)])
    return work.result(made, len(jobs), out)


@dataclass(frozen=True, eq=False)
class _Job:
    """A case that is to be encoded.

    Attributes:
        case_id: its name.
        frozen: the encoder, ready for its channels.
        see: the volume as the encoder sees it.
        subject_id: whose it is.
        part: the list it belongs to; empty where nobody says.
        targets: numbers that are known of it.
    """

    case_id: str
    frozen: FrozenEncoder
    see: Callable[[], Seen]
    subject_id: str = ""
    part: str = ""
    targets: dict[str, float] = field(default_factory=dict)


def windows_of(config: EmbeddingConfig) -> InferenceConfig:
    """How windows are slid."""
    return InferenceConfig(
        window=config.window,
        overlap=config.overlap,
        windows_per_batch=config.windows_per_batch,
        skip_air=config.skip_air,
    )


def about(frozen: FrozenEncoder, windows: InferenceConfig, config: EmbedConfig) -> dict[str, Any]:
    """What is kept of how features came to be."""
    return {
        "run": frozen.run,
        "checkpoint": config.checkpoint,
        "step": frozen.step,
        "weights_sha256": run_digest(frozen.run, config.checkpoint),
        "encoder": json.dumps(asdict(frozen.encoder)),
        "patch": frozen.encoder.patch,
        "window": windows.window or frozen.reader.window,
        "overlap": windows.overlap,
        "versions": json.dumps(versions()),
    }


def _jobs(source: str, frozen: FrozenEncoder, config: EmbedConfig) -> Iterator[_Job]:
    if (Path(source) / "manifest.json").is_file():
        yield from _of_store(open_store(source), frozen, config)
        return
    check_prepares(frozen)
    cohort = read_cohort(source, series=config.read.series)
    if cohort.channel_names and frozen.reader.takes_some:
        frozen = frozen.for_channels(cohort.channel_names, f"`{source}`")
    for case in cohort.cases:
        if config.embed.part in (None, case.part):
            see = partial(_read_case, case, frozen, config)
            yield _Job(case.case_id, frozen, see, case.subject_id, case.part, dict(case.targets))


def _of_store(store: Store, frozen: FrozenEncoder, config: EmbedConfig) -> Iterator[_Job]:
    frozen = frozen.for_channels(store.channel_names, f"`{store.path}`")
    for case_id in store.ids(config.embed.part):
        entry = store.entry(case_id)
        see = partial(_stored_case, store, case_id, config.embed.skip_air or frozen.drops_air)
        yield _Job(case_id, frozen, see, entry.subject_id, entry.part, dict(entry.targets))


def _stored_case(store: Store, case_id: str, wants_body: bool) -> Seen:
    with store.open(case_id) as case:
        return stored_volume(case, wants_body=wants_body)


def _read_case(case: Case, frozen: FrozenEncoder, config: EmbedConfig) -> Seen:
    volume = read_images(case.images, align=config.align_channels, read=config.read)
    frozen.reader.check_channels(len(volume.voxels))
    wants_body = config.embed.skip_air or frozen.drops_air
    return seen_volume(volume, frozen.reader, wants_body=wants_body)


def _check(jobs: Sequence[_Job], out: Path, *, overwrite: bool) -> None:
    if not jobs:
        raise ConfigError(
            "there is no case to encode",
            remedy="name a store, files, DICOM folders or a folder of images after the run",
            code="no-input",
        )
    names = Counter(job.case_id for job in jobs)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise ConfigError(
            f"two inputs are both called `{twice}`",
            remedy="write them into different files",
            code="same-name",
        )
    if out.exists() and not overwrite:
        raise ConfigError(
            f"`{out}` is there already", remedy="add `--overwrite`, or choose another --out",
            code="out",
        )  # fmt: skip


@dataclass(eq=False)
class _Work:
    """One command's way through its cases.

    Args:
        frozen: the encoder.
        windows: how windows lie.
        config: which of them.
        reporter: where progress goes.
    """

    frozen: FrozenEncoder
    windows: InferenceConfig
    config: EmbeddingConfig
    reporter: Reporter
    refused: list[str] = field(default_factory=list)
    is_memory_alone: bool = True
    patches: int = 0

    def __post_init__(self) -> None:
        self.began = time.monotonic()

    def of(self, jobs: Sequence[_Job]) -> Iterator[CaseFeatures]:
        """The features of each case in turn; one that cannot be read is left out by name."""
        for done, job in enumerate(jobs):
            spent = time.monotonic() - self.began
            left = f", {duration(spent / done * (len(jobs) - done))} left" if done else ""
            self.reporter.progress(done, len(jobs), f"{job.case_id}: {done} of {len(jobs)}{left}")
            try:
                with lack_told(_lack):
                    found = self._encoded(job)
            except DiskError:
                raise
            except UserError as error:
                self._leave_out(job, error)
                continue
            self.patches += 0 if found.patches is None else len(found.patches)
            yield found

    def _encoded(self, job: _Job) -> CaseFeatures:
        seen = job.see()
        found = job.frozen.features(seen, self.windows, self.windows.window)
        token = found.class_token
        return CaseFeatures(
            job.case_id,
            found.mean.numpy(),
            None if token is None else token.numpy(),
            found.patches.numpy(),
            found.centres_mm(np.asarray(seen.affine, np.float64)),
            job.subject_id,
            job.part,
            job.targets,
        )

    def _leave_out(self, job: _Job, error: UserError) -> None:
        self.is_memory_alone = self.is_memory_alone and isinstance(error, ResourceError)
        self.refused.append(f"{job.case_id}: left out ({error.code})")
        self.reporter.warn(f"`{job.case_id}` is left out: {error}")
        if error.remedy:
            self.reporter.warn(f"hint: {error.remedy}")

    def result(self, made: int, asked: int, out: str) -> Result:
        """What was done."""
        spent = time.monotonic() - self.began
        width = self.frozen.network.width
        lines = [
            f"{made} of {asked} cases encoded in {duration(spent)}: {width} features each, "
            f"{self.patches:,} patches"
        ]
        code = ExitCode.DONE if not self.refused else ExitCode.PARTIAL if made else ExitCode.INPUT
        if self.is_memory_alone and self.refused and not made:
            code = ExitCode.RESOURCES
        facts = {"cases": made, "features": width, "patches": self.patches,
                 "refused": list(self.refused), "seconds": spent}  # fmt: skip
        files = (Path(out),) if made else ()
        return Result("\n".join([*lines, *self.refused]), facts, files, code)


def _lack() -> ResourceError:
    return ResourceError(
        "memory does not suffice",
        remedy="take a smaller `--embed.window` or `--embed.windows_per_batch`",
        code="out-of-memory",
    )
