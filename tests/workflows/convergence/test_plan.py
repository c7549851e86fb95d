"""Equal budgets against counts by hand, step grids, and a plan that is written once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mim3d.config.sections import DataConfig, EncoderConfig, PretextConfig, TrainingConfig
from mim3d.config.verbs import ConvergenceConfig, FinetuneConfig, PretrainConfig
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.reporting import Silent
from mim3d.workflows.convergence import plan as planning
from mim3d.workflows.convergence.arms import Arm
from mim3d.workflows.convergence.cost import StepCost, step_cost
from mim3d.workflows.convergence.plan import (
    Cost,
    Plan,
    Rate,
    make_plan,
    matched_steps,
    read_plan,
    settle_plan,
    settle_rate,
    step_grid,
)

SIDE, EDGE, WIDTH, DEPTH = 32, 8, 48, 2
TOKENS, VISIBLE = 64, 16
W = 24


def pretraining(**training):
    return PretrainConfig(
        data=DataConfig(crop_size=(SIDE,) * 3),
        encoder=EncoderConfig(width=WIDTH, depth=DEPTH, heads=3, patch=(EDGE,) * 3),
        objective=PretextConfig(
            decoder="cross", decode_fraction=0.25, decoder_width=W, decoder_depth=2,
            decoder_heads=3,
        ),
        training=TrainingConfig(**{"precision": "fp32", "device": "cpu", "threads": 1, **training}),
    )  # fmt: skip


def by_hand(crops):
    """FLOP of a CrossMAE step: three forwards, but nothing asks for the voxels' gradient."""
    embedding = 2 * VISIBLE * EDGE**3 * WIDTH
    blocks = DEPTH * 2 * (12 * VISIBLE * WIDTH**2 + 2 * VISIBLE**2 * WIDTH)
    asked = 12  # a quarter of the 48 masked tokens
    decoder = 2 * (2 * asked * 10 * W**2 + 4 * VISIBLE * W**2 + 4 * asked * VISIBLE * W)
    ends = 2 * VISIBLE * WIDTH * W + 2 * asked * W * EDGE**3
    return crops * (3 * (embedding + blocks + decoder + ends) - embedding)


def test_a_steps_flop_are_those_counted_by_hand():
    assert step_cost(pretraining(batch_size=4)).flop == by_hand(4)


def test_accumulation_changes_memory_and_no_flop():
    whole, parts = (
        step_cost(pretraining(batch_size=4, accumulation=count)).flop for count in (1, 2)
    )

    assert parts == whole


def test_a_teacher_without_gradient_counts_once():
    objective = replace(pretraining().objective, name="byol")
    views = step_cost(replace(pretraining(batch_size=2), objective=objective)).flop

    # Student: two views of all tokens, forward and backward (three forwards, less the voxels'
    # gradient); teacher: one forward of the same. Heads come on top and are small beside them.
    forward = DEPTH * 2 * (12 * TOKENS * WIDTH**2 + 2 * TOKENS**2 * WIDTH)
    embedding = 2 * TOKENS * EDGE**3 * WIDTH
    least = 2 * 2 * (3 * (forward + embedding) - embedding + forward + embedding)
    assert least < views < 1.5 * least


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
    with pytest.raises(ConfigError, match="`convergence.points` is 1"):
        step_grid(100, 1)


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
    # 1,500 steps of 2 GFLOP are 1,000 of the fine-tuning's 3.
    assert plan.arms["scratch_long"].finetune.steps == 200 + 1000
    assert plan.arms["scratch_long"].grid[-1] == 1200
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


@pytest.mark.parametrize(
    ("change", "key"),
    [({"points": 5}, "points"), ({"budget": "steps"}, "budget"), ({"rates": (1e-3,)}, "rates"),
     ({"pretraining_seeds": 9}, "pretraining_seeds"), ({"folds": (1,)}, "folds")],
)  # fmt: skip
def test_what_finished_runs_follow_from_must_not_change(costs, change, key):
    settings = ConvergenceConfig(points=4)
    plan = make_plan(arms(), settings, Plan())

    with pytest.raises(ConfigError, match=f"was planned with other settings: .*`{key}`"):
        make_plan(arms(), replace(settings, **change), plan)


def test_a_setting_that_an_older_version_did_not_know_has_its_default(costs):
    settings = ConvergenceConfig(points=4)
    plan = make_plan(arms(), settings, Plan())
    del plan.arms["mae"].settings["pretrain"]["optim"]["ema"]
    del plan.arms["mae"].settings["finetune"]["training"]["validate_at"]

    make_plan(arms(), settings, plan)

    plan.arms["mae"].settings["pretrain"]["optim"]["ema"] = 0.5
    with pytest.raises(ConfigError, match="`pretrain.optim.ema` \\(0.5 there, 0.0 now\\)"):
        make_plan(arms(), settings, plan)


def test_more_labels_and_replicates_are_welcome(costs):
    settings = ConvergenceConfig(points=4)
    plan = make_plan(arms(), settings, Plan())

    assert make_plan(arms(), replace(settings, replicates=9, labels=(3,)), plan) == plan


def test_the_first_process_decides_an_arms_rate(tmp_path, costs):
    settle_plan(tmp_path, arms(), ConvergenceConfig(points=4), Silent())

    first = settle_rate(tmp_path, "mae", Rate(1e-3, {"0.001": 0.5}))

    assert settle_rate(tmp_path, "mae", Rate(2e-3, {})) == first
    assert read_plan(tmp_path).rates == {"mae": first}
