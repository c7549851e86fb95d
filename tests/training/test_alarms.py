"""Not-a-number, and runs that learn nothing."""

from __future__ import annotations

import math

import pytest
import torch
from loop_fakes import FakeFeed, FakeTask, optim_config

from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import StoppedError
from mim3d.training.alarms import (
    Guessing,
    MeanPredictor,
    NonFinite,
    PatchMeans,
    SameAnswer,
    Standstill,
    is_constant,
    is_guessing,
)


def test_so_many_skipped_steps_in_a_row_stop_the_run() -> None:
    count = NonFinite(3, 1000)
    for step, is_finite in enumerate((False, False, True, False, False)):
        count.note(is_finite=is_finite, step=step)

    with pytest.raises(StoppedError, match="3 steps in a row, 5 in all, the last at step 6"):
        count.note(is_finite=False, step=5)


def test_more_than_one_in_a_hundred_stop_the_run() -> None:
    count = NonFinite(10, 2000)
    for step in range(20):
        count.note(is_finite=False, step=2 * step)
        count.note(is_finite=True, step=2 * step + 1)

    with pytest.raises(StoppedError, match="21 in all"):
        count.note(is_finite=False, step=40)


def logs(loss: float, mean: float) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(loss), "mean_predictor": torch.tensor(mean)}


def test_a_run_at_the_mean_is_told_of_at_1_5_and_20_percent() -> None:
    alarm = MeanPredictor(10_000, 50)

    said = [s for s in range(1, 10_001) if alarm.note(logs(1.0, 1.0), s) is not None]

    assert said == [100, 500, 2000]


def test_nothing_is_expected_before_the_warm_up_ends() -> None:
    assert MeanPredictor(10_000, 700).looks == [720, 2000]
    assert MeanPredictor(50, 0).looks == [20]
    # A warm-up that is longer than the run: it is asked at its end.
    assert MeanPredictor(50, 100).looks == [50]
    assert MeanPredictor(19, 0).looks == []


def test_the_sentence_holds_both_numbers_over_the_last_twenty_steps() -> None:
    alarm = MeanPredictor(10_000, 0)
    for step in range(1, 81):
        alarm.note(logs(9.0, 1.0), step)
    for step in range(81, 100):
        alarm.note(logs(2.5, 2.0), step)

    text = alarm.note(logs(2.5, 2.0), 100)

    assert text is not None
    assert "at step 100 the loss 2.5 is not below 2, that of predicting the mean" in text


def test_a_run_that_learns_and_a_task_that_does_not_know_say_nothing() -> None:
    alarm = MeanPredictor(100, 0)

    said = [alarm.note(logs(0.9, 1.0), step) for step in range(1, 101)]
    silent = [alarm.note({"loss": torch.tensor(9.0)}, step) for step in range(1, 101)]

    assert {*said, *silent} == {None}


def test_a_loss_that_is_not_a_number_is_no_success() -> None:
    alarm = MeanPredictor(100, 0)

    texts = [alarm.note(logs(math.nan, 1.0), step) for step in range(1, 101)]

    assert any(texts)


def shapes(shape: float, level: float, loss: float = 9.0) -> dict[str, torch.Tensor]:
    values = {"loss": loss, "shape_loss": shape, "patch_mean_predictor": level}
    return {name: torch.tensor(value) for name, value in values.items()}


def said_by(alarm: MeanPredictor | PatchMeans | Guessing, each: dict, steps: int) -> dict[int, str]:
    texts = {step: alarm.note(each, step) for step in range(1, steps + 1)}
    return {step: text for step, text in texts.items() if text is not None}


def test_a_run_that_knows_the_mean_of_each_patch_only_is_told_of_at_20_percent() -> None:
    said = said_by(PatchMeans(1000, 0), shapes(0.5, 0.5), 1000)

    assert list(said) == [200]
    assert "its loss would be 0.5 if it were told those means" in said[200]
    assert "the means alone give 0.5" in said[200]


def test_a_run_that_knows_shapes_is_left_alone_however_high_its_loss() -> None:
    assert not said_by(PatchMeans(1000, 0), shapes(0.49, 0.5, loss=9.0), 1000)
    assert said_by(PatchMeans(1000, 0), shapes(0.51, 0.5, loss=0.1), 1000)
    assert not said_by(PatchMeans(1000, 0), logs(9.0, 1.0), 1000)


def test_shapes_are_expected_150_steps_after_the_warm_up() -> None:
    assert list(said_by(PatchMeans(200, 30), shapes(1.0, 0.5), 200)) == [180]
    assert list(said_by(PatchMeans(90, 0), shapes(1.0, 0.5), 90)) == [90]
    assert not said_by(PatchMeans(19, 0), shapes(1.0, 0.5), 19)


def guesses(loss: float, chance: float) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(loss), "chance": torch.tensor(chance)}


def test_a_run_that_guesses_is_told_of_after_a_quarter_a_half_and_at_its_end() -> None:
    alarm = Guessing(1000, 50)

    said = said_by(alarm, guesses(3.10, math.log(23)), 1000)  # 1.1 % below ln 23 = 3.1355

    assert list(said) == [250, 500, 1000]
    assert "at step 250 the loss 3.1 is not 2 % below 3.135, that of guessing" in said[250]


@pytest.mark.parametrize(
    ("loss", "chance", "guessing"),
    [(0.981, 1.0, True), (0.979, 1.0, False), (5.0, 1.0, True), (0.0, 0.0, True),
     (math.nan, 1.0, True)],
)  # fmt: skip
def test_guessing_is_a_loss_that_is_not_two_percent_below(
    loss: float, chance: float, guessing: bool
) -> None:
    assert is_guessing(loss, chance) is guessing


def test_a_run_that_no_longer_guesses_is_told_of_no_more() -> None:
    alarm = Guessing(400, 0)

    said = [step for step in range(1, 401)
            if alarm.note(guesses(2.0 if step > 180 else 3.1, 3.1), step)]  # fmt: skip

    assert said == [100]


def test_a_task_without_chance_says_nothing_of_guessing() -> None:
    assert not said_by(Guessing(400, 0), logs(9.0, 1.0), 400)


def answers(loss: float, same: float) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(loss), "same_answer": torch.tensor(same)}


def test_a_classifier_that_answers_the_same_for_all_is_told_of() -> None:
    said = {
        step: text
        for alarm in [SameAnswer(1000, 50)]
        for step in range(1, 1001)
        if (text := alarm.note(answers(0.69, 0.6931), step))
    }

    assert list(said) == [250, 500, 1000]
    assert "the loss 0.69 is not 2 % below 0.6931, that of one answer for all" in said[250]


def test_a_classifier_that_learns_and_a_task_without_answers_say_nothing() -> None:
    alarm = SameAnswer(400, 0)

    learning = [alarm.note(answers(0.67, 0.6931), step) for step in range(1, 401)]
    other = [SameAnswer(400, 0).note(logs(9.0, 1.0), step) for step in range(1, 401)]

    assert {*learning, *other} == {None}


def standstill(task: FakeTask, steps: int = 40, **optim: object) -> Standstill:
    return Standstill(task, optim_config(warmup_steps=0, **optim), steps)


def crops() -> list[CropBatch]:
    return [FakeFeed(4).batch(0, range(4))]


def test_weights_that_stay_as_they_are_are_told_of() -> None:
    task = FakeTask()
    alarm = standstill(task)

    (text,) = alarm.note(crops(), 20)

    assert "at step 20 all weights are as they were" in text
    assert alarm.note(crops(), 21) == []


def test_an_encoder_that_stays_as_it_is_is_told_of_when_it_is_its_turn() -> None:
    task, later = FakeTask(), FakeTask()
    alarm, waits = standstill(task), standstill(later, freeze_encoder_steps=20)
    with torch.no_grad():
        task.decoder.weight += 1
        later.decoder.weight += 1

    (text,) = alarm.note(crops(), 20)

    assert "the encoder does not learn: at step 20" in text
    assert waits.note(crops(), 20) == []


def test_an_encoder_that_is_to_stay_as_it_is_is_not_told_of() -> None:
    task = FakeTask()
    alarm = standstill(task, adapt="frozen")
    with torch.no_grad():
        task.decoder.weight += 1

    assert alarm.expected() == []
    assert alarm.note(crops(), 20) == []


def test_an_encoder_that_moves_is_left_alone() -> None:
    task = FakeTask()
    alarm = standstill(task)
    with torch.no_grad():
        task.encoder[0].weight[2, 3] += 1e-6

    assert alarm.note(crops(), 20) == []


def test_what_the_config_tells_is_said_before_the_first_step() -> None:
    still = standstill(FakeTask(), lr=0.0, freeze_encoder_steps=40)

    rate, frozen = still.expected()

    assert "`optim.lr` is 0" in rate
    assert "`optim.freeze_encoder_steps` 40 is not below `training.steps` 40" in frozen
    assert standstill(FakeTask(), freeze_encoder_steps=39).expected() == []


def test_constant_crops_are_told_from_others_inside_of_padding() -> None:
    voxels = torch.full((2, 2, 5, 4, 3), 7.0)
    voxels[1] = -3.25
    valid = torch.ones(2, 5, 4, 3, dtype=torch.bool)
    valid[:, 4] = False
    padded = voxels.clone()
    padded[:, :, 4] = 0

    def batch(voxels: torch.Tensor, valid: torch.Tensor | None) -> CropBatch:
        affine = torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
        return CropBatch(voxels, affine, ("a", "b"), torch.arange(2), valid=valid)

    other = padded.clone()
    other[1, 1, 3, 3, 2] += 0.01
    assert is_constant(batch(voxels, None))
    assert is_constant(batch(padded, valid))
    assert not is_constant(batch(padded, None))
    assert not is_constant(batch(other, valid))
