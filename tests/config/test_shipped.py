"""Configs are found by path and by name, and every one that ships is read."""

from __future__ import annotations

import pytest

from mim3d.config.reading import read_config
from mim3d.config.shipped import locate, shipped_folder, shipped_names
from mim3d.config.task import DecoderConfig
from mim3d.config.verbs import (
    BenchmarkConfig,
    EvaluateConfig,
    FinetuneConfig,
    PredictConfig,
    PrepareConfig,
    PretrainConfig,
)
from mim3d.foundation.errors import ConfigError

KINDS = {
    "prepare": PrepareConfig,
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "predict": PredictConfig,
    "evaluate": EvaluateConfig,
    "benchmark": BenchmarkConfig,
}
SHIPPED = [(verb, name) for verb in KINDS for name in shipped_names(verb)]


@pytest.mark.parametrize(("verb", "name"), SHIPPED)
def test_every_shipped_config_is_read_and_changes_something(verb, name):
    assert read_config(name, KINDS[verb]) != KINDS[verb]()


def test_every_yaml_file_that_ships_belongs_to_a_verb():
    files = {path.relative_to(shipped_folder()) for path in shipped_folder().rglob("*.yaml")}

    assert {path.parent.name for path in files} <= {*KINDS, "splits"}


@pytest.mark.parametrize(
    "name", ["mimmed3d_btcv", "mimmed3d_brats21", "selfmedmae_btcv", "selfmedmae_msdbrats"]
)
def test_the_papers_segmenters_are_monais_network(name):
    """Tap for tap, and without the linear path that fine-tunings have where nothing is said."""
    published = DecoderConfig("unetr", taps=(4, 7, 10, 12), tap_norm="none", direct="none")

    assert read_config(name, FinetuneConfig).decoder == published
    assert FinetuneConfig().decoder.direct == "linear"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in place of the shipped one, with one config."""
    (tmp_path / "configs" / "pretrain").mkdir(parents=True)
    (tmp_path / "configs" / "pretrain" / "hippocampus.yaml").write_text("init: shipped")
    monkeypatch.setattr("mim3d.config.shipped.shipped_folder", lambda: tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_bare_name_is_the_shipped_config(folder):
    assert read_config("hippocampus", PretrainConfig).init == "shipped"


def test_a_folder_of_that_name_is_not_in_the_way(folder):
    (folder / "hippocampus").mkdir()

    assert read_config("hippocampus", PretrainConfig).init == "shipped"


def test_a_path_is_taken_as_it_stands(folder):
    (folder / "hippocampus.yaml").write_text("init: own")

    assert read_config("hippocampus.yaml", PretrainConfig).init == "own"
    assert read_config(folder / "hippocampus.yaml", PretrainConfig).init == "own"


@pytest.mark.parametrize(
    ("typed", "message", "remedy"),
    [
        (
            "hipocampus",
            "no config `hipocampus` for `mim3d pretrain`",
            "did you mean `hippocampus`?",
        ),
        ("zzz", "no config `zzz` for `mim3d pretrain`", "by name there are: hippocampus"),
        ("zzz.yaml", "no config file `zzz.yaml`", None),
        ("../hippocampus", "no config file `../hippocampus`", "did you mean `hippocampus`?"),
        ("..", "no config `..`", "by name there are: hippocampus"),
    ],
)
def test_what_is_not_found_names_the_nearest(folder, typed, message, remedy):
    with pytest.raises(ConfigError) as caught:
        locate(typed, "pretrain")

    assert message in str(caught.value)
    assert caught.value.remedy == remedy
