"""What a training tells while it runs: log, notices, live line, pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from loop_fakes import FakeTask, optim_config, training_config
from loop_runs import Spoken, log, train

from mim3d.data.batch import CropBatch
from mim3d.objectives.base import Moment, Outcome
from mim3d.training.optim import schedule

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def test_log_has_means_rate_and_speed_every_so_many_steps(tmp_path: Path) -> None:
    optim = optim_config()

    result = train(tmp_path / "x", optim=optim, training=training_config(log_every=5))

    lines = log(tmp_path / "x", "train")
    assert [line["step"] for line in lines] == [5, 10, 12]
    rates = [optim.lr * schedule(step - 1, 12, optim) for step in (5, 10, 12)]
    assert [line["lr"] for line in lines] == pytest.approx(rates)
    assert {"loss", "drift", "mean_predictor", "gradient_norm", "data_share"} <= lines[0].keys()
    assert lines[0]["crops_per_second"] > 0
    assert result.loss == lines[-1]["loss"]


def test_the_live_line_names_step_loss_rate_speed_and_time_left(tmp_path: Path) -> None:
    reporter = Spoken()

    train(tmp_path / "x", reporter=reporter)

    assert reporter.lines[-1].startswith("step 12/12  loss ")
    assert reporter.lines[-1].endswith("0 s left")
    for word in ("  lr ", " crops/s", "  data ", " %"):
        assert word in reporter.lines[-1]


def test_a_run_that_does_not_learn_is_told_of(tmp_path: Path) -> None:
    reporter = Spoken()

    train(
        tmp_path / "x",
        optim=optim_config(lr=0.0, ema=0.0, warmup_steps=0),
        training=training_config(steps=120),
        reporter=reporter,
    )

    assert reporter.warned[0] == "this run does not learn: `optim.lr` is 0"
    assert "does not learn: at step 20" in reporter.warned[1]
    assert [line["step"] for line in log(tmp_path / "x", "notice")] == [0, 20, 24]


def test_a_run_that_guesses_or_knows_means_alone_is_told_of(tmp_path: Path) -> None:
    class Guesses(FakeTask):
        def forward(self, batch: CropBatch, moment: Moment) -> Outcome:
            outcome = super().forward(batch, moment)
            level = outcome.loss.detach()
            known = {"chance": level, "shape_loss": level, "patch_mean_predictor": level}
            return replace(outcome, logs={**known, "mean_predictor": level + 1})

    train(
        tmp_path / "x",
        task=Guesses(),
        optim=optim_config(warmup_steps=0),
        training=training_config(steps=80),
    )

    said = [(line["step"], line["text"]) for line in log(tmp_path / "x", "notice")]
    assert [step for step, text in said if "of guessing" in text] == [20, 40, 80]
    assert [step for step, text in said if "mean of each patch" in text] == [80]
    assert len(said) == 4
    assert "chance" in log(tmp_path / "x", "train")[-1]


def test_an_encoder_that_is_frozen_for_the_whole_run_is_told_of(tmp_path: Path) -> None:
    train(tmp_path / "x", optim=optim_config(freeze_encoder_steps=12))

    assert "the encoder does not learn" in log(tmp_path / "x", "notice")[0]["text"]


def test_pictures_are_asked_for_on_their_steps_and_handed_on(tmp_path: Path) -> None:
    handed: list[tuple[int, tuple[int, ...]]] = []

    train(
        tmp_path / "x",
        training=training_config(pictures_every=5),
        on_pictures=lambda step, pictures: handed.append((step, tuple(pictures["original"].shape))),
    )

    # Of the first micro-batch: two crops.
    assert handed == [(0, (2, 11)), (5, (2, 11)), (10, (2, 11)), (11, (2, 11))]


def test_asking_for_pictures_changes_nothing(tmp_path: Path) -> None:
    with_pictures = train(
        tmp_path / "a",
        training=training_config(pictures_every=2),
        on_pictures=lambda step, pictures: None,
    )

    assert with_pictures.digest == train(tmp_path / "b").digest
