"""What a report says before its numbers: what was equal for all arms, and what was not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mim3d.config.verbs import ConvergenceConfig
from mim3d.workflows.convergence.arms import Arm
from mim3d.workflows.convergence.bench import Bench
from mim3d.workflows.convergence.planning import off_budget
from mim3d.workflows.convergence.trials import at_ends, sees_judges
from mim3d.workflows.seen_cases import told_beside_images


def about(bench: Bench, seen: Sequence[str] = ()) -> dict[str, str | int | float | bool]:
    """What was equal for all arms, and what else a reader must know.

    Args:
        bench: the benchmark.
        seen: what arms began with of who judges, as `check_seen` tells it.
    """
    settings, arms = bench.settings, bench.arms.values()
    said: dict[str, str | int | float | bool] = {}
    if any(arm.before for arm in arms):
        said["budget"] = _budget(arms, settings)
        if off := off_budget(arms, settings, bench.plan.arms):
            said["off the budget"] = f"whole steps cannot meet it: {off}"
        said["pre-training seeds"] = settings.pretraining_seeds
    longer = [f"`{arm.name}` that of `{arm.total_time_of}`" for arm in arms if arm.total_time_of]
    if longer:
        said["equal time"] = (
            "fine-tunings as long as pre-training and fine-tuning of another arm take together, in "
            f"seconds: {', '.join(longer)}"
        )
    said["judged on"] = "the validation list"
    if settings.folds:
        folds = ", ".join(map(str, settings.folds))
        sees = "does not see" if settings.pretrain_per_fold else "may see, without labels,"
        less = (
            "" if settings.pretrain_per_fold else ", but for those of the store's validation list"
        )
        said["judged on"] = (
            f"folds {folds} of 5 in turn; pre-training {sees} the volumes of the fold that judges"
            f"{less}"
        )
    if sees_judges(settings) and any(arm.pretrain for arm in arms):
        said["probes"] = (
            "of labels, none while pre-training: they would read those of subjects that judge a "
            "fold"
        )
    beside = [
        f"`{arm.name}` {told}"
        for arm in arms
        if arm.pretrain is not None and (told := told_beside_images(arm.pretrain.objective))
    ]
    if beside:
        said["told in pre-training"] = (
            f"{', '.join(beside)}: of every training case, whatever the fraction of labels"
        )
    if seen:
        said["seen before"] = "; ".join(seen)
    said["learning rate"] = _rates(settings) if settings.rates else "the recipe's"
    chosen = bench.chosen()
    if chosen:
        said["chosen learning rates"] = ", ".join(f"`{one}` {pace}" for one, pace in chosen.items())
    here = {key: pace for key, pace in chosen.items() if key.split(" ")[0] in bench.arms}
    if ends := at_ends(here, settings):
        said["ends of the grid"] = "; ".join(ends)
    return said


def _budget(arms: Iterable[Arm], settings: ConvergenceConfig) -> str:
    text = (
        f"every pre-training costs as much as that of `{settings.budget_arm}`, in {settings.budget}"
    )
    coins = [f"`{arm.name}` in {arm.budget}" for arm in arms if arm.budget]
    own = [arm.name for arm in arms if arm.keeps_steps and arm.name != settings.budget_arm]
    if coins:
        text += f", but {', '.join(coins)}"
    return text + (f"; of a length of their own: {', '.join(own)}" if own else "")


def _rates(settings: ConvergenceConfig) -> str:
    listed = ", ".join(f"{rate:g}" for rate in settings.rates)
    if settings.warmups:
        steps = ", ".join(map(str, settings.warmups))
        listed += f", each with a warm-up of {steps} steps"
    each, whose, replicate = "each arm", "the training list", "the first replicate"
    if settings.folds:
        each, whose = "each arm and fold", "the fold's own training list"
        replicate = "the fold's first replicate"
    return (
        f"of {listed}, for {each} by itself by its last checkpoint's Dice on a fifth of {whose}, "
        f"with labels {settings.labels[0]} and {replicate} whose pre-training is alive"
    )
