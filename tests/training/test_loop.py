"""The loop, with a tiny task and feed."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_fakes import FakeFeed, FakeTask, optim_config, training_config
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from mim3d.config.training import OptimConfig, TrainingConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import ConfigError, Interrupted, StoppedError
from mim3d.foundation.randomness import RandomStream
from mim3d.foundation.reporting import Silent
from mim3d.objectives.base import Moment, Outcome
from mim3d.training.ema import MeanWeights
from mim3d.training.loop import fit
from mim3d.training.optim import build_optimiser, schedule, set_rates, trainable
from mim3d.training.run import Run, read_status
from mim3d.training.standing import FitResult
from mim3d.training.validation import Validator


class Spoken:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)

    def progress(self, done: int, total: int, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mim3d.foundation.atomic.sync", lambda path: None)


def train(
    folder: Path,
    *,
    task: FakeTask | None = None,
    feed: FakeFeed | None = None,
    optim: OptimConfig | None = None,
    training: TrainingConfig | None = None,
    **options: Any,
) -> FitResult:
    with Run.create_or_continue(folder, {}) as run:
        return fit(
            task or FakeTask(),
            feed or FakeFeed(4),
            optim or optim_config(),
            training or training_config(),
            run,
            **{"reporter": Silent(), **options},
        )


def log(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def state(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "checkpoints" / "last" / "state.safetensors")


def written_out(
    steps: int, optim: OptimConfig, *, left_out: tuple[int, ...] = (), batch_size: int = 4
) -> tuple[FakeTask, MeanWeights]:
    """The same training without the loop: one whole batch a step, dropout off."""
    task, feed = FakeTask(dropout=0.0), FakeFeed(batch_size)
    parameters = trainable(task)
    optimiser = build_optimiser(parameters, optim)
    mean = MeanWeights(parameters, optim.ema)
    for step in range(steps):
        if step in left_out:
            continue
        set_rates(optimiser, optim.lr * schedule(step, steps, optim))
        moment = Moment(step, steps, RandomStream(0, step))
        optimiser.zero_grad()
        task(feed.batch(step, range(batch_size)), moment).loss.backward()
        if optim.clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters.values(), optim.clip)
        optimiser.step()
        mean.update()
        task.after_update(moment)
    return task, mean


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_the_loop_is_the_written_out_training(accumulation: int, tmp_path: Path) -> None:
    optim = optim_config(clip=0.5)
    task = FakeTask(dropout=0.0)

    train(
        tmp_path / "x", task=task, optim=optim, training=training_config(accumulation=accumulation)
    )

    expected, mean = written_out(12, optim)
    for name, tensor in expected.state_dict().items():
        # Micro-batches add float32 gradients in another order.
        torch.testing.assert_close(task.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)
    exported = load_file(tmp_path / "x" / "checkpoints" / "last" / "weights.safetensors")
    assert exported.keys() == task.weights().keys()
    for name, tensor in mean.tensors.items():
        torch.testing.assert_close(exported[name], tensor, rtol=1e-4, atol=1e-6)


def test_the_order_of_crops_and_their_number_in_a_part_do_not_matter(tmp_path: Path) -> None:
    digests = {
        train(
            tmp_path / f"x{accumulation}",
            task=FakeTask(dropout=0.0),
            training=training_config(accumulation=accumulation),
        ).loss
        for accumulation in (1, 2)
    }

    assert max(digests) == pytest.approx(min(digests), rel=1e-5)


def test_without_mean_weights_the_raw_ones_are_exported(tmp_path: Path) -> None:
    task = FakeTask()

    result = train(
        tmp_path / "x", task=task, optim=optim_config(ema=0.0), metadata={"encoder": "{}"}
    )

    path = result.checkpoint / "weights.safetensors"
    for name, tensor in load_file(path).items():
        assert torch.equal(tensor, task.state_dict()[name])
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"encoder": "{}"}


@pytest.mark.parametrize("place", ["voxel", "loss", "gradient"])
def test_a_step_that_is_not_finite_is_as_if_it_had_not_been(place: str, tmp_path: Path) -> None:
    class Poisoned(FakeTask):
        def forward(self, batch: CropBatch, moment: Moment) -> Outcome:
            outcome = super().forward(batch, moment)
            if moment.step == 5 and batch.crop_ids[0] == 2:
                if place == "loss":
                    return replace(outcome, loss=outcome.loss / 0)
                if place == "gradient":
                    outcome.loss.register_hook(lambda gradient: gradient * torch.nan)
            return outcome

    feed, optim, task = FakeFeed(4), optim_config(), Poisoned(dropout=0.0)
    if place == "voxel":
        feed.poison = {5: 3}
    reporter = Spoken()

    result = train(tmp_path / "x", task=task, feed=feed, optim=optim, reporter=reporter)

    expected, _ = written_out(12, optim, left_out=(5,))
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(task.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)
    assert result.skipped == 1
    assert math.isfinite(result.loss)
    (line,) = log(tmp_path / "x", "skipped")
    cases = [crop["case"] for crop in line["crops"]]
    # Micro-batches of two: a gradient alone does not tell which one it was.
    assert cases == [f"case_{i}" for i in (range(4) if place == "gradient" else (2, 3))]
    assert line["step"] == 6
    assert all(line["loss"] is not None for line in log(tmp_path / "x", "train"))
    assert reporter.warned[0].startswith("step 6 was skipped")


def test_too_many_in_a_row_stop_the_run_and_keep_the_last_good_checkpoint(tmp_path: Path) -> None:
    feed = FakeFeed(4)
    feed.poison = dict.fromkeys(range(6, 12), 0)

    with pytest.raises(StoppedError, match="3 steps in a row") as caught:
        train(tmp_path / "x", feed=feed)

    assert caught.value.exit_code == 6
    assert read_status(tmp_path / "x")["state"] == "stopped"
    assert (tmp_path / "x" / "checkpoints" / "last").resolve().name == "5"
    assert feed.is_closed
    # Corrected data: the same command goes on from step 5.
    assert train(tmp_path / "x").steps == 12


def test_a_frozen_encoder_does_not_learn_until_it_is_its_turn(tmp_path: Path) -> None:
    at = {}

    def look(task: FakeTask, moment: Moment) -> dict[str, float]:
        at[moment.step] = task.encoder[0].weight.detach().clone()
        return {"x": 0.0}

    task = FakeTask()
    validator = Validator("x", 1, look, at=(0,))

    train(
        tmp_path / "x",
        task=task,
        optim=optim_config(freeze_encoder_steps=4, ema=0.0),
        validators=[validator],
    )

    assert torch.equal(at[0], at[4])
    assert not torch.equal(at[4], at[5])
    assert all(p.requires_grad for p in task.encoder.parameters())


def test_micro_batches_and_validations_come_in_their_order(tmp_path: Path) -> None:
    task = FakeTask()
    batch = FakeFeed(4).batch(0, range(4))

    def look(task: FakeTask, moment: Moment) -> dict[str, float]:
        return {"x": float(task(batch, moment).loss)}

    result = train(
        tmp_path / "x",
        task=task,
        training=training_config(steps=5),
        validators=[Validator("every", 2, look), Validator("end", 0, look)],
    )

    expected = [(0, True)] * 2 + [(1, True)] * 2 + [(2, False)] + [(2, True)] * 2
    expected += [(3, True)] * 2 + [(4, False)] + [(4, True)] * 2 + [(5, False)] * 2
    assert task.calls == expected
    assert [line["step"] for line in log(tmp_path / "x", "validation")] == [2, 4, 5, 5]
    assert result.validation["every"] == result.validation["end"]


def test_best_points_at_the_best_validation(tmp_path: Path) -> None:
    values = {2: 0.3, 4: 0.7, 6: math.nan, 8: 0.7, 10: 0.6, 12: 0.1}

    def look(task: FakeTask, moment: Moment) -> dict[str, float]:
        return {"dice": values[moment.step], "other": -1.0}

    result = train(
        tmp_path / "x",
        validators=[Validator("dice", 2, look, best=("dice", "max"))],
        training=training_config(checkpoint_every=100),
    )

    links = {n: (tmp_path / "x" / "checkpoints" / n).resolve().name for n in ("best", "last")}
    assert links == {"best": "4", "last": "12"}
    assert (result.best, result.best_step) == (0.7, 4)
    assert log(tmp_path / "x", "validation")[2]["dice"] is None


def test_an_alarm_of_a_validator_is_a_notice_in_the_log(tmp_path: Path) -> None:
    def alarms(numbers: Mapping[str, float], moment: Moment) -> list[str]:
        return [f"{moment.step} of {moment.steps}: {numbers['x']}"] if moment.step == 4 else []

    look = Validator("x", 2, lambda task, moment: {"x": 0.5}, alarms=alarms)

    train(tmp_path / "x", validators=[look])

    notices = [(line["step"], line["text"]) for line in log(tmp_path / "x", "notice")]
    assert (4, "4 of 12: 0.5") in notices


def test_two_validators_cannot_both_choose(tmp_path: Path) -> None:
    look = Validator("x", 1, lambda task, moment: {"x": 1.0}, best=("x", "min"))

    with pytest.raises(ValueError, match="at most one"):
        train(tmp_path / "x", validators=[look, look])


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`training.batch_size` 4 does not divide into 1 proc"):
        train(tmp_path / "x", training=training_config(accumulation=3))


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


def test_the_live_line_names_step_loss_rate_speed_and_time_left(tmp_path: Path) -> None:
    reporter = Spoken()

    train(tmp_path / "x", reporter=reporter)

    assert reporter.lines[-1].startswith("step 12/12  loss ")
    assert reporter.lines[-1].endswith("0 s left")
    for word in ("  lr ", " crops/s", "  data ", " %"):
        assert word in reporter.lines[-1]


def test_another_seed_is_another_run_and_the_same_the_same(tmp_path: Path) -> None:
    digests = [
        train(tmp_path / str(i), training=training_config(seed=seed)).digest
        for i, seed in enumerate((0, 0, 1))
    ]

    assert digests[0] == digests[1] != digests[2]


def test_the_callers_generator_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()

    train(tmp_path / "x")

    assert torch.equal(torch.get_rng_state(), before)


def test_a_done_run_is_not_trained_again_and_a_trained_one_only_finished(tmp_path: Path) -> None:
    first = train(tmp_path / "x")
    (tmp_path / "x" / "status.json").unlink()
    task = FakeTask()

    again = train(tmp_path / "x", task=task)

    assert task.calls == []
    assert again.digest == first.digest
    assert (again.steps, again.loss) == (12, first.loss)
    assert Run.create_or_continue(tmp_path / "x", {}).results()["digest"] == first.digest


def test_the_end_of_a_slurm_job_is_a_checkpoint_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 30))

    with pytest.raises(Interrupted, match="the end of the SLURM job after step 1 of 12"):
        train(tmp_path / "x")

    assert read_status(tmp_path / "x")["state"] == "interrupted"
    assert (tmp_path / "x" / "checkpoints" / "last").resolve().name == "1"


def test_a_signal_in_the_last_validation_ends_the_command_and_keeps_the_work(
    tmp_path: Path,
) -> None:
    def look(task: FakeTask, moment: Moment) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return {"x": 1.0}

    with pytest.raises(Interrupted, match="SIGTERM after step 12 of 12"):
        train(tmp_path / "x", validators=[Validator("x", 0, look)])

    task = FakeTask()
    again = Validator("x", 0, lambda task, moment: {"x": 1.0})
    result = train(tmp_path / "x", task=task, validators=[again])
    assert task.calls == []
    assert result.validation == {"x": {"x": 1.0}}


def test_a_second_ctrl_c_leaves_the_folder_as_it_is(tmp_path: Path) -> None:
    class Impatient(FakeTask):
        def forward(self, batch: CropBatch, moment: Moment) -> Outcome:
            if moment.step == 7:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            return super().forward(batch, moment)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "x", task=Impatient())

    assert read_status(tmp_path / "x")["state"] == "running"
    assert (tmp_path / "x" / "checkpoints" / "last").resolve().name == "5"
    assert train(tmp_path / "x").steps == 12


def test_a_full_disk_keeps_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith("checkpoints/10"):
            raise OSError(28, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(Exception, match="no room to write"):
        patch.setattr("mim3d.foundation.atomic.os.replace", full)
        train(tmp_path / "x")

    assert read_status(tmp_path / "x")["state"] == "failed"
    assert (tmp_path / "x" / "checkpoints" / "last").resolve().name == "5"
    assert train(tmp_path / "x").steps == 12


def test_compiled_parts_give_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    # The compiler takes half a minute; that it is called on the parts, and on no other run, counts.
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__)
    )

    with_compiler = train(tmp_path / "a", training=training_config(compile=True))

    assert compiled == ["Sequential", "Linear", "Linear"]
    assert with_compiler.digest == train(tmp_path / "b").digest
    assert len(compiled) == 3


@pytest.fixture
def bf16_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mim3d.training.fabric._cpu_multiplies_bf16", lambda: True)


@pytest.mark.usefixtures("bf16_is_there")
def test_bf16_is_the_default_where_there_is_hardware_for_it(tmp_path: Path) -> None:
    auto = train(tmp_path / "a", training=training_config(precision="auto"))
    bf16 = train(tmp_path / "b", training=training_config(precision="bf16"))
    fp32 = train(tmp_path / "c", training=training_config(precision="fp32"))

    assert auto.digest == bf16.digest != fp32.digest
    assert all(t.dtype != torch.bfloat16 for t in state(tmp_path / "a").values())


def test_a_signal_in_a_validation_leaves_it_at_once_and_all_its_looks_come_again(
    tmp_path: Path,
) -> None:
    """Of two validators the first was through: its line must not stand in the log twice."""
    looks: list[str] = []

    def first(task: FakeTask, moment: Moment) -> dict[str, float]:
        looks.append("first")
        return {"x": float(moment.step)}

    def second(task: FakeTask, moment: Moment) -> dict[str, float]:
        looks.append("second")
        if looks.count("second") == 1:
            signal.raise_signal(signal.SIGUSR1)
            looks.append("went on")
        return {"y": 1.0}

    validators = [Validator("first", 4, first, best=("x", "max")), Validator("second", 4, second)]
    with pytest.raises(Interrupted, match="SIGUSR1 after step 4 of 12"):
        train(tmp_path / "x", validators=validators)
    assert log(tmp_path / "x", "validation") == []
    result = train(tmp_path / "x", validators=validators)

    assert looks[:4] == ["first", "second", "first", "second"]
    assert "went on" not in looks
    assert [line["step"] for line in log(tmp_path / "x", "validation")] == [4, 4, 8, 8, 12, 12]
    assert result.best == 12.0
    assert result.digest == train(tmp_path / "y").digest


def test_an_encoder_that_is_frozen_for_the_whole_run_is_told_of(tmp_path: Path) -> None:
    train(tmp_path / "x", optim=optim_config(freeze_encoder_steps=12))

    assert "the encoder does not learn" in log(tmp_path / "x", "notice")[0]["text"]


def test_a_time_to_wait_for_others_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`training.collective_timeout_seconds` is 0"):
        train(tmp_path / "x", training=training_config(collective_timeout_seconds=0.0))
