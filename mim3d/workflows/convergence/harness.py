"""The whole benchmark: the plan, then every run that is not done, then the report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mim3d.config.verbs import ConvergenceConfig
from mim3d.evaluation.convergence import Record
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.lock import held
from mim3d.foundation.reporting import Reporter, duration
from mim3d.training.fabric import processes
from mim3d.workflows.convergence.about import about
from mim3d.workflows.convergence.arms import Arm, read_arms, reference_of
from mim3d.workflows.convergence.bench import Bench, Busy
from mim3d.workflows.convergence.judges import check_draws, check_seen
from mim3d.workflows.convergence.plan import Plan, rate_key, read_plan
from mim3d.workflows.convergence.planning import make_plan, names_of_runs, off_budget, settle_plan
from mim3d.workflows.convergence.trials import (
    Trial,
    all_trials,
    before_of,
    check_starts,
    paces,
    shard_of,
)
from mim3d.workflows.result import Result

REPORT_LOCK = "report.lock"
BUSY_WAIT_SECONDS = 2.0
"""Between two looks at runs that other processes hold."""


def convergence(
    source: Path,
    settings: ConvergenceConfig,
    *,
    out: Path,
    reporter: Reporter,
    dry_run: bool = False,
) -> Result:
    """Runs what is missing of a benchmark, and reports on all that is there.

    Args:
        source: the file with the arms.
        settings: its section `convergence`, with what the command line changes.
        out: the folder of all runs; shared by commands with different shards.
        reporter: where progress goes.
        dry_run: say what would be done and what it costs; write nothing.

    Returns:
        The report on all records of the folder, other shards' included.

    Raises:
        ConfigError: the file, or an arm of it, cannot be used; or the folder was planned otherwise.
        Interrupted: a signal came; the same command continues.
    """
    if processes().world > 1:
        raise ConfigError(
            f"a convergence benchmark is run by single processes, and this is one of "
            f"{processes().world}",
            remedy="start them by themselves, each with its share: `--shard 0/4` to `--shard 3/4`",
            code="processes",
        )
    arms = read_arms(source, settings)
    trials = all_trials(arms, settings)
    mine = shard_of(trials, settings.shard)
    named = {arm.name: arm for arm in arms}
    check_draws(trials, named, settings)
    seen = check_seen(trials, named, settings)
    check_starts(out, arms, settings, read_plan(out).rates)
    if dry_run:
        plan = make_plan(arms, settings, read_plan(out), partial(names_of_runs, out))
        bench = Bench(named, settings, plan, out, reporter)
        return _planned(bench, arms, trials, mine)
    plan = settle_plan(out, arms, settings, reporter)
    bench = Bench(named, settings, plan, out, reporter)
    try:
        run_all(bench, mine)
    except UserError:
        # What is done is worth reading, and must not hide why the rest is not.
        with contextlib.suppress(UserError):
            report(bench, trials, seen)
        raise
    return report(bench, trials, seen)


def run_all(bench: Bench, trials: Sequence[Trial]) -> None:
    """Makes every missing record; those that wait for another process come last."""
    waiting = [trial for trial in trials if bench.finished(trial) is None]
    done, total = len(trials) - len(waiting), len(trials)
    if waiting:
        bench.reporter.say(f"{len(waiting)} of {total} fine-tunings are to be done")
    said: set[str] = set()
    while waiting:
        held: list[Trial] = []
        for trial in waiting:
            if bench.finished(trial) is not None:  # meanwhile, by another process
                done += 1
                continue
            try:
                record = bench.make(trial)
            except Busy as busy:
                if trial.name not in said:
                    bench.reporter.say(f"{trial.name} waits: another process is at {busy}")
                    said.add(trial.name)
                held.append(trial)
                continue
            done += 1
            bench.reporter.say(f"{done} of {total}  {_line(record)}")
        if len(held) == len(waiting):
            time.sleep(BUSY_WAIT_SECONDS)
        waiting = held


def _line(record: Record) -> str:
    """A finished fine-tuning in one line."""
    name = f"{record.arm}, labels {record.labels}, replicate {record.replicate}"
    if record.why_dead is not None:
        return f"{name}: dead ({record.why_dead})"
    last = record.dice[-1]
    return f"{name}: Dice {sum(last) / len(last):.3f}"


def report(bench: Bench, trials: Sequence[Trial], seen: Sequence[str] = ()) -> Result:
    """Writes the report on the records that are there.

    Args:
        bench: the benchmark.
        trials: all of it, in order.
        seen: what arms began with of who judges, as `check_seen` tells it.
    """
    from mim3d.workflows.convergence.report import write_report

    folder = Path(bench.settings.report or bench.out)
    if not any(bench.record_path(trial).is_file() for trial in trials):
        facts = {"done": 0, "missing": len(trials), "out": str(bench.out), "report": str(folder)}
        return Result(text="no fine-tuning is done yet", facts=facts)
    folder.mkdir(parents=True, exist_ok=True)
    # From reading to writing, so that of two commands the later one has read more.
    with held(folder, REPORT_LOCK, tell=bench.reporter.say):
        records = _records(bench, trials)
        files = write_report(
            records,
            folder,
            about=about(bench, seen),
            arms=tuple(bench.arms),
            reference=reference_of(bench.arms.values()),
        )
    missing = len(trials) - len(records)
    facts = {
        "done": len(records), "missing": missing, "out": str(bench.out), "report": str(folder),
    }  # fmt: skip
    table = next(file for file in files if file.suffix == ".md").read_text(encoding="utf-8")
    last = f"\n\n{missing} of {len(trials)} fine-tunings are missing" if missing else ""
    return Result(text=table.rstrip() + last, facts=facts, files=files)


def _records(bench: Bench, trials: Sequence[Trial]) -> list[Record]:
    """All that is there; whom an arm is compared with may be changed after it was run."""
    return [
        replace(record, against=bench.arms[trial.arm].against)
        for trial in trials
        if (record := bench.record_of(trial)) is not None
    ]


# What would be done


@dataclass(frozen=True)
class _Todo:
    """What an arm still needs.

    Args:
        pretrainings: number of them.
        tunings: number of fine-tunings that choose its rate.
        finetunings: number of them.
        seconds: of all, about.
    """

    pretrainings: int
    tunings: int
    finetunings: int
    seconds: float


def _planned(
    bench: Bench, arms: Sequence[Arm], trials: Sequence[Trial], mine: Sequence[Trial]
) -> Result:
    todo = {arm.name: _todo(bench, arm, mine) for arm in arms}
    hours = sum(one.seconds for one in todo.values())
    settings = bench.settings
    head = (
        f"{len(trials)} fine-tunings: {len(arms)} arms x labels "
        f"{', '.join(map(str, settings.labels))} x {settings.replicates} replicates; pre-trainings "
        f"cost as much as `{settings.budget_arm}`'s in {settings.budget}"
    )
    if len(mine) < len(trials):
        head += f"; {len(mine)} of them in shard {settings.shard}"
    if off := off_budget(arms, settings, bench.plan.arms):
        head += f"; whole steps leave off that budget: {off}"
    lines = [head, "", *_table(bench.plan, arms, todo), "", *_grids(bench.plan, arms), ""]
    lines.append(f"about {duration(hours)} on this machine, without reading the store")
    lines.append("nothing was written (--dry_run)")
    facts = {
        "runs": len(trials),
        "seconds": hours,
        "arms": {name: {**one.as_json(), "todo": vars(todo[name])}
                 for name, one in bench.plan.arms.items() if name in todo},
    }  # fmt: skip
    return Result(text="\n".join(lines), facts=facts)


def _todo(bench: Bench, arm: Arm, trials: Sequence[Trial]) -> _Todo:
    plan = bench.plan.arms[arm.name]
    left = [trial for trial in trials if bench.finished(trial) is None]
    own = [trial for trial in left if trial.arm == arm.name]
    # Another arm's fine-tunings may be the only ones that want this arm's pre-training.
    needed = {before_of(trial, bench.arms[trial.arm], bench.settings) for trial in left
              if bench.arms[trial.arm].before == arm.name} if arm.pretrain else set()  # fmt: skip
    pretrainings = sum(b is not None and not bench.is_pretrained(b) for b in needed)
    untuned = {
        trial.fold for trial in own if rate_key(arm.name, trial.fold) not in bench.plan.rates
    }
    tunings = len(paces(bench.settings)) * len(untuned)
    looks = len(plan.grid) + 1  # the audit looks once more
    seconds = len(own) * (plan.finetune.seconds + looks * plan.look_seconds)
    seconds += tunings * plan.finetune.seconds
    seconds += pretrainings * (plan.pretrain.seconds if plan.pretrain else 0.0)
    return _Todo(pretrainings, tunings, len(own), seconds)


def _table(plan: Plan, arms: Sequence[Arm], todo: dict[str, _Todo]) -> list[str]:
    lines = [
        "| arm | pre-training steps | TFLOP | fine-tuning steps | TFLOP | to do: pre-trainings | "
        "tunings | fine-tunings | about |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for arm in arms:
        one, left = plan.arms[arm.name], todo[arm.name]
        before = ("-", "-")
        if one.pretrain is not None:
            before = (f"{one.pretrain.steps:,}", f"{one.pretrain.flop / 1e12:.3g}")
        elif arm.before is not None:
            before = (f"`{arm.before}`'s", "-")
        lines.append(
            f"| {arm.name} | {before[0]} | {before[1]} | {one.finetune.steps:,} | "
            f"{one.finetune.flop / 1e12:.3g} | {left.pretrainings} | {left.tunings} | "
            f"{left.finetunings} | {duration(left.seconds)} |"
        )
    return lines


def _grids(plan: Plan, arms: Sequence[Arm]) -> list[str]:
    by_grid: dict[tuple[int, ...], list[str]] = {}
    for arm in arms:
        by_grid.setdefault(plan.arms[arm.name].grid, []).append(arm.name)
    return [f"judged at steps {', '.join(map(str, grid))}: {', '.join(names)}"
            for grid, names in by_grid.items()]  # fmt: skip
