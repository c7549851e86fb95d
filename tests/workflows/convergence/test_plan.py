"""Equal budgets against counts by hand, step grids, and a plan that is written once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_benchmark import make_store

from mim3d.config.data import DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig
from mim3d.config.parts import section_of
from mim3d.config.reading import read_config
from mim3d.config.task import DecoderConfig
from mim3d.config.training import TrainingConfig
from mim3d.config.verbs import BenchmarkConfig, ConvergenceConfig, FinetuneConfig, PretrainConfig
from mim3d.config.writing import to_mapping
from mim3d.data.store.layout import write_record
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.reporting import Silent
from mim3d.workflows.convergence import follows, planning
from mim3d.workflows.convergence.arms import Arm, read_arms
from mim3d.workflows.convergence.cost import StepCost
from mim3d.workflows.convergence.plan import Cost, Plan, Rate, read_plan, settle_rate
from mim3d.workflows.convergence.planning import (
    make_plan,
    matched_steps,
    settle_plan,
    step_grid,
)


def pretraining(**training):
    return PretrainConfig(
        data=DataConfig(crop_size=(32, 32, 32)),
        encoder=EncoderConfig(width=48, depth=2, heads=3, patch=(8, 8, 8)),
        training=TrainingConfig(**{"precision": "fp32", "device": "cpu", "threads": 1, **training}),
    )


@pytest.mark.parametrize(
    ("budget", "steps"),
    [("flop", 1500), ("seconds", 600), ("steps", 1000)],
)
def test_steps_cost_what_the_budgets_arm_costs(budget, steps):
    # 1,000 steps of 3 GFLOP and 0.3 s; a step here has 2 GFLOP and 0.5 s.
    assert matched_steps(budget, StepCost(2e9, 0.5), Cost(1000, 3e9, 0.3)) == steps


def test_a_budget_of_less_than_a_step_is_one_step():
    assert matched_steps("flop", StepCost(9e9, 1.0), Cost(1, 1e9, 0.1)) == 1


def test_the_grid_is_even_in_the_logarithm_from_step_10_behind_step_0():
    # 10 * 100 ** (i / 4)
    assert step_grid(1000, 5) == (0, 10, 32, 100, 316, 1000)
    assert step_grid(12, 14) == (0, 10, 11, 12)
    assert step_grid(6, 3) == (0, 6)


@pytest.fixture
def costs(monkeypatch):
    """Two GFLOP and half a second a step of `simmim`, three and a third of anything else."""
    asked = []

    def step_cost(config):
        asked.append(config)
        task = config.objective.name if isinstance(config, PretrainConfig) else "segmentation"
        return StepCost(2e9, 0.5) if task == "simmim" else StepCost(3e9, 0.3)

    monkeypatch.setattr("mim3d.workflows.convergence.cost.step_cost", step_cost)
    monkeypatch.setattr(planning, "look_seconds", lambda config, step: 1.0)
    return asked


def arms():
    mae = pretraining(steps=1000)
    simmim = replace(mae, objective=replace(mae.objective, name="simmim", decoder="full"))
    tuned = FinetuneConfig(training=TrainingConfig(steps=200))
    return [
        Arm("scratch", "scratch", tuned),
        Arm("simmim", "masked", tuned, simmim, "simmim"),
        Arm("short", "masked", tuned, replace(mae, training=replace(mae.training, steps=77)),
            "short", keeps_steps=True),
        Arm("mae", "masked", tuned, mae, "mae"),
        Arm("wide", "masked", tuned, None, "mae"),
        Arm("scratch_long", "scratch", tuned, total_time_of="simmim"),
    ]  # fmt: skip


def test_every_arm_gets_steps_by_the_budget_but_one_that_says_its_own(costs):
    plan = make_plan(arms(), ConvergenceConfig(points=4), Plan())

    steps = {name: arm.pretrain and arm.pretrain.steps for name, arm in plan.arms.items()}
    assert steps == {"scratch": None, "simmim": 1500, "short": 77, "mae": 1000, "wide": None,
                     "scratch_long": None}  # fmt: skip
    # 1,500 steps of 0.5 s and 200 of 0.3 s are 2,700 of 0.3 s; in FLOP they were 1,200.
    assert plan.arms["scratch_long"].finetune.steps == 2700
    assert plan.arms["scratch_long"].grid[-1] == 2700
    assert {plan.arms[name].finetune.steps for name in ("scratch", "simmim", "mae")} == {200}
    # Each distinct config is counted once: mae's, simmim's, and fine-tuning from both encoders.
    assert len(costs) == 4


def test_a_plan_reads_back_equal_and_what_stands_there_stays(tmp_path, costs):
    settings = ConvergenceConfig(points=4)
    first = settle_plan(tmp_path, arms()[:4], settings, Silent())
    costs.clear()

    assert read_plan(tmp_path) == first
    assert settle_plan(tmp_path, arms()[:4], settings, Silent()) == first
    assert costs == []
    more = settle_plan(tmp_path, arms(), settings, Silent())
    assert set(more.arms) - set(first.arms) == {"wide", "scratch_long"}
    assert not (tmp_path / "lock.json").exists()


@pytest.mark.parametrize("budget", ["flop", "steps", "seconds"])
def test_total_time_is_time_whatever_the_budget(costs, budget):
    plan = make_plan(arms(), ConvergenceConfig(points=4, budget=budget), Plan()).arms

    paid, own = plan["simmim"], plan["scratch_long"].finetune
    whole = paid.pretrain.seconds + paid.finetune.seconds
    assert abs(own.seconds - whole) <= own.seconds_a_step / 2
    if budget == "seconds":
        assert own.flop != pytest.approx(paid.pretrain.flop + paid.finetune.flop, rel=0.05)


def test_total_time_takes_the_seconds_of_the_other_arms_own_fine_tuning(costs, monkeypatch):
    def step_cost(config):
        if isinstance(config, PretrainConfig):
            return StepCost(2e9, 0.5)
        return StepCost(9e9, 0.6) if config.decoder.name == "unetr" else StepCost(3e9, 0.25)

    monkeypatch.setattr("mim3d.workflows.convergence.cost.step_cost", step_cost)
    tuned = FinetuneConfig(training=TrainingConfig(steps=200))
    light = replace(tuned, decoder=DecoderConfig(name="light"))
    matrix = [
        Arm("mae", "masked", tuned, pretraining(steps=100), "mae"),
        Arm("long", "scratch", light, total_time_of="mae"),
    ]

    plan = make_plan(matrix, ConvergenceConfig(points=4), Plan()).arms

    assert plan["long"].finetune.steps == (100 * 0.5 + 200 * 0.6) / 0.25


def test_an_arm_may_count_its_budget_in_a_coin_of_its_own(costs):
    mae, simmim = (next(arm for arm in arms() if arm.name == name) for name in ("mae", "simmim"))
    coins = {"flop": 1500, "seconds": 600, "steps": 1000}
    matrix = [mae] + [
        replace(simmim, name=f"simmim-{coin}", before=f"simmim-{coin}", budget=coin)
        for coin in coins
    ]

    plan = make_plan(matrix, ConvergenceConfig(points=4, budget="steps"), Plan())

    assert {coin: plan.arms[f"simmim-{coin}"].pretrain.steps for coin in coins} == coins
    changed = [mae, replace(matrix[1], budget=None), *matrix[2:]]
    with pytest.raises(ConfigError, match=r"arm `simmim-flop` .*`budget` \(flop there, steps now"):
        make_plan(changed, ConvergenceConfig(points=4, budget="steps"), plan, has_runs)


@pytest.mark.parametrize("warmup", [1499, 1500, 2000])
def test_an_equal_budget_that_ends_in_the_warm_up_is_refused(costs, warmup):
    matrix = arms()
    optim = replace(matrix[1].pretrain.optim, warmup_steps=warmup)
    matrix[1] = replace(matrix[1], pretrain=replace(matrix[1].pretrain, optim=optim))

    if warmup < 1500:
        make_plan(matrix, ConvergenceConfig(points=4), Plan())
        return
    with pytest.raises(
        ConfigError, match=f"`simmim` 1,500 steps, and its warm-up .* takes {warmup:,}"
    ) as caught:
        make_plan(matrix, ConvergenceConfig(points=4), Plan())
    assert "warmup_steps" in caught.value.remedy
    assert "`mae` more `training.steps`" in caught.value.remedy
    # One that says its steps itself knows what it does.
    own = replace(matrix[1], keeps_steps=True)
    make_plan([own, *matrix[2:]], ConvergenceConfig(points=4), Plan())


def has_runs(arm):
    return (f"finetune/{arm}-labels5-0",)


@pytest.mark.parametrize(
    ("change", "key"),
    [({"points": 5}, "points"), ({"budget": "steps"}, "budget"), ({"rates": (1e-3,)}, "rates"),
     ({"pretrain_per_fold": True}, "pretrain_per_fold"), ({"folds": (1,)}, "folds")],
)  # fmt: skip
def test_what_finished_runs_follow_from_must_not_change(costs, change, key):
    settings = ConvergenceConfig(points=4)
    plan = make_plan(arms(), settings, Plan())

    with pytest.raises(ConfigError, match=f"was planned with other settings: .*`{key}`") as caught:
        make_plan(arms(), replace(settings, **change), plan, has_runs)

    assert "-labels5-0`" in str(caught.value)
    # Without a run nothing follows from the plan yet.
    changed = replace(settings, **change)
    assert make_plan(arms(), changed, plan) == make_plan(arms(), changed, Plan())


def test_an_arm_is_planned_anew_with_all_whose_steps_follow_from_it(costs):
    settings = ConvergenceConfig(points=4)
    plan = make_plan(arms(), settings, Plan())
    plan.rates["simmim"] = plan.rates["scratch fold 1"] = Rate(1e-3, {})
    changed = arms()
    longer = replace(changed[3].pretrain, training=replace(changed[3].pretrain.training, steps=10))
    changed[3] = replace(changed[3], pretrain=longer)

    again = make_plan(changed, settings, plan, lambda arm: ())

    assert again.arms["mae"].pretrain.steps == 10
    assert again.arms["simmim"].pretrain.steps == 15
    assert again.arms["scratch_long"].finetune.steps == round((15 * 0.5 + 60) / 0.3)
    assert again.arms["short"] == plan.arms["short"]
    assert list(again.rates) == ["scratch fold 1"]
    for name in ("mae", "simmim", "wide", "scratch_long"):
        with pytest.raises(ConfigError, match=rf"arm `mae` was .*: `finetune/{name}-labels5-0`"):
            make_plan(changed, settings, plan, lambda arm, n=name: has_runs(n) if arm == n else ())
    assert set(make_plan(changed[2:5], settings, plan).arms) == {"mae", "wide", "short", "scratch"}
    with pytest.raises(ConfigError, match=r"arm `mae` was .*: `finetune/simmim-labels5-0`"):
        make_plan(
            changed[3:4], settings, plan, lambda arm: has_runs(arm) if arm == "simmim" else ()
        )
    for name in ("short", "scratch"):  # theirs stand on their own
        make_plan(changed, settings, plan, lambda arm, n=name: has_runs(n) if arm == n else ())


def test_a_store_with_other_content_is_refused_and_an_old_plan_knows_none(costs, monkeypatch):
    signs = {"stores/a": {"cases": "1", "fingerprint": "2", "preparation": "3"}}
    monkeypatch.setattr(follows, "store_signs", lambda store: store and dict(signs[store]))
    settings = ConvergenceConfig(points=4)
    matrix = [replace(arm, finetune=replace(arm.finetune, data=DataConfig(store="stores/a")))
              for arm in arms()]  # fmt: skip
    plan = make_plan(matrix, settings, Plan())
    old = {name: {key: value for key, value in arm.settings.items() if key != "stores"}
           for name, arm in plan.arms.items()}  # fmt: skip
    signs["stores/a"]["cases"] = "9"

    with pytest.raises(ConfigError, match="^`stores/a` holds other cases or another prep.* `scr"):
        make_plan(matrix, settings, plan, has_runs)

    before = Plan({name: replace(arm, settings=old[name]) for name, arm in plan.arms.items()})
    assert make_plan(matrix, settings, before, has_runs) == before


def test_signs_of_a_store_change_with_what_it_holds(tmp_path):
    store = make_store(tmp_path)
    first = follows.store_signs(str(store))

    assert follows.store_signs(str(store)) == first
    assert follows.store_signs(None) is None
    manifest = json.loads((store / "manifest.json").read_text())
    del manifest["checksum"]
    manifest["cases"][3]["part"] = "test"
    write_record(store / "manifest.json", manifest)
    moved = follows.store_signs(str(store))
    assert [name for name in first if first[name] != moved[name]] == ["cases"]
    manifest["preparation"]["body_margin_mm"] = 77.0
    write_record(store / "manifest.json", manifest)
    assert follows.store_signs(str(store))["preparation"] != first["preparation"]


def test_a_plan_of_the_first_version_means_what_it_meant(costs):
    settings = ConvergenceConfig(points=4, rates=(1e-3,), labels=(5,))
    plan = make_plan(arms(), settings, Plan())
    for arm in plan.arms.values():
        for name in ("stores", "total_in", "tuned_per_fold"):
            arm.settings.pop(name, None)
    long = plan.arms["scratch_long"].settings
    long |= {"budget": "seconds", "budget_arm": "mae"}

    assert make_plan(arms(), settings, plan, has_runs) == plan
    # It was tuned on subjects of other folds, and its total was counted in FLOP.
    long["budget"] = "flop"
    with pytest.raises(ConfigError, match=r"`scratch_long` .*`total_in` \(flop there, seconds now"):
        make_plan(arms(), settings, plan, has_runs)
    folds = replace(settings, folds=(0, 1))
    for arm in plan.arms.values():
        arm.settings["folds"] = [0, 1]
    with pytest.raises(ConfigError, match=r"`tuned_per_fold` \(False there, True now\)"):
        make_plan(arms(), folds, plan, has_runs)


def test_a_setting_that_an_older_version_did_not_know_has_its_default(costs):
    settings = ConvergenceConfig(points=4)
    plan = make_plan(arms(), settings, Plan())
    del plan.arms["mae"].settings["pretrain"]["optim"]["ema"]
    del plan.arms["mae"].settings["finetune"]["training"]["validate_at"]

    make_plan(arms(), settings, plan)

    plan.arms["mae"].settings["pretrain"]["optim"]["ema"] = 0.5
    with pytest.raises(ConfigError, match="`pretrain.optim.ema` \\(0.5 there, 0.0 now\\)"):
        make_plan(arms(), settings, plan, has_runs)


def test_a_setting_that_was_removed_changes_nothing_at_the_default_it_had(costs):
    settings = ConvergenceConfig(points=4)
    plan = make_plan(arms(), settings, Plan())
    contrast = plan.arms["mae"].settings["pretrain"]["objective"]["contrast"]
    contrast["centre_momentum"] = 0.9

    assert make_plan(arms(), settings, plan, has_runs) == plan

    contrast["centre_momentum"] = 0.5
    with pytest.raises(ConfigError, match="is `0.5` and is a setting that was removed") as caught:
        make_plan(arms(), settings, plan, has_runs)
    assert "`objective.contrast.centre_momentum` in `plan.json`" in str(caught.value)
    assert "only the version that made it can continue" in caught.value.remedy
    assert "arm `mae`" in caught.value.where


@pytest.mark.parametrize(("name", "is_normed"), [("simclr", True), ("byol", True), ("mae", False)])
def test_heads_of_an_older_plan_had_layer_norm(name, is_normed):
    now = to_mapping(PretrainConfig(objective=PretextConfig(name=name)))
    there = to_mapping(PretrainConfig(objective=PretextConfig(name=name)))
    del there["objective"]["contrast"]["projector_norm"]
    rest = {"stores": {}, "total_time_of": None, "finetune": None}

    found = follows.differing_settings({**rest, "pretrain": there}, {**rest, "pretrain": now})

    key = "pretrain.objective.contrast.projector_norm"
    assert found == ({key: ("layer", "batch")} if is_normed else {})


def test_more_labels_replicates_and_pre_trainings_are_welcome(costs):
    settings = ConvergenceConfig(points=4)
    plan = make_plan(arms(), settings, Plan())
    more = replace(settings, replicates=9, labels=(3,), pretraining_seeds=9)

    assert make_plan(arms(), more, plan, has_runs) == plan


def test_the_first_process_decides_an_arms_rate(tmp_path, costs):
    settle_plan(tmp_path, arms(), ConvergenceConfig(points=4), Silent())

    first = settle_rate(tmp_path, "mae", None, Rate(1e-3, {"0.001": 0.5}), Silent())
    other = settle_rate(tmp_path, "mae", 3, Rate(3e-3, {}), Silent())

    assert settle_rate(tmp_path, "mae", None, Rate(2e-3, {}), Silent()) == first
    assert read_plan(tmp_path).rates == {"mae": first, "mae fold 3": other}


ROOT = Path(__file__).parents[3]
BENCHMARKS = ROOT / "benchmarks"
LISTED = [
    *sorted((ROOT / "configs" / "benchmark").glob("*.yaml")),
    *(path for path in sorted(BENCHMARKS.rglob("*.yaml")) if section_of(path, "arms") is not None),
]


def test_the_benchmarks_of_the_repository_are_found():
    names = {path.relative_to(ROOT).as_posix() for path in LISTED}

    assert {
        "benchmarks/convergence/mouse/convergence.yaml",
        "benchmarks/ablation/patch.yaml",
        "configs/benchmark/few_labels.yaml",
    } <= names
    assert len(LISTED) >= 11


@pytest.mark.parametrize("path", LISTED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_benchmark_of_the_repository_can_be_planned(path, costs, monkeypatch):
    monkeypatch.setattr(follows, "store_signs", lambda store: None)
    settings = read_config(path, BenchmarkConfig).convergence

    matrix = read_arms(path, settings)
    plan = make_plan(matrix, settings, Plan())

    assert list(plan.arms) == [arm.name for arm in matrix]
    if path.stem in ("patch", "resolution"):
        assert any(arm.against not in (None, "scratch") for arm in matrix)


def test_ablations_of_the_same_recipes_can_share_a_folder_of_runs(costs, monkeypatch):
    """Arms of one name have the same settings: each file extends the plan of those before it."""
    monkeypatch.setattr(follows, "store_signs", lambda store: None)
    first = (BENCHMARKS / "convergence" / "hippocampus_patch4").glob("*.yaml")
    files = [*sorted(first), *sorted((BENCHMARKS / "ablation").glob("*.yaml"))]
    plans: dict[Path, Plan] = {}
    shared = []
    for path in (path for path in files if section_of(path, "arms") is not None):
        settings = read_config(path, BenchmarkConfig).convergence
        if settings.rates:  # rates belong to a folder of runs
            continue
        matrix = read_arms(path, settings)
        recipe = (path.parent / settings.pretrain).resolve()
        before = plans.get(recipe, Plan())
        shared.append({arm.name for arm in matrix} & set(before.arms))

        plans[recipe] = make_plan(matrix, settings, before, lambda arm: [f"{arm}-labels0.1-0"])

    assert len(plans) == 3  # patches of 4, of 8, and the mouse
    assert all("mae" in names for names in shared if names)
    assert sum(map(bool, shared)) == len(shared) - len(plans)
