"""From a volume to labels: preparation, the way back, what outputs mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from segmented_bodies import (
    CLASSES,
    CONFIG,
    HU,
    WINDOW,
    Nearest,
    body,
    segmenter,
    truth_of,
    volume_of,
)
from torch import Tensor, nn

from mim3d.data.classes import ClassTable
from mim3d.data.prepare.volume import prepare_volume
from mim3d.data.regions import SCHEMES
from mim3d.data.volume import Volume
from mim3d.foundation.errors import UserError
from mim3d.inference.predict import predict, predict_probabilities, predict_volume
from mim3d.inference.segmenter import Segmenter


@pytest.fixture
def torso(tmp_path: Path) -> Volume:
    return volume_of(tmp_path, body((41, 37, 19)), (1.2, 1.5, 3.0))


def test_labels_are_the_values_of_the_class_table_on_the_volumes_own_grid(torso: Volume) -> None:
    labels = predict_volume(segmenter(), torso)

    assert labels.voxels.dtype == np.uint16
    assert np.array_equal(labels.voxels[0], truth_of(torso))
    assert labels.origin is torso.origin
    assert np.array_equal(labels.affine, torso.affine)


def test_the_network_sees_exactly_what_training_saw(torso: Volume) -> None:
    rule = replace(HU, spacing_mm=(2.0, 2.0, 2.0))
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, voxels: Tensor, spacing_mm: Tensor, valid: Tensor) -> Tensor:
            assert spacing_mm.tolist() == [pytest.approx([2.0, 2.0, 2.0])]
            assert valid is None
            seen.append(voxels)
            return voxels.expand(-1, 3, -1, -1, -1)

    prepared = prepare_volume(torso, rule).normalised
    whole = replace(CONFIG, window=prepared.shape[1:])
    predict_volume(segmenter(rule, network=Spy()), torso, whole)

    assert np.array_equal(seen[0][0].numpy(), prepared)


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (0.9, 1.9, 1.4)])
def test_resampled_logits_come_back_to_the_right_place(
    torso: Volume, spacing: tuple[float, float, float]
) -> None:
    labels = predict_volume(segmenter(replace(HU, spacing_mm=spacing)), torso).voxels[0]

    truth = truth_of(torso)
    for value in (2, 700):
        overlap = 2 * ((labels == value) & (truth == value)).sum()
        dice = overlap / ((labels == value).sum() + (truth == value).sum())
        # Partial volume at 2 mm moves the border by part of a voxel; a shift by one voxel of the
        # file gives less than 0.93.
        assert dice > 0.95
        apart = np.argwhere(labels == value).mean(0) - np.argwhere(truth == value).mean(0)
        assert np.abs(apart).max() < 0.15


def test_what_was_cropped_away_is_background_for_certain(torso: Volume) -> None:
    rule = replace(HU, body_margin_mm=0.0)
    everywhere_bone = Nearest([9.0, 8.0, 0.0])

    result = predict(
        segmenter(rule, network=everywhere_bone), torso, replace(CONFIG, save_probabilities=True)
    )

    inside = np.zeros(torso.shape, bool)
    places = np.argwhere(torso.voxels[0] > -500)
    inside[tuple(slice(a, b + 1) for a, b in zip(places.min(0), places.max(0), strict=True))] = True
    assert not inside.all()
    assert (result.labels.voxels[0][inside] == 700).all()
    assert (result.labels.voxels[0][~inside] == 0).all()
    assert result.probabilities is not None
    assert (result.probabilities.voxels[0][~inside] == 1).all()


@pytest.mark.parametrize("spacing", [None, (2.0, 2.0, 2.0)])
def test_probabilities_are_those_of_the_labels(
    torso: Volume, spacing: tuple[float, float, float] | None
) -> None:
    model = segmenter(replace(HU, spacing_mm=spacing))

    result = predict(model, torso, replace(CONFIG, save_probabilities=True))

    assert result.probabilities is not None
    probabilities = result.probabilities.voxels
    assert probabilities.dtype == np.float32
    assert np.allclose(probabilities.sum(axis=0), 1, atol=1e-6)
    best = CLASSES.to_value(probabilities.argmax(axis=0))
    assert np.array_equal(best, result.labels.voxels[0])
    alone = predict_probabilities(model, torso, CONFIG)
    assert np.array_equal(alone.voxels, probabilities)


def test_several_runs_average_their_probabilities(torso: Volume) -> None:
    sure, unsure = (
        segmenter(network=Nearest(centres, sharpness))
        for centres, sharpness in (([0.0, 0.45, 0.9], 9.0), ([0.9, 0.45, 0.0], 2.0))
    )
    config = replace(CONFIG, save_probabilities=True)

    result = predict([sure, unsure], torso, config)

    expected = sum(predict_probabilities(one, torso, CONFIG).voxels for one in (sure, unsure)) / 2
    assert result.probabilities is not None
    assert np.allclose(result.probabilities.voxels, expected, atol=1e-6)
    assert np.array_equal(result.labels.voxels[0], CLASSES.to_value(expected.argmax(axis=0)))


def test_runs_of_other_classes_are_not_averaged(torso: Volume) -> None:
    other = segmenter(classes=ClassTable.from_values([0, 1, 2]))

    with pytest.raises(UserError, match="different classes"):
        predict_volume([segmenter(), other], torso, CONFIG)


@pytest.mark.parametrize("spacing", [None, (2.0, 2.0, 2.0)])
def test_regions_become_the_schemes_values(
    torso: Volume, spacing: tuple[float, float, float] | None
) -> None:
    class Regions(nn.Module):
        """TC: above fat; WT: above air; ET: never."""

        def forward(self, voxels: Tensor) -> Tensor:
            return torch.cat([voxels - 0.7, voxels - 0.2, voxels - 2], dim=1)

    model = Segmenter(
        Regions(), WINDOW, regions=SCHEMES["brats2021"], rule=replace(HU, spacing_mm=spacing)
    )

    labels = predict_volume(model, torso)

    truth = truth_of(torso)
    expected = np.select([truth == 700, truth == 2], [1, 2], 0)
    same = (labels.voxels[0] == expected).mean()
    assert same == 1 if spacing is None else same > 0.98


def test_the_largest_component_is_kept_on_request(tmp_path: Path) -> None:
    voxels = np.zeros((20, 21, 9), np.int16)
    voxels[2:9, 3:9, 1:6] = 1
    voxels[15:17, 15:17, 6:8] = 1
    volume = volume_of(tmp_path, voxels, (1, 1, 2))
    network = Nearest([0.0, 1.0])

    all_of_it = predict_volume(network, volume, CONFIG)
    largest = predict_volume(network, volume, replace(CONFIG, largest_component=True))

    assert all_of_it.voxels.sum() == 7 * 6 * 5 + 2 * 2 * 2
    assert largest.voxels.sum() == 7 * 6 * 5


def test_a_module_with_one_output_is_a_sigmoid(tmp_path: Path) -> None:
    class One(nn.Module):
        def forward(self, voxels: Tensor) -> Tensor:
            return voxels - 0.5

    voxels = (np.random.default_rng(0).random((11, 13, 7)) > 0.5).astype(np.int16)
    volume = volume_of(tmp_path, voxels, (1, 1, 2))

    assert np.array_equal(predict_volume(One(), volume).voxels, volume.voxels)


def test_volumes_of_other_channels_are_refused_by_name(torso: Volume) -> None:
    model = segmenter(channel_names=("flair", "t1"))

    with pytest.raises(UserError, match=r"1 channel.*expects 2: `flair`, `t1`"):
        predict_volume(model, torso)


def test_a_network_with_other_outputs_than_classes_is_refused(torso: Volume) -> None:
    with pytest.raises(UserError, match="2 outputs for 3"):
        predict_volume(segmenter(network=Nearest([0.0, 1.0])), torso)


def test_training_mode_is_restored_part_by_part(torso: Volume) -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Dropout(0.9), nn.Dropout(0.9)

        def forward(self, voxels: Tensor) -> Tensor:
            assert not self.one.training
            return self.two(self.one(voxels)).repeat(1, 3, 1, 1, 1)

    network = Parts()
    network.two.eval()

    predict_volume(segmenter(network=network), torso)

    assert (network.training, network.one.training, network.two.training) == (True, True, False)


def test_without_a_window_a_module_gets_one_that_suits_the_volume(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).standard_normal((11, 23, 7)).astype(np.float32)
    volume = volume_of(tmp_path, voxels, (1.0, 1.2, 2.5))

    class Spy(nn.Module):
        def forward(self, voxels: Tensor) -> Tensor:
            assert voxels.shape == (1, 1, 16, 32, 16)
            return voxels.repeat(1, 2, 1, 1, 1)

    assert predict_volume(Spy(), volume).shape == (11, 23, 7)
