"""Dotted keys and the names that were meant."""

from __future__ import annotations

import pytest

from mim3d.config.tree import nearest, settings, title, value_of
from mim3d.config.verbs import FinetuneConfig, PrepareConfig, PretrainConfig


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("optim.weight_decy", "optim.weight_decay"),
        ("lr", "optim.lr"),
        ("optm.lr", "optim.lr"),
        ("crop", "data.crop_size"),
        ("encoder.crop_size", "data.crop_size"),
        ("data.crop-size", "data.crop_size"),
        ("training.sed", "training.seed"),
        ("qqq.zzz", None),
        ("x" * 100_000, None),
    ],
)
def test_a_misspelt_key_finds_the_key_that_was_meant(typed, meant):
    assert nearest(typed, FinetuneConfig) == meant


def test_of_two_keys_with_the_same_last_part_the_nearer_one_is_offered():
    assert nearest("prepar.window_hu", PrepareConfig) == "prepare.window_hu"
    assert nearest("data.window", FinetuneConfig) == "inference.window"


def test_settings_are_all_fields_by_dotted_key():
    keys = settings(PretrainConfig)

    assert {"init", "optim.lr", "encoder.patch", "training.seed"} <= keys.keys()
    assert "optim" not in keys
    assert keys["data.store"] == (str | None)


def test_a_dotted_key_gives_its_value_and_a_class_its_title():
    assert value_of(FinetuneConfig(), "data.placement") == "label"
    assert title(FinetuneConfig) == "finetune"


def test_a_misspelt_section_is_answered_with_the_section() -> None:
    assert nearest("trainng", PretrainConfig) == "training"
    assert nearest("encodr", PretrainConfig) == "encoder"
