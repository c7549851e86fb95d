"""Means, JSON lines, TensorBoard and the live line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from mim3d.training.logs import Log, Means, mean_values, progress_line, short_duration, short_rate


def test_means_leave_out_what_is_not_finite() -> None:
    means = Means()
    for loss, dice in ((1.0, math.nan), (2.0, 0.5), (math.inf, math.nan), (6.0, 0.7)):
        means.add({"loss": torch.tensor(loss), "dice": torch.tensor(dice)})
    means.add({"never": torch.tensor(math.nan)})

    values = mean_values(means.totals())

    assert values["loss"] == pytest.approx(3.0)
    assert values["dice"] == pytest.approx(0.6)
    assert math.isnan(values["never"])
    assert {k: float(v) for k, v in means.values().items() if k != "never"} == {
        "loss": values["loss"],
        "dice": values["dice"],
    }


def test_means_go_on_exactly_where_they_were_saved() -> None:
    whole, first, second = Means(), Means(), Means()
    numbers = [0.1 * k for k in range(7)]
    for number in numbers:
        whole.add({"loss": torch.tensor(number)})
    for number in numbers[:3]:
        first.add({"loss": torch.tensor(number)})

    second.restore(json.loads(json.dumps(first.totals())), torch.device("cpu"))
    for number in numbers[3:]:
        second.add({"loss": torch.tensor(number)})

    assert second.totals() == whole.totals()


def read(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_line_is_on_the_disk_at_once_and_is_json_whatever_the_number(tmp_path: Path) -> None:
    log = Log(tmp_path, 0)

    log.write("train", 20, {"loss": 0.5, "dice": math.nan, "name": "x"})

    (line,) = read(tmp_path)
    assert line.pop("time") > 1e9
    assert line == {"kind": "train", "step": 20, "loss": 0.5, "dice": None, "name": "x"}
    log.close()


def test_lines_after_the_step_a_run_goes_on_from_are_removed(tmp_path: Path) -> None:
    log = Log(tmp_path, 0)
    for step in (10, 20, 30):
        log.write("train", step, {"loss": 1.0 * step})
    log.close()
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 1')

    log = Log(tmp_path, 20)
    log.write("train", 30, {"loss": 7.0})
    log.close()

    assert [(line["step"], line["loss"]) for line in read(tmp_path)] == [
        (10, 10.0),
        (20, 20.0),
        (30, 7.0),
    ]


def test_tensorboard_holds_the_finite_numbers_and_where_a_run_went_on(tmp_path: Path) -> None:
    log = Log(tmp_path, 20)
    log.write("train", 30, {"loss": 0.25, "dice": math.nan, "name": "x"})
    log.close()

    (file,) = (tmp_path / "tensorboard").iterdir()
    events = list(EventFileLoader(str(file)).Load())

    restarts = [event.step for event in events if event.HasField("session_log")]
    points = [
        (event.step, value.tag, value.tensor.float_val[0])
        for event in events
        if event.HasField("summary")
        for value in event.summary.value
    ]
    assert restarts == [21]
    assert points == [(30, "train/loss", 0.25)]


def test_progress_line_reads_as_documented() -> None:
    line = progress_line(
        1240,
        5000,
        loss=0.4123,
        rate=2.9e-4,
        crops_per_second=41.2,
        data_share=0.031,
        seconds_left=700,
    )

    assert line == ("step 1,240/5,000  loss 0.412  lr 2.9e-4  41 crops/s  data 3 %  12 min left")


def test_slow_runs_show_a_digit_more() -> None:
    line = progress_line(
        1, 2, loss=12.345, rate=0.0, crops_per_second=0.456, data_share=0, seconds_left=7500
    )

    assert line == "step 1/2  loss 12.3  lr 0.0e0  0.46 crops/s  data 0 %  2 h 05 min left"


@pytest.mark.parametrize(("rate", "text"), [(1e-3, "1.0e-3"), (0.02, "2.0e-2"), (1.5, "1.5e0")])
def test_rates_are_short(rate: float, text: str) -> None:
    assert short_rate(rate) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(44.6, "45 s"), (60, "1 min"), (3500, "58 min"), (3600, "1 h 00 min")]
)
def test_estimates_drop_the_smaller_unit(seconds: float, text: str) -> None:
    assert short_duration(seconds) == text
