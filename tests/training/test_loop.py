"""The loop against the same training written out, with a tiny task and feed."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_fakes import FakeFeed, FakeTask, optim_config, training_config
from loop_runs import Spoken, log, train
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from mim3d.config.training import OptimConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import ConfigError, StoppedError
from mim3d.foundation.randomness import RandomStream
from mim3d.objectives.base import Moment, Outcome
from mim3d.training.ema import MeanWeights
from mim3d.training.loop import check_numbers
from mim3d.training.optim import build_optimiser, schedule, set_rates, trainable
from mim3d.training.run import read_status
from mim3d.training.validation import Validator

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


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


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`training.batch_size` 4 does not divide into 1 proc"):
        train(tmp_path / "x", training=training_config(accumulation=3))


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("optim.clip", -1.0, "null"),  # it would turn the gradient round
        ("optim.clip", 0.0, "null"),
        ("optim.clip", float("nan"), "null"),
        ("optim.betas", (1.5, 0.9), "0.9,0.95"),
        ("optim.betas", (0.9, 1.0), "0.9,0.95"),
        ("training.threads", 0, "null"),
    ],
)
def test_numbers_with_which_nothing_trains_are_refused_by_name(
    key: str, value: Any, remedy: str
) -> None:
    section, name = key.split(".")
    given = {section: {name: value}}

    with pytest.raises(ConfigError, match=rf"`{key}` is {re.escape(str(value))}") as caught:
        check_numbers(
            optim_config(**given.get("optim", {})), training_config(**given.get("training", {}))
        )

    assert remedy in str(caught.value.remedy)
    check_numbers(optim_config(clip=None, betas=(0.0, 0.999)), training_config(threads=None))


def test_a_time_to_wait_for_others_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`training.collective_timeout_seconds` is 0"):
        train(tmp_path / "x", training=training_config(collective_timeout_seconds=0.0))
