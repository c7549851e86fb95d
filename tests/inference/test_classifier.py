"""Answers for whole volumes: means over windows and mirrors, and what outputs stand for."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mim3d.config.inference import InferenceConfig
from mim3d.data.asked_target import AskedTarget
from mim3d.data.volume import Volume
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.inference.classifier import Classifier, answers, classify, mean_outputs, numbers
from mim3d.inference.seen import Seen
from mim3d.inference.segmenter import Segmenter

GRADE = AskedTarget("grade", (1.0, 3.0, 7.0), counts=(1, 1, 1))
SICK = AskedTarget("sick", (0.0, 1.0), counts=(1, 1), is_sigmoid=True)
AGE = AskedTarget("age", None, mean=40.0, deviation=8.0)
AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])


class Slopes(nn.Module):
    """Sums of the voxels times their place along x, y and z: no answer is the mirror's."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, voxels: Tensor, spacing_mm: Tensor, valid: Tensor | None = None) -> Tensor:
        parts = []
        for axis in (2, 3, 4):
            place = torch.arange(voxels.shape[axis], dtype=voxels.dtype)
            shape = [1] * 5
            shape[axis] = -1
            parts.append((voxels * place.reshape(shape)).sum(dim=(1, 2, 3, 4)))
        return self.scale * torch.stack(parts, dim=1) * spacing_mm / 1000


def _voxels(shape=(11, 13, 7)) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(1, *shape)).astype(np.float32)


def _volume(voxels: np.ndarray) -> Volume:
    return Volume.from_array(voxels, AFFINE)


def _slopes(box: np.ndarray) -> np.ndarray:
    found = []
    for axis, spacing in zip((1, 2, 3), (1.0, 1.5, 2.0), strict=True):
        shape = [1, 1, 1, 1]
        shape[axis] = -1
        found.append((box * np.arange(box.shape[axis]).reshape(shape)).sum() * spacing / 1000)
    return np.array(found)


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_outputs_are_the_mean_over_all_windows_and_mirrors(batch):
    voxels = _voxels()
    config = InferenceConfig(overlap=0.5, flips=("x", "z"), windows_per_batch=batch)

    found = mean_outputs(Seen(torch.from_numpy(voxels), AFFINE), Slopes(), config, (6, 8, 7), "cpu")

    # Strides of half a window: x from 0, 3, 5; y from 0, 4, 5; z is one window.
    every = []
    for x, y in itertools.product((0, 3, 5), (0, 4, 5)):
        box = voxels[:, x : x + 6, y : y + 8]
        for axes in ((), (1,), (3,), (1, 3)):
            every.append(_slopes(np.flip(box, axes)))
    np.testing.assert_allclose(found.numpy(), np.mean(every, axis=0), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_windows_of_nothing_but_air_say_nothing():
    voxels = _voxels()
    body = np.zeros((11, 13, 7), np.bool_)
    body[1, 1, 1] = True
    seen = Seen(torch.from_numpy(voxels), AFFINE, body=body)

    found = mean_outputs(seen, Slopes(), InferenceConfig(overlap=0), (6, 7, 7), "cpu")

    np.testing.assert_allclose(found.numpy(), _slopes(voxels[:, :6, :7]), rtol=1e-4)


@torch.no_grad()
def test_a_volume_smaller_than_the_window_is_filled_up_and_says_so():
    shown = []

    def predictor(voxels: Tensor, spacing_mm: Tensor, valid: Tensor | None) -> Tensor:
        shown.append((voxels, valid))
        return voxels.sum(dim=(1, 2, 3, 4))[:, None]

    voxels = _voxels((5, 4, 3))
    mean_outputs(Seen(torch.from_numpy(voxels), AFFINE), predictor, InferenceConfig(), (8, 4, 5),
                 "cpu")  # fmt: skip

    ((crop, valid),) = shown
    assert crop.shape == (1, 1, 8, 4, 5)
    assert valid.sum() == 60
    assert torch.equal(crop[0, 0][valid[0]], torch.from_numpy(voxels).reshape(-1))


@torch.no_grad()
def test_a_network_that_drops_air_is_shown_patches_without_body_as_padding():
    shown = []

    def predictor(voxels: Tensor, spacing_mm: Tensor, valid: Tensor | None) -> Tensor:
        shown.append((voxels, valid))
        return voxels.sum(dim=(1, 2, 3, 4))[:, None]

    voxels = _voxels((10, 8, 6))
    body = np.zeros((10, 8, 6), np.bool_)
    body[1, 1, 1] = body[9, 2, 5] = True
    seen = Seen(torch.from_numpy(voxels), AFFINE, body=body)
    config = InferenceConfig(flips=("x",))

    mean_outputs(seen, predictor, config, (12, 8, 6), "cpu", patch=(4, 4, 3))

    (_, plain), (mirrored, turned) = shown
    # The volume lies in rows 1 to 10 of the window, so body in rows 2 and 10 of it, and of its
    # mirror in rows 9 and 1; patches begin with the window.
    expected = np.zeros((12, 8, 6), np.bool_)
    expected[1:4, :4, :3] = expected[8:11, :4, 3:] = True
    np.testing.assert_array_equal(plain[0].numpy(), expected)
    expected = np.zeros((12, 8, 6), np.bool_)
    expected[8:11, :4, :3] = expected[1:4, :4, 3:] = True
    np.testing.assert_array_equal(turned[0].numpy(), expected)
    assert torch.equal(mirrored, shown[0][0].flip(2))


def test_outputs_become_probabilities_and_numbers_in_their_own_unit():
    outputs = torch.tensor([[0.3, -1.0, 2.0, 0.7, -0.5], [1.0, 1.0, 0.5, -3.0, 2.0]])

    grade, sick, age = numbers([GRADE, SICK, AGE], outputs)

    for row, shares in zip(outputs.tolist(), grade, strict=True):
        total = sum(math.exp(x) for x in row[:3])
        np.testing.assert_allclose(shares, [math.exp(x) / total for x in row[:3]], rtol=1e-6)
    chance = [1 / (1 + math.exp(-0.7)), 1 / (1 + math.exp(3))]
    np.testing.assert_allclose(sick, [[1 - p, p] for p in chance], rtol=1e-6)
    np.testing.assert_allclose(age, [[36.0], [56.0]])
    said = answers([GRADE, SICK, AGE], [grade, sick, age])
    assert [one.value for one in said[0]] == [7.0, 1.0, 36.0]
    assert [one.value for one in said[1]] == [1.0, 0.0, 56.0]  # of equal ones the first
    assert said[0][2].classes is None


def _classifier(scale: float, table=(GRADE,)) -> Classifier:
    return Classifier(Segmenter(Slopes(scale), (8, 8, 8), channel_names=("ct",)), table)


def test_several_runs_have_the_mean_of_their_probabilities():
    volume = _volume(_voxels())
    config = InferenceConfig(overlap=0)

    alone = [classify([_classifier(scale)], volume, config)[0] for scale in (1.0, -4.0)]
    (both,) = classify([_classifier(1.0), _classifier(-4.0)], volume, config)

    expected = np.mean([one.probabilities for one in alone], axis=0)
    np.testing.assert_allclose(both.probabilities, expected, rtol=1e-9)
    assert both.value == (1.0, 3.0, 7.0)[int(expected.argmax())]


def test_runs_of_different_targets_are_not_averaged():
    other = AskedTarget("grade", (1.0, 3.0, 8.0), counts=(1, 1, 1))

    with pytest.raises(UserError, match="predict different targets"):
        classify([_classifier(1.0), _classifier(1.0, (other,))], _volume(_voxels()),
                 InferenceConfig())  # fmt: skip


def test_another_number_of_channels_or_patches_by_spacing_are_refused():
    two = _volume(np.repeat(_voxels(), 2, axis=0))

    with pytest.raises(UserError, match="2 channel"):
        classify([_classifier(1.0)], two, InferenceConfig())
    with pytest.raises(ConfigError, match="for segmentation alone"):
        classify([_classifier(1.0)], _volume(_voxels()),
                 InferenceConfig(patch="by_spacing"))  # fmt: skip
