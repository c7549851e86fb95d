"""Settings that are gone: what was stored with one is read, or a sentence says why not."""

from __future__ import annotations

import logging

import pytest

from mim3d.config.reading import from_mapping, read_config
from mim3d.config.removed import REMOVED, is_dropped
from mim3d.config.tree import settings
from mim3d.config.verbs import FinetuneConfig, PretrainConfig
from mim3d.config.writing import dump, to_mapping
from mim3d.foundation.errors import ConfigError
from mim3d.training.run import Run

KEY = "objective.contrast.centre_momentum"
KINDS = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}


def stored(value: float) -> dict:
    """A pre-training's config as an older version stored it."""
    mapping = to_mapping(PretrainConfig())
    mapping["objective"]["contrast"]["centre_momentum"] = value
    return mapping


def test_what_is_listed_as_removed_is_no_setting_and_its_section_is_there() -> None:
    for verb, table in REMOVED.items():
        known = settings(KINDS[verb])
        for key in table:
            section = key.rpartition(".")[0]
            assert key not in known
            assert not any(other.startswith(f"{key}.") for other in known)
            assert not section or any(other.startswith(f"{section}.") for other in known)


def test_a_stored_config_is_read_without_it_and_that_is_said(tmp_path, caplog) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump(stored(0.9)))

    with caplog.at_level(logging.INFO, logger="mim3d"):
        assert read_config(path, PretrainConfig) == PretrainConfig()
        assert from_mapping(stored(0.9), PretrainConfig, where="`plan.json`") == PretrainConfig()

    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert f"`{KEY}` in `{path}` line" in said[0]
    assert (
        said[1] == f"`{KEY}` in `plan.json` is left out: it was removed, and stands at its default"
    )


def test_another_value_is_an_error_that_names_it_and_what_came_in_its_place(tmp_path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump(stored(0.5)))

    for read in (
        lambda: read_config(path, PretrainConfig),
        lambda: from_mapping(stored(0.5), PretrainConfig, where="`plan.json`"),
    ):
        with pytest.raises(
            ConfigError, match="is `0.5` and is a setting that was removed"
        ) as found:
            read()
        assert found.value.code == "removed-key"
        assert "projector_norm" in str(found.value)
        assert "did you mean" not in str(found.value.remedy)


def test_nobody_can_ask_for_it_anew_whatever_the_value() -> None:
    with pytest.raises(ConfigError, match=f"`{KEY}` is a setting that was removed"):
        read_config(None, PretrainConfig, {KEY: "0.9"})


def test_where_it_never_was_it_is_unknown_as_ever() -> None:
    with pytest.raises(ConfigError, match="is not a setting of"):
        read_config(None, FinetuneConfig, {KEY: "0.9"})
    assert not is_dropped("optim.lr", 1e-3)
    assert not is_dropped(KEY, 0.5, "finetune")


def test_a_run_of_an_older_version_goes_on_where_it_stood_at_its_default(tmp_path) -> None:
    for name, value in (("one", 0.9), ("two", 0.5)):
        with Run.create_or_continue(tmp_path / name, stored(value)):
            pass
    now = to_mapping(PretrainConfig())

    with Run.create_or_continue(tmp_path / "one", now) as run:
        assert not run.is_done

    with pytest.raises(ConfigError, match="is `0.5` and is a setting that was removed"):
        Run.create_or_continue(tmp_path / "two", now)


# A section that never had an effect


def with_evaluation(**said) -> dict:
    """A fine-tuning's config as an older version stored it."""
    default = {"nsd_tolerance_mm": 1.0, "resamples": 2000, "confidence": 0.95,
               "allow_missing": False}  # fmt: skip
    return {**to_mapping(FinetuneConfig()), "evaluation": {**default, **said}}


@pytest.mark.parametrize(
    ("said", "level"), [({}, logging.INFO), ({"nsd_tolerance_mm": 0.15}, logging.WARNING)]
)
def test_a_section_without_effect_is_left_out_whatever_it_says(tmp_path, caplog, said, level):
    path = tmp_path / "config.yaml"
    path.write_text(dump(with_evaluation(**said)))

    with caplog.at_level(logging.INFO, logger="mim3d"):
        assert read_config(path, FinetuneConfig) == FinetuneConfig()
        found = from_mapping(with_evaluation(**said), FinetuneConfig, where="`plan.json`")
        with Run.create_or_continue(tmp_path / "run", with_evaluation(**said)):
            pass
        with Run.create_or_continue(tmp_path / "run", to_mapping(FinetuneConfig())) as run:
            assert not run.is_done

    assert found == FinetuneConfig()
    assert max(record.levelno for record in caplog.records) == level
    assert f"`evaluation` in `{path}` line" in caplog.records[0].getMessage()


def test_who_asks_a_fine_tuning_for_it_is_told_who_takes_it():
    with pytest.raises(ConfigError, match="`mim3d evaluate` takes `evaluation.*`") as caught:
        read_config(None, FinetuneConfig, {"evaluation.nsd_tolerance_mm": "0.15"})

    assert caught.value.remedy == "leave it out of a config"
    with pytest.raises(ConfigError, match="is not a setting of"):
        read_config(None, FinetuneConfig, {"evaluation.nsd_tolerance": "0.15"})
