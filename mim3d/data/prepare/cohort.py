"""A whole cohort into a store, by several processes; running it again goes on."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mim3d.config.verbs import PreparationConfig, PrepareConfig
from mim3d.data.cohort import Case, Cohort, apply_split, hash_ids, read_cohort
from mim3d.data.prepare.job import Work, refuse
from mim3d.data.prepare.pool import run
from mim3d.data.prepare.printed import fingerprint_lines, plan_lines
from mim3d.data.prepare.summary import cohort_facts, rebuild
from mim3d.data.store.layout import CASES, MANIFEST, read_json, sidecar_path, sidecar_paths
from mim3d.foundation.atomic import sweep
from mim3d.foundation.errors import ConfigError, ExitCode, UserError
from mim3d.foundation.reporting import Reporter, Silent, duration

PEEKED = 5
"""Cases whose values are looked at where nobody says what modality they are."""


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
        refused: the quarantine.
        seconds: how long it took.
        fingerprint: of all cases in the store; empty where all were refused.
    """

    store: Path
    prepared: tuple[str, ...]
    kept: tuple[str, ...]
    refused: tuple[Refusal, ...]
    seconds: float
    fingerprint: dict[str, Any] = field(repr=False, default_factory=dict)

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
        return ExitCode.PARTIAL if self.prepared or self.kept else ExitCode.INPUT


def prepare_store(
    source: Path | str | Cohort,
    out: Path | str,
    config: PrepareConfig | None = None,
    reporter: Reporter | None = None,
) -> PreparationResult:
    """Prepares a cohort: reads, checks, orients, resamples, measures, crops and stores each case.

    Running it again goes on where it stopped, prepares anew what changed, and keeps the rest. A
    case that cannot be used becomes a row of `quarantine.tsv`; the others go on.

    Args:
        source: anything `read_cohort` takes, or a cohort.
        out: the store's folder.
        config: settings; those of the store decide what a case's key is.
        reporter: where progress is told.

    Raises:
        UserError: no source, no case, another cohort's store at `out`.
        ResourceError: the disk is full; what is done is kept.
    """
    start = time.monotonic()
    config = config or PrepareConfig()
    reporter = reporter or Silent()
    settings = config.prepare
    _check(settings)
    cohort = source if isinstance(source, Cohort) else read_cohort(source, settings.pattern)
    if settings.split is not None:
        cohort = apply_split(cohort, settings.split)
    if settings.case_ids == "hashed":
        cohort = hash_ids(cohort)
    folder = Path(out)
    _check_same_cohort(folder, cohort)
    (folder / CASES).mkdir(parents=True, exist_ok=True)
    for used in (folder, folder / CASES):
        sweep(used)
    processes = _processes(settings, len(cohort.cases))
    for line in plan_lines(cohort, folder, settings, processes):
        reporter.say(line)
    for remark in cohort.remarks:
        reporter.warn(remark)
    work = _work(folder, cohort, config, reporter, processes)
    answers = _prepare_all(cohort.cases, work, processes, reporter)
    _forget_others(folder, cohort, reporter)
    fingerprint = rebuild(folder)
    result = _result(folder, answers, fingerprint, time.monotonic() - start)
    _tell(result, reporter)
    return result


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
    elif settings.body_margin_mm < 0:
        wrong = "`prepare.body_margin_mm` is not negative"
    elif not 0 <= settings.validation_fraction < 1:
        wrong = "`prepare.validation_fraction` is at least 0 and below 1"
    elif settings.workers is not None and settings.workers < 0:
        wrong = "`prepare.workers` is not negative"
    if wrong:
        raise ConfigError(wrong)


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


def _processes(settings: PreparationConfig, cases: int) -> int:
    if settings.workers is not None:
        return min(settings.workers, cases)
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(cores, cases)


def _work(
    folder: Path, cohort: Cohort, config: PrepareConfig, reporter: Reporter, processes: int
) -> Work:
    settings = config.prepare
    kept = ("workers", "verify", "keep_paths", "split")
    preparation = {k: v for k, v in asdict(settings).items() if k not in kept}
    preparation["read"] = asdict(config.read)
    facts = cohort_facts(cohort, preparation)
    work = Work(folder, settings, config.read, cohort.classes, cohort.modalities, facts)
    if settings.modality != "auto":
        return replace(work, modalities=_all(settings.modality, cohort, work, processes, reporter))
    if cohort.modalities is not None and None not in cohort.modalities:
        return work
    return replace(work, modalities=_inferred(cohort, work, processes, reporter))


def _all(
    modality: str, cohort: Cohort, work: Work, processes: int, reporter: Reporter
) -> tuple[str, ...] | None:
    """The modality asked for, once a channel."""
    if cohort.modalities is None:
        found = _peeked(cohort, work, processes)
        return (modality,) * len(found[0]) if found else None
    said = set(cohort.modalities) - {None, modality}
    if said:
        reporter.warn(f"the source says {', '.join(map(str, said))}; taken as {modality} as asked")
    return (modality,) * len(cohort.modalities)


def _inferred(
    cohort: Cohort, work: Work, processes: int, reporter: Reporter
) -> tuple[str | None, ...] | None:
    """Modalities from the values of a few cases; None in a place where they disagree."""
    found = _peeked(cohort, work, processes)
    if not found:
        return None
    channels = Counter(len(each) for each in found).most_common(1)[0][0]
    columns = zip(*(each for each in found if len(each) == channels), strict=True)
    known = cohort.modalities if cohort.modalities and len(cohort.modalities) == channels else None
    decided: list[str | None] = []
    for number, column in enumerate(columns):
        said = known[number] if known else None
        decided.append(said or (column[0] if len(set(column)) == 1 else None))
    if None in decided:
        reporter.warn("some cases have the values of CT and some not: each is taken by its own "
                      "(`--prepare.modality` decides for all)")  # fmt: skip
    else:
        words = ", ".join(str(word) for word in decided)
        reporter.say(f"modality by the values of {len(found)} case(s): {words}")
    return tuple(decided)


def _peeked(cohort: Cohort, work: Work, processes: int) -> list[list[str]]:
    manifest = work.folder / MANIFEST
    if manifest.is_file():
        # Decided when the store was begun: a second look must not change every key.
        stored = read_json(manifest).get("modalities")
        if isinstance(stored, list) and work.config.modality == "auto":
            return [stored]
    step = max(1, len(cohort.cases) // PEEKED)
    answers = run("peek", cohort.cases[::step][:PEEKED], work, min(processes, PEEKED))
    found = [answer["modalities"] for _, answer in answers if isinstance(answer, dict)]
    return [each for each in found if each]


def _prepare_all(
    cases: Sequence[Case], work: Work, processes: int, reporter: Reporter
) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = []
    start = time.monotonic()
    for case, answer in run("prepare", cases, work, processes):
        if isinstance(answer, str):
            answer = refuse(
                case, work, "", "reader-died", answer, "check the file, or leave it out"
            )
        answers.append(answer)
        if "trace" in answer:
            reporter.warn(answer["trace"])
        if answer["state"] == "refused":
            reporter.warn(f"`{answer['case_id']}` is left out: {answer['reason']}")
        done = len(answers)
        left = (time.monotonic() - start) / done * (len(cases) - done)
        reporter.progress(done, len(cases), f"{done} of {len(cases)} cases, {duration(left)} left")
    return answers


def _forget_others(folder: Path, cohort: Cohort, reporter: Reporter) -> None:
    """Removes cases that the source no longer has."""
    mine = {sidecar_path(folder, case.case_id).name for case in cohort.cases}
    gone = [path for path in sidecar_paths(folder) if path.name not in mine]
    for path in gone:
        path.unlink(missing_ok=True)
        path.with_suffix(".h5").unlink(missing_ok=True)
    if gone:
        reporter.warn(f"{len(gone)} case(s) are no longer in the source and were removed")


def _result(
    folder: Path, answers: Sequence[dict[str, Any]], fingerprint: dict[str, Any], seconds: float
) -> PreparationResult:
    refused = []
    states: dict[str, list[str]] = {"prepared": [], "kept": []}
    for answer in sorted(answers, key=lambda answer: str(answer["case_id"])):
        # `rebuild` may have refused a case that was prepared alone.
        sidecar = read_json(sidecar_path(folder, answer["case_id"]))
        if "refused" in sidecar:
            refused.append(Refusal(answer["case_id"], **sidecar["refused"]))
        else:
            states[answer["state"]].append(answer["case_id"])
    prepared, kept = tuple(states["prepared"]), tuple(states["kept"])
    return PreparationResult(folder, prepared, kept, tuple(refused), seconds, fingerprint)


def _tell(result: PreparationResult, reporter: Reporter) -> None:
    for line in fingerprint_lines(result.store, result.fingerprint):
        reporter.say(line)
    counts = f"{len(result.prepared)} case(s) prepared, {len(result.kept)} kept"
    reporter.say(f"{counts}, {len(result.refused)} refused in {duration(result.seconds)}")
    if result.refused:
        reporter.warn(f"what was refused, why, and what to do: `{result.store / 'quarantine.tsv'}`")
