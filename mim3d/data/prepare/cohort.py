"""A whole cohort into a store, by several processes; running it again goes on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from mim3d.config.building import check_finite
from mim3d.config.verbs import PreparationConfig, PrepareConfig
from mim3d.data.classes import MAX_VALUE
from mim3d.data.cohort import Case, Cohort, apply_split, hash_ids, read_cohort, without_class
from mim3d.data.files import is_there
from mim3d.data.prepare.earlier import seems_kept
from mim3d.data.prepare.job import BUSY, Work, refuse
from mim3d.data.prepare.keys import noted
from mim3d.data.prepare.memory import processes_for
from mim3d.data.prepare.modality import decided
from mim3d.data.prepare.outcome import PreparationResult, outcome
from mim3d.data.prepare.pool import run
from mim3d.data.prepare.printed import fingerprint_lines, plan_lines
from mim3d.data.prepare.replacing import check_replaceable, remove_store
from mim3d.data.prepare.sharing import agreed, end, merging
from mim3d.data.prepare.summary import cohort_facts, rebuild
from mim3d.data.store.layout import (
    CASES,
    MANIFEST,
    file_name,
    sidecar_path,
    sidecar_paths,
)
from mim3d.foundation.atomic import make_folder, sweep
from mim3d.foundation.claims import Claims
from mim3d.foundation.disk import check_there
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.reporting import Reporter, Silent, duration
from mim3d.foundation.shard import asked_shard


def prepare_store(
    source: Path | str | Cohort,
    out: Path | str,
    config: PrepareConfig | None = None,
    reporter: Reporter | None = None,
    *,
    overwrite: bool = False,
) -> PreparationResult:
    """Prepares a cohort: reads, checks, orients, resamples, measures, crops and stores each case.

    Running it again goes on where it stopped, prepares anew what changed, and keeps the rest. A
    case that cannot be used becomes a row of `quarantine.tsv`; the others go on. Where the reason
    may pass (a missing file, too little memory), what was prepared of it before stays.

    With `config.shard` it is one of several commands that fill the same store, one after the other
    or at the same time. Each prepares every n-th case of the source; none prepares a case that
    another is at. The last to finish makes the same store as one command alone would.

    Args:
        source: anything `read_cohort` takes, or a cohort.
        out: the store's folder.
        config: settings; those of the store decide what a case's key is.
        reporter: where progress is told.
        overwrite: begin anew, also where the store of another cohort stands.

    Raises:
        UserError: no source, no case, another cohort's store at `out`, a store at `out` all of
            whose sources are missing, or something that is no store and would be overwritten: it
            stays as it is.
        ResourceError: the disk is full; what is done is kept.
    """
    start = time.monotonic()
    config = config or PrepareConfig()
    reporter = reporter or Silent()
    settings = config.prepare
    shard = asked_shard(config.shard, overwrite=overwrite)
    check_finite(config)
    _check(settings)
    cohort = source if isinstance(source, Cohort) else read_source(source, config)
    settings = _settled(settings, cohort)
    config = replace(config, prepare=settings)
    if settings.ignore_label is not None:
        cohort = without_class(cohort, settings.ignore_label)
    if settings.split is not None:
        cohort = apply_split(cohort, settings.split)
    if settings.case_ids == "hashed":
        cohort = hash_ids(cohort)
    folder = Path(out)
    if overwrite:
        check_replaceable(folder, Path(cohort.source if isinstance(source, Cohort) else source))
    else:
        _check_same_cohort(folder, cohort)
    _check_some_are_there(folder, cohort)
    if overwrite:
        remove_store(folder)
    make_folder(folder / CASES)
    for used in (folder, folder / CASES):
        sweep(used)
    work = _work(folder, cohort, config, reporter)
    share = cohort.cases if shard is None else shard.share(cohort.cases)
    due = [case for case in share if not seems_kept(folder, case, work.key)]
    processes, spare = processes_for(due, len(share), config, reporter)
    for line in plan_lines(cohort, folder, settings, processes):
        reporter.say(line)
    if shard is not None:
        reporter.say(f"shard {shard}: {len(share)} of the cases")
    for remark in cohort.remarks:
        reporter.warn(remark)
    work = replace(work, spare_bytes=spare)
    answers = _prepare_all(share, work, processes, reporter)
    check_there(folder / MANIFEST)
    before = _manifest(folder)
    if shard is None:
        left, fingerprint = 0, _put_together(folder, cohort, reporter)
        end(folder, reporter)
    else:
        with merging(cohort.cases, work, reporter) as left:
            fingerprint = {} if left else _put_together(folder, cohort, reporter)
    judged = share if shard is None or left else cohort.cases
    result = replace(
        outcome(folder, answers, judged, time.monotonic() - start),
        fingerprint=fingerprint,
        shard=shard,
        left=left,
        is_changed=_manifest(folder) != before,
    )
    _tell(result, reporter)
    return result


def read_source(source: Path | str, config: PrepareConfig) -> Cohort:
    """The cohort of a source, as the settings say how to read it; raises as `read_cohort`."""
    settings = config.prepare
    return read_cohort(
        source,
        settings.pattern,
        contrasts=settings.contrasts,
        labels=settings.labels,
        series=config.read.series,
    )


def _check(settings: PreparationConfig) -> None:
    low, high = settings.window_hu
    first, last = settings.clip_percentiles
    wrong = None
    if settings.spacing_mm is not None and not all(0.005 <= s <= 200 for s in settings.spacing_mm):
        wrong = "`prepare.spacing_mm` lies between 0.005 and 200 mm"
    elif low >= high:
        wrong = "`prepare.window_hu` is a lower and a higher value"
    elif not 0 <= first < last <= 100:
        wrong = "`prepare.clip_percentiles` are two rising numbers from 0 to 100"
    elif settings.intensity_range and not settings.intensity_range[0] < settings.intensity_range[1]:
        wrong = "`prepare.intensity_range` is a lower and a higher value"
    elif settings.distance_mm is not None and not settings.distance_mm > 0:
        wrong = "`prepare.distance_mm` is above 0"
    elif settings.ignore_label is not None and not 1 <= settings.ignore_label <= MAX_VALUE:
        wrong = f"`prepare.ignore_label` lies between 1 and {MAX_VALUE}"
    elif settings.body_margin_mm < 0:
        wrong = "`prepare.body_margin_mm` is not negative"
    elif not 0 <= settings.validation_fraction < 1:
        wrong = "`prepare.validation_fraction` is at least 0 and below 1"
    elif settings.workers is not None and settings.workers < 0:
        wrong = "`prepare.workers` is not negative"
    if wrong:
        raise ConfigError(wrong)


def _settled(settings: PreparationConfig, cohort: Cohort) -> PreparationConfig:
    """The settings, with the cohort's word where the person has none."""
    crop = settings.crop_to_body
    return replace(
        settings,
        crop_to_body=not cohort.is_framed if crop is None else crop,
        intensity_range=settings.intensity_range or cohort.intensity_range,
    )


def _check_same_cohort(folder: Path, cohort: Cohort) -> None:
    """A store of one cohort is not overwritten by another's."""
    if folder.is_file():
        raise UserError(f"`{folder}` is a file", remedy="choose another --out", code="out")
    if not folder.is_dir():
        return
    there = {path.stem for path in sidecar_paths(folder)}
    mine = {sidecar_path(folder, case.case_id).stem for case in cohort.cases}
    if there and not there & mine:
        raise ConfigError(
            f"`{folder}` is the store of another cohort: it has {len(there)} case(s), none of them "
            f"among the {len(mine)} of this source",
            remedy="choose another --out, or remove that folder",
            code="other-cohort",
        )
    if not there and any(folder.iterdir()) and not (folder / CASES).is_dir():
        raise ConfigError(
            f"`{folder}` holds something else than a store",
            remedy="choose an --out that is empty or does not exist",
            code="out",
        )


def _check_some_are_there(folder: Path, cohort: Cohort) -> None:
    """A store is not emptied because a disk is not mounted."""
    if not cohort.cases or not sidecar_paths(folder):
        return
    for case in cohort.cases:
        files = [*case.images, *([] if case.label is None else [case.label])]
        if all(map(is_there, files)):
            return
    raise UserError(
        f"of all {len(cohort.cases)} case(s) of the source files are missing; the store stays as "
        "it is",
        remedy="see whether the source's disk is there, then prepare again",
        code="missing-source",
    )


def _work(folder: Path, cohort: Cohort, config: PrepareConfig, reporter: Reporter) -> Work:
    settings = config.prepare
    kept = ("workers", "verify", "keep_paths", "split")
    preparation = {k: v for k, v in noted(settings).items() if k not in kept}
    preparation["read"] = asdict(config.read)
    facts = cohort_facts(cohort, preparation)
    work = Work(folder, settings, config.read, cohort.classes, cohort.modalities, facts,
                is_shared=config.shard is not None)  # fmt: skip
    decide = partial(decided, cohort, work, config, reporter)
    shared = work.is_shared
    modalities = agreed(cohort.cases, work, reporter, decide) if shared else decide()
    return replace(work, modalities=modalities)


def _prepare_all(
    cases: Sequence[Case], work: Work, processes: int, reporter: Reporter
) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = []
    start = time.monotonic()
    waiting = cases
    while waiting:
        busy = []
        for case, answer in run("prepare", waiting, work, processes):
            if isinstance(answer, str):
                answer = refuse(
                    case, work, "", "reader-died", answer, "check the file, or leave it out"
                )
            if answer["state"] == BUSY:
                busy.append(case)
                continue
            answers.append(answer)
            _tell_answer(answer, reporter)
            done = len(answers)
            left = duration((time.monotonic() - start) / done * (len(cases) - done))
            reporter.progress(done, len(cases), f"{done} of {len(cases)} cases, {left} left")
        if busy:
            reporter.say(f"{len(busy)} case(s) wait for other commands, which are at them")
            Claims(work.folder).wait([file_name(case.case_id) for case in busy])
        waiting = busy
    return answers


def _tell_answer(answer: Mapping[str, Any], reporter: Reporter) -> None:
    if "trace" in answer:
        reporter.warn(answer["trace"])
    if answer["state"] in ("refused", "stands"):
        became = "left out" if answer["state"] == "refused" else "not renewed"
        reporter.warn(f"`{answer['case_id']}` is {became}: {answer['reason']}")


def _put_together(folder: Path, cohort: Cohort, reporter: Reporter) -> dict[str, Any]:
    """Makes one store of all cases, and gives its fingerprint."""
    _forget_others(folder, cohort, reporter)
    return rebuild(folder)


def _manifest(folder: Path) -> bytes:
    """Empty where there is none."""
    path = folder / MANIFEST
    return path.read_bytes() if path.is_file() else b""


def _forget_others(folder: Path, cohort: Cohort, reporter: Reporter) -> None:
    """Removes cases that the source no longer has."""
    mine = {sidecar_path(folder, case.case_id).name for case in cohort.cases}
    gone = [path for path in sidecar_paths(folder) if path.name not in mine]
    for path in gone:
        path.unlink(missing_ok=True)
        path.with_suffix(".h5").unlink(missing_ok=True)
    if gone:
        reporter.warn(f"{len(gone)} case(s) are no longer in the source and were removed")


def _tell(result: PreparationResult, reporter: Reporter) -> None:
    for line in fingerprint_lines(result.store, result.fingerprint):
        reporter.say(line)
    counts = f"{len(result.prepared)} case(s) prepared, {len(result.kept)} kept"
    reporter.say(f"{counts}, {len(result.refused)} refused in {duration(result.seconds)}")
    if result.left:
        reporter.say(f"shard {result.shard} is done; {result.left} case(s) or more are still to be "
                     "prepared by others, of which the last makes the store")  # fmt: skip
    elif result.refused:
        reporter.warn(f"what was refused, why, and what to do: `{result.store / 'quarantine.tsv'}`")
