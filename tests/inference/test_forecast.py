"""What a prediction will take, told before its first window."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mim3d.config.inference import InferenceConfig
from mim3d.data.classes import ClassTable
from mim3d.data.volume import Volume
from mim3d.inference.forecast import LIBRARIES, Forecast, Load, Need
from mim3d.inference.predict import predict
from mim3d.inference.segmenter import Segmenter
from mim3d.inference.windows import WindowCount, plan_sweep

AFFINE = np.diag([0.8, 1.2, 2.5, 1.0])


class Hungry(nn.Module):
    """Holds 40 MB while a window passes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, voxels: Tensor) -> Tensor:
        self.calls += 1
        held = torch.ones(10_000_000)
        return torch.cat([voxels, voxels + held[0]], dim=1)


def segmenter(network: nn.Module) -> Segmenter:
    return Segmenter(network, (8, 8, 8), classes=ClassTable.from_values((0, 1)))


def volume(side: int) -> Volume:
    shape = (1, side + 3, side, side - 2)
    voxels = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return Volume.from_array(voxels, AFFINE)


def test_the_plan_comes_before_the_first_window_and_counts_what_will_run() -> None:
    events: list[str] = []
    forecast = Forecast(lambda need: events.append(str(need)))

    found = predict(
        segmenter(Hungry()), volume(15), InferenceConfig(overlap=0.0), forecast=forecast,
        progress=lambda done, total: events.append("window"),
    )  # fmt: skip

    (need,) = forecast.needs
    assert events[0] == str(need)
    assert events.count("window") == len(events) - 1 > 0
    assert need.windows == found.windows == WindowCount(12)


def test_what_the_network_holds_is_in_the_plan() -> None:
    forecast = Forecast(lambda need: None)
    before = torch.ones(1)  # what is there already is not the network's

    predict(segmenter(Hungry()), volume(15), InferenceConfig(overlap=0.0), forecast=forecast)

    from mim3d.foundation.memory import resident_bytes

    standing = resident_bytes()
    assert before.numel() == 1
    assert standing is not None
    assert forecast.needs[0].peak_bytes is not None
    assert 30e6 < forecast.needs[0].peak_bytes - standing - LIBRARIES < 80e6


def test_a_network_is_tried_once_and_only_notable_plans_are_told() -> None:
    told: list[Need] = []
    forecast, network = Forecast(told.append), Hungry()
    model = segmenter(network)

    for side in (15, 15, 16):
        predict(model, volume(side), InferenceConfig(overlap=0.0, windows_per_batch=99),
                forecast=forecast)  # fmt: skip

    assert len(forecast.needs) == 3
    assert len(told) == 1


@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize("is_asked", [False, True])
def test_a_plan_says_what_probabilities_of_the_whole_volume_take(runs: int, is_asked: bool) -> None:
    """Those that are asked for, and those of several runs, which are averaged."""
    told: list[Need] = []
    config = InferenceConfig(overlap=0.0, save_probabilities=is_asked)

    predict([segmenter(Hungry()) for _ in range(runs)], volume(15), config,
            forecast=Forecast(told.append))  # fmt: skip

    is_kept = is_asked or runs > 1
    assert told[0].probability_bytes == 2 * 4 * 18 * 15 * 13 * is_kept
    assert ("probabilities of the whole volume" in str(told[0])) == is_kept


@pytest.mark.parametrize("with_probabilities", [False, True])
def test_sums_and_outputs_follow_from_shapes(with_probabilities: bool) -> None:
    """A sweep of windows 8 deep over 40 x 20 x 10: rows of 8 x 20 x 10 voxels are held."""
    sweep = plan_sweep((40, 20, 10), (8, 8, 8), 0.5)
    load = Load(sweep, 1, 5, 0, False, (80, 40, 20), with_probabilities)

    assert load.sum_bytes == 4 * 8 * 20 * 10 * (5 + 2)
    assert load.output_bytes == 80 * 40 * 20 * (3 + 20 * with_probabilities)
    assert "12 of air skipped" in str(Need(WindowCount(5, 12), 10**9, None, 61.0))
