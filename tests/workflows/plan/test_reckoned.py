"""What nobody knows beforehand is planned as the most it can need, and so is every patch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from plans import DATA, MASKED, TINY, facts

from mim3d.config.data import Triple
from mim3d.config.objective import GuideConfig
from mim3d.config.plan import FinetunePlanConfig, PlanConfig, PretrainPlanConfig
from mim3d.config.task import DecoderConfig, SegmentationConfig
from mim3d.config.training import TrainingConfig
from mim3d.foundation.errors import ConfigError
from mim3d.tokens.masking import count


@pytest.mark.parametrize("loss", ["dice_focal", "tversky", "generalised_dice"])
def test_a_loss_that_looks_at_voxels_is_planned_with_the_librarys_own(loss: Any) -> None:
    config = FinetunePlanConfig(
        data=DATA,
        encoder=TINY,
        decoder=DecoderConfig(name="light", feature_size=4),
        objective=SegmentationConfig(loss=loss),
        training=TrainingConfig(batch_size=2),
        plan=PlanConfig(gpu="a100", classes=3, volumes=5),
    )
    own = replace(config, objective=SegmentationConfig())

    found = facts(config)

    assert found["flop"] == facts(own)["flop"]
    assert found["assumptions"] == [
        f"loss `dice_ce` in place of `{loss}`, which costs about as much"
    ]
    assert facts(own)["assumptions"] == []


def test_several_sizes_and_dropped_air_are_planned_as_the_most_they_can_need() -> None:
    several = replace(DATA, crop_size=(8, 8, 8), crop_sizes=((8, 16, 8), DATA.crop_size))
    objective = replace(MASKED.objective, drop_air=True)

    found = facts(replace(MASKED, data=several, objective=objective))

    assert found["flop"] == facts()["flop"]
    assert found["tokens"] == facts()["tokens"]
    assert found["assumptions"] == [
        "every crop has the largest of `data.crop_sizes`",
        "`objective.drop_air` drops nothing",
    ]


def test_masks_of_many_kinds_are_planned_as_the_most_they_can_need() -> None:
    ratio = MASKED.objective.mask_ratio
    assert isinstance(ratio, float)
    many = replace(
        MASKED.objective, masking=("tube", "block"), mask_ratio=(ratio, 0.95),
        guide=GuideConfig(by="body"),
    )  # fmt: skip

    found = facts(replace(MASKED, objective=many))

    assert found["flop"] == facts()["flop"]
    assert found["tokens"] == facts()["tokens"]
    assert found["assumptions"] == [
        f"every step has the lowest mask ratio, {ratio:g}",
        "guided masks cost nothing",
    ]


def test_dropped_tokens_are_not_paid_for() -> None:
    some = replace(MASKED.objective, mask_ratio=0.45, drop_ratio=0.3)

    found, dense = (facts(replace(MASKED, objective=one)) for one in
                    (some, replace(some, drop_ratio=0.0)))  # fmt: skip

    n = found["tokens"]["all"]
    assert found["tokens"]["visible"] == n - count(0.45, n) - count(0.3, n)
    assert found["tokens"]["decoded"] == dense["tokens"]["decoded"] == count(0.45, n)
    assert found["flop"]["tflop_per_step"] < dense["flop"]["tflop_per_step"]


def test_masks_that_no_run_would_take_are_not_planned() -> None:
    with pytest.raises(ConfigError, match="leave no token visible"):
        facts(replace(MASKED, objective=replace(MASKED.objective, drop_ratio=0.5)))


PATCHES = ((4, 8, 4), (8, 8, 4), (8, 16, 12))


def with_patches(*patches: Triple) -> PretrainPlanConfig:
    return replace(MASKED, objective=replace(MASKED.objective, patches=patches))


def test_patches_drawn_per_step_are_planned_by_their_mean_and_the_worst_ones_memory() -> None:
    """Of grids 4 x 4 x 6, 2 x 4 x 6 and 2 x 2 x 2, each planned alone."""
    alone = [facts(with_patches(patch)) for patch in PATCHES]

    found = facts(with_patches(*PATCHES))

    for part, name in (("flop", "gflop_per_crop"), ("flop", "tflop_per_step")):
        mean = sum(one[part][name] for one in alone) / 3
        assert found[part][name] == pytest.approx(mean, rel=1e-12)
    assert found["tokens"] == {"all": 51, "visible": 13, "decoded": 38}  # of 152, 38 and 114
    assert found["memory"] == max((one["memory"] for one in alone), key=lambda m: m["needed_gb"])
    times = [one["time"]["compute_seconds"] for one in alone]
    assert found["time"]["compute_seconds"] == pytest.approx(sum(times) / 3, rel=1e-6)
    assert len({round(second, 9) for second in times}) > 1
    assert any("means over `objective.patches`" in said for said in found["assumptions"])
    assert found["parameters"] == facts()["parameters"]


def test_a_patch_that_stands_twice_counts_twice() -> None:
    one, other = (facts(with_patches(patch))["flop"]["gflop_per_crop"] for patch in PATCHES[:2])

    found = facts(with_patches(PATCHES[0], PATCHES[1], PATCHES[0]))

    assert found["flop"]["gflop_per_crop"] == pytest.approx((2 * one + other) / 3, rel=1e-12)


def test_the_stored_patch_alone_costs_what_none_costs() -> None:
    found, plain = facts(with_patches(TINY.patch)), facts()

    for part in ("flop", "tokens", "memory", "time"):
        assert found[part] == plain[part]


def test_a_plan_with_patches_that_measures_corrects_by_a_real_step_of_one() -> None:
    found = facts(with_patches(*PATCHES), gpu="cpu", measure=True)

    assert found["time"]["measured"]["seconds"] > 0
    assert found["time"]["correction"] > 0


def test_a_drawn_patch_as_large_as_the_crop_is_refused() -> None:
    with pytest.raises(ConfigError, match="16 x 32 x 24 in `objective.patches` leaves 1 token"):
        facts(with_patches(TINY.patch, DATA.crop_size))
