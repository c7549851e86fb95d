"""Labels and probabilities made row by row, against whole logits by a loop over all windows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from segmented_bodies import (
    CLASSES,
    CONFIG,
    HU,
    WINDOW,
    Placed,
    body,
    noisy,
    segmenter,
    slow_labels,
    slow_logits,
    slow_probabilities,
    volume_of,
)

from mim3d.config.inference import InferenceConfig
from mim3d.data.regions import SCHEMES
from mim3d.data.volume import Volume
from mim3d.inference.predict import predict, predict_volume
from mim3d.inference.segmenter import Segmenter

GRIDS = {
    "as-it-is": None,
    "cropped": HU,
    "not-cropped": replace(HU, crop_to_body=False),
    "coarser": replace(HU, spacing_mm=(2.0, 2.0, 4.0)),
    "finer": replace(HU, spacing_mm=(0.9, 1.1, 2.0)),
    "mixed": replace(HU, spacing_mm=(0.9, 1.9, 1.4), crop_to_body=False),
}
WAYS = [
    InferenceConfig(window=WINDOW, overlap=0.5),
    InferenceConfig(window=WINDOW, overlap=0.0, weights="constant", windows_per_batch=3),
    InferenceConfig(window=(12, 40, 6), overlap=0.25, flips=("x", "z")),
    InferenceConfig(window=(64, 64, 64), flips=("y",)),
    InferenceConfig(window=(48, 16, 32), overlap=0.8),
]


@pytest.fixture
def torso(tmp_path: Path) -> Volume:
    return volume_of(tmp_path, body((41, 37, 19)), (1.2, 1.5, 3.0))


@pytest.mark.parametrize("config", WAYS, ids=lambda config: "x".join(map(str, config.window)))
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shape", [(41, 37, 19), (11, 13, 7)])
def test_rows_of_logits_give_the_labels_of_whole_logits(
    shape: tuple[int, int, int], grid: str, config: InferenceConfig, tmp_path: Path
) -> None:
    """Caught: a row of the network's grid dropped that the next row of the volume lies beside."""
    volume = volume_of(tmp_path, noisy(shape), (1.2, 1.5, 3.0))
    model = segmenter(GRIDS[grid], network=Placed())
    logits = slow_logits(model, volume, config)

    result = predict(model, volume, replace(config, skip_air=False, save_probabilities=True))

    expected = slow_labels(model, logits)
    alone = predict_volume(model, volume, replace(config, skip_air=False))
    assert np.array_equal(alone.voxels, result.labels.voxels)
    # Where two classes are equal but for rounding either may win.
    best = np.sort(logits, axis=0)
    clear = best[-1] - best[-2] > 1e-4
    assert clear.mean() > 0.99
    assert np.array_equal(result.labels.voxels[0][clear], expected[clear])
    assert result.probabilities is not None
    assert np.allclose(result.probabilities.voxels, slow_probabilities(model, logits), atol=2e-5)


@pytest.mark.parametrize("grid", GRIDS)
def test_rows_of_logits_give_the_regions_of_whole_logits(grid: str, tmp_path: Path) -> None:
    volume = volume_of(tmp_path, noisy((23, 37, 41)), (1.2, 1.5, 3.0))
    model = Segmenter(Placed(), WINDOW, regions=SCHEMES["brats2021"], rule=GRIDS[grid])
    config = replace(CONFIG, skip_air=False)
    logits = slow_logits(model, volume, config)

    result = predict(model, volume, replace(config, save_probabilities=True))

    clear = (np.abs(logits) > 1e-4).all(axis=0)
    expected = slow_labels(model, logits)
    assert clear.mean() > 0.98
    assert np.array_equal(result.labels.voxels[0][clear], expected[clear])
    assert result.probabilities is not None
    assert np.allclose(result.probabilities.voxels, slow_probabilities(model, logits), atol=2e-5)


@pytest.mark.parametrize("grid", GRIDS)
def test_runs_on_other_grids_average_their_probabilities(grid: str, torso: Volume) -> None:
    one = segmenter(HU, network=Placed())
    other = segmenter(GRIDS[grid], network=Placed().double().float(), window=(24, 8, 8))
    for weight in other.network.parameters():
        weight.data *= -0.7
    config = replace(CONFIG, skip_air=False)

    result = predict([one, other], torso, replace(config, save_probabilities=True))

    expected = np.mean(
        [slow_probabilities(run, slow_logits(run, torso, config)) for run in (one, other)], axis=0
    )
    assert result.probabilities is not None
    assert np.allclose(result.probabilities.voxels, expected, atol=2e-5)
    assert np.array_equal(
        result.labels.voxels[0], CLASSES.to_value(result.probabilities.voxels.argmax(axis=0))
    )
