"""How a benchmark is planned: steps by equal budgets, step grids, and what must not change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mim3d.config.verbs import ConvergenceConfig, FinetuneConfig
from mim3d.foundation.atomic import write_json
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.lock import held
from mim3d.foundation.reporting import Reporter
from mim3d.workflows.convergence.arms import Arm
from mim3d.workflows.convergence.begun import begun
from mim3d.workflows.convergence.cost import Costs, StepCost, look_seconds
from mim3d.workflows.convergence.follows import changed_plan, differing_settings, settings_of
from mim3d.workflows.convergence.plan import PLAN, ArmPlan, Cost, Plan, naming, read_plan
from mim3d.workflows.initial import adopted
from mim3d.workflows.plan.facts import counted

FIRST_STEP = 10
"""Of the grid, behind step 0."""
OFF_BUDGET = 0.05
"""Share of the budget by which a pre-training of whole steps may miss it without being named."""


def settle_plan(
    out: Path, arms: Sequence[Arm], settings: ConvergenceConfig, reporter: Reporter
) -> Plan:
    """The plan of a folder, made or extended by whoever comes first.

    Args:
        out: the benchmark's folder, made if absent.
        arms: of the benchmark.
        settings: its section `convergence`.
        reporter: where progress goes.
    """
    out.mkdir(parents=True, exist_ok=True)
    with held(out, tell=reporter.say):
        there = read_plan(out)
        missing = [arm.name for arm in arms if arm.name not in there.arms]
        if missing:
            reporter.say(f"counting and timing a step of {', '.join(missing)}")
        plan = make_plan(arms, settings, there, partial(names_of_runs, out))
        if plan != there:
            write_json(out / PLAN, plan.as_json())
    return plan


def names_of_runs(out: Path, arm: str) -> tuple[str, ...]:
    """Of all runs of an arm that were begun: `finetune/mae-labels5-0`."""
    return tuple(f"{run.sort}/{run.name}" for run in begun(out, arm))


def make_plan(
    arms: Sequence[Arm],
    settings: ConvergenceConfig,
    there: Plan,
    runs: Callable[[str], Sequence[str]] = lambda arm: (),
) -> Plan:
    """The plan for some arms: what stands there, and the rest anew.

    Args:
        arms: of the benchmark.
        settings: its section `convergence`.
        there: what was decided before.
        runs: names of the runs that were begun of an arm.

    Raises:
        ConfigError: an arm with runs was planned with other settings.
        UserError: an arm with which nothing can be trained; the arm is named.
    """
    by_name = {arm.name: arm for arm in arms}
    said = {arm.name: settings_of(arm, settings) for arm in arms}
    anew = _planned_anew(by_name, settings, there, said, runs)
    planned = {name: one for name, one in there.arms.items() if name not in anew}
    rates = {key: rate for key, rate in there.rates.items() if key.split(" ")[0] not in anew}
    sums = _Sums(by_name, settings, planned)
    for arm in arms:
        if arm.name not in planned:
            with naming(arm):
                planned[arm.name] = sums.arm(arm, said[arm.name])
    return Plan(planned, rates)


def _planned_anew(
    arms: Mapping[str, Arm],
    settings: ConvergenceConfig,
    there: Plan,
    said: Mapping[str, dict[str, Any]],
    runs: Callable[[str], Sequence[str]],
) -> set[str]:
    """The planned arms that changed, and those whose steps follow from theirs; none has a run."""
    anew: set[str] = set()
    for name in arms:
        if name not in there.arms:
            continue
        with naming(arms[name]):
            differing = differing_settings(there.arms[name].settings, said[name])
        if not differing:
            continue
        leaning = _leaning(name, arms, settings, there)
        begun = [run for one in sorted(leaning) for run in runs(one)]
        if begun:
            raise changed_plan(name, arms[name], differing, begun)
        anew |= leaning
    return anew


def _leaning(
    name: str, arms: Mapping[str, Arm], settings: ConvergenceConfig, there: Plan
) -> set[str]:
    """A planned arm and all planned ones that follow from its plan, listed today or not."""
    leans_on = {
        one: {
            arm.before,
            arm.total_time_of,
            settings.budget_arm if arm.is_matched(settings) else None,
        }
        for one, arm in arms.items()
        if one in there.arms
    }
    for one, planned in there.arms.items():
        keys = ("before", "total_time_of", "budget_arm")
        leans_on.setdefault(one, {planned.settings.get(key) for key in keys})
    found = {name}
    while more := {one for one, others in leans_on.items() if others & found} - found:
        found |= more
    return found


class _Sums:
    """Steps and costs of arms, as those of others have them.

    Args:
        arms: by name.
        settings: the section `convergence`.
        planned: what is decided; whoever fills it in lets later arms see it.
    """

    def __init__(
        self, arms: Mapping[str, Arm], settings: ConvergenceConfig, planned: Mapping[str, ArmPlan]
    ) -> None:
        self._arms, self._settings, self._planned = arms, settings, planned
        self._costs = Costs()

    def arm(self, arm: Arm, said: dict[str, Any]) -> ArmPlan:
        own = None if arm.pretrain is None else self.pretraining(arm)
        cost = self.finetuning(arm)
        folds = self._settings.folds
        config = _as_traced(arm, self._arms)
        judged = replace(config, data=replace(config.data, fold=folds[0] if folds else None))
        a_step = StepCost(cost.flop_a_step, cost.seconds_a_step)
        grid = step_grid(cost.steps, self._settings.points)
        return ArmPlan(own, cost, grid, look_seconds(judged, a_step), said)

    def pretraining(self, arm: Arm) -> Cost:
        """Of an arm with a pre-training of its own, which may be planned already."""
        if arm.name in self._planned:
            cost = self._planned[arm.name].pretrain
            assert cost is not None
            return cost
        assert arm.pretrain is not None
        a_step = self._costs.of(arm.pretrain)
        steps = arm.pretrain.training.steps
        if arm.is_matched(self._settings):
            whole = self.pretraining(self._arms[self._settings.budget_arm])
            steps = matched_steps(arm.budget or self._settings.budget, a_step, whole)
            _check_warmup(arm, steps, self._settings)
        return Cost(steps, a_step.flop, a_step.seconds)

    def finetuning(self, arm: Arm) -> Cost:
        if arm.name in self._planned:
            return self._planned[arm.name].finetune
        config = _as_traced(arm, self._arms)
        a_step = self._costs.of(config)
        if arm.total_time_of is None:
            return Cost(config.training.steps, a_step.flop, a_step.seconds)
        other = self._arms[arm.total_time_of]
        before, behind = self.pretraining(other), self.finetuning(other)
        if behind.flop_a_step == a_step.flop:
            # The same step: two measurements of it would differ by chance alone.
            a_step = replace(a_step, seconds=behind.seconds_a_step)
        steps = max(1, round((before.seconds + behind.seconds) / a_step.seconds))
        return Cost(steps, a_step.flop, a_step.seconds)


def _check_warmup(arm: Arm, steps: int, settings: ConvergenceConfig) -> None:
    assert arm.pretrain is not None
    warmup = arm.pretrain.optim.warmup_steps
    if 0 < warmup >= steps:
        raise ConfigError(
            f"an equal budget gives the pre-training of `{arm.name}` {steps:,} steps, and its "
            f"warm-up alone (`optim.warmup_steps`) takes {warmup:,}",
            remedy="write `pretrain: {optim: {warmup_steps: ...}}` with fewer in that arm, or give "
            f"`{settings.budget_arm}` more `training.steps`",
            code="budget",
        )


def matched_steps(budget: str, a_step: StepCost, whole: Cost) -> int:
    """As many steps as cost what another training costs.

    Args:
        budget: in which coin: `flop`, `steps` or `seconds`.
        a_step: of the steps that are asked for.
        whole: the other training.
    """
    if budget == "steps":
        return whole.steps
    asked, one = (whole.flop, a_step.flop) if budget == "flop" else (whole.seconds, a_step.seconds)
    return max(1, round(asked / one))


def off_budget(
    arms: Iterable[Arm], settings: ConvergenceConfig, planned: Mapping[str, ArmPlan]
) -> str:
    """Arms whose whole steps leave them off the budget, with the factor; empty for none.

    Args:
        arms: of the benchmark.
        settings: its section `convergence`.
        planned: by name, with the budget's arm.
    """
    found = []
    for arm in arms:
        if not arm.is_matched(settings):
            continue
        coin = arm.budget or settings.budget
        own, whole = planned[arm.name].pretrain, planned[settings.budget_arm].pretrain
        assert own is not None
        assert whole is not None
        factor: float = getattr(own, coin) / getattr(whole, coin)
        if abs(factor - 1) > OFF_BUDGET:
            steps = counted(own.steps, "step")
            found.append(f"`{arm.name}` {factor:.3g} times that in {coin} ({steps})")
    return ", ".join(found)


def step_grid(steps: int, points: int) -> tuple[int, ...]:
    """Step 0 and `points` steps evenly spaced in their logarithm, from 10 to the last.

    Args:
        steps: of the fine-tuning.
        points: 2 or more, as `all_trials` sees to.
    """
    first = min(FIRST_STEP, steps)
    spaced = (first * (steps / first) ** (place / (points - 1)) for place in range(points))
    return (0, *sorted({round(step) for step in spaced}))


def _as_traced(arm: Arm, arms: Mapping[str, Arm]) -> FinetuneConfig:
    """The fine-tuning with the encoder that it will have, before there is a run to take it from."""
    if arm.before is None:
        return arm.finetune
    before = arms[arm.before].pretrain
    assert before is not None
    return replace(arm.finetune, encoder=adopted(arm.finetune, before.encoder))
