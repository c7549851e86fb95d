"""Windows of air that are skipped: what they become, and that the rest stays as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from segmented_bodies import (
    CONFIG,
    HU,
    WINDOW,
    Placed,
    noisy,
    segmenter,
    slow_probabilities,
    volume_of,
)

from mim3d.data.prepare.volume import prepare_volume
from mim3d.data.regions import SCHEMES
from mim3d.data.resample import resample_to
from mim3d.data.volume import Volume
from mim3d.inference.predict import predict, predict_volume
from mim3d.inference.seen import body_of
from mim3d.inference.windows import WindowCount, plan_sweep, window_starts, window_weights


def long_scan(tmp_path: Path) -> Volume:
    """Two small bodies far apart along y, so that windows between them hold nothing but air."""
    hu = np.full((22, 90, 12), -1000, np.int16)
    hu[4:14, 3:11, 2:9] = noisy((10, 8, 7)).clip(-100)
    hu[9:20, 78:88, 3:10] = noisy((11, 10, 7)).clip(-100)
    return volume_of(tmp_path, hu, (1.2, 1.5, 3.0))


@pytest.mark.parametrize("spacing", [None, (2.0, 2.0, 2.0)])
@pytest.mark.parametrize("outputs", ["classes", "regions"])
def test_windows_of_air_are_skipped_and_the_rest_stays_as_it_is(
    spacing: tuple[float, float, float] | None, outputs: str, tmp_path: Path
) -> None:
    volume = long_scan(tmp_path)
    model = segmenter(replace(HU, spacing_mm=spacing), network=Placed())
    if outputs == "regions":
        model = replace(model, classes=None, regions=SCHEMES["brats2021"])
    config = replace(CONFIG, overlap=0.0, save_probabilities=True)

    skipping = predict(model, volume, config)
    everything = predict(model, volume, replace(config, skip_air=False))

    assert everything.windows.skipped == 0
    assert skipping.windows.skipped > 0
    total = skipping.windows.run + skipping.windows.skipped
    assert total == everything.windows.run
    # Without overlap a voxel is in one window; on the network's grid that window ran or did not.
    prepared = prepare_volume(volume, model.rule)
    sweep = plan_sweep(prepared.voxels.shape[1:], WINDOW, 0.0, body_of(prepared))
    assert sweep.count == skipping.windows
    ran = np.zeros(sweep.size, np.float32)
    for start in sweep.starts:
        ran[sweep.box(start)] = 1
    ran = ran[sweep.inside]
    there = resample_to(ran[None], prepared.affine, volume.affine, volume.shape)[0]
    assert skipping.probabilities is not None
    assert everything.probabilities is not None
    same = there > 1 - 1e-5
    hidden = there < 1e-5
    assert same.any()
    assert hidden.any()
    found, expected = skipping.probabilities.voxels, everything.probabilities.voxels
    assert np.allclose(found[:, same], expected[:, same], atol=1e-6)
    assert np.array_equal(skipping.labels.voxels[0][same], everything.labels.voxels[0][same])
    background = np.array([0, 0, 0] if outputs == "regions" else [1, 0, 0])[:, None]
    assert np.allclose(found[:, hidden], background, atol=1e-6)
    assert (skipping.labels.voxels[0][hidden] == 0).all()
    assert (everything.labels.voxels[0][hidden] != 0).any()


def test_where_windows_overlap_the_ones_that_run_count_alone(tmp_path: Path) -> None:
    volume = long_scan(tmp_path)
    model = segmenter(replace(HU, crop_to_body=False), network=Placed())
    config = replace(CONFIG, overlap=0.5, save_probabilities=True)
    prepared = prepare_volume(volume, model.rule)
    sweep = plan_sweep(volume.shape, WINDOW, 0.5, body_of(prepared))
    total, mass = np.zeros((3, *sweep.size), np.float32), np.zeros(sweep.size, np.float32)
    weight = window_weights(WINDOW, "gaussian").numpy()
    for start in sweep.starts:
        crop = torch.from_numpy(prepared.normalised[(slice(None), *sweep.box(start))])[None]
        with torch.no_grad():
            total[(slice(None), *sweep.box(start))] += model.network(crop)[0].numpy() * weight
        mass[sweep.box(start)] += weight

    result = predict(model, volume, config)

    assert result.windows.skipped > 0
    expected = slow_probabilities(model, total / np.where(mass, mass, 1))
    expected[:, mass == 0] = np.array([1, 0, 0])[:, None]
    assert result.probabilities is not None
    assert np.allclose(result.probabilities.voxels, expected, atol=2e-5)
    only_labels = predict_volume(model, volume, config)
    assert np.array_equal(only_labels.voxels, result.labels.voxels)


def test_a_module_without_a_rule_knows_no_air_and_skips_nothing(tmp_path: Path) -> None:
    volume = long_scan(tmp_path)

    result = predict(Placed(), volume, CONFIG)

    assert result.windows == WindowCount(len(window_starts(volume.shape, WINDOW, 0.5)), 0)


def test_windows_of_several_runs_are_counted_together(tmp_path: Path) -> None:
    volume = long_scan(tmp_path)
    model = segmenter(network=Placed())

    once, twice = predict(model, volume, CONFIG), predict([model, model], volume, CONFIG)

    assert twice.windows == once.windows + once.windows
    assert once.windows.skipped > 0


def test_progress_counts_the_windows_that_run(tmp_path: Path) -> None:
    said: list[tuple[int, int]] = []

    result = predict(
        segmenter(network=Placed()), long_scan(tmp_path), CONFIG,
        progress=lambda *now: said.append(now),
    )  # fmt: skip

    assert said[-1] == (result.windows.run, result.windows.run)
