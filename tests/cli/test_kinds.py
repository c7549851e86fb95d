"""Whose config a command takes that takes those of several."""

from __future__ import annotations

from pathlib import Path

import pytest

from mim3d.cli.kinds import with_kind
from mim3d.cli.verbs import VERBS
from mim3d.config.plan import FinetunePlanConfig, PretrainPlanConfig
from mim3d.config.tree import title
from mim3d.foundation.errors import ConfigError

PRETRAIN = "objective: {mask_ratio: 0.5}\n"
FINETUNE = "decoder: {name: half}\n"
EITHER = "encoder: {preset: tiny}\n"


def kind(line: str) -> type | None:
    return with_kind("plan", VERBS["plan"], line.split()).config


@pytest.fixture
def written(tmp_path: Path) -> Path:
    for name, text in (("a", PRETRAIN), ("b", FINETUNE), ("c", EITHER)):
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "finetune").mkdir()
    (tmp_path / "finetune" / "d.yaml").write_text(EITHER)
    return tmp_path


def test_the_sections_of_a_file_say_whose_it_is(written: Path) -> None:
    assert kind(f"{written}/a.yaml --gpu h200") is PretrainPlanConfig
    assert kind(f"{written}/b.yaml --plan.gpu h200") is FinetunePlanConfig


def test_a_setting_on_the_line_says_it_too(written: Path) -> None:
    assert kind(f"{written}/c.yaml --decoder.name light") is FinetunePlanConfig
    assert kind(f"{written}/c.yaml --objective.mask_ratio 0.5") is PretrainPlanConfig


def test_where_both_fit_the_folder_or_the_user_decides(written: Path) -> None:
    assert kind(f"{written}/finetune/d.yaml") is FinetunePlanConfig
    assert kind(f"{written}/c.yaml --verb pretrain") is PretrainPlanConfig
    assert kind(f"{written}/c.yaml --verb=finetune") is FinetunePlanConfig
    assert kind(f"{written}/c.yaml") is PretrainPlanConfig


def test_a_name_that_ships_for_one_verb_is_found_and_for_both_assumed() -> None:
    assert kind("mimmed3d_mae_btcv") is PretrainPlanConfig
    assert kind("sarcoma_ct --verb finetune") is FinetunePlanConfig
    assert kind("hippocampus") is PretrainPlanConfig
    assert kind("hippocampus --verb finetune") is FinetunePlanConfig


def test_an_unknown_verb_or_option_is_refused(written: Path) -> None:
    with pytest.raises(ConfigError, match="`--verb predict` is not one of"):
        kind(f"{written}/a.yaml --verb predict")
    with pytest.raises(ConfigError, match="`--gpuu` is not an option of `mim3d plan`"):
        kind(f"{written}/a.yaml --gpuu h200")


def test_a_file_that_fits_nothing_is_read_as_what_it_resembles(written: Path) -> None:
    (written / "e.yaml").write_text("decoder: {nam: half}\nevaluation: {}\n")

    assert kind(f"{written}/e.yaml") is FinetunePlanConfig


def test_messages_call_a_plans_config_by_its_verb() -> None:
    assert [title(k) for k in (PretrainPlanConfig, FinetunePlanConfig)] == ["pretrain", "finetune"]
