"""Volumes smaller than the window: no padding is seen where training saw none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.config.inference import InferenceConfig
from mim3d.config.task import DecoderConfig
from mim3d.data.volume import Origin, Volume
from mim3d.inference.predict import predict_probabilities, predict_volume
from mim3d.inference.segmenter import Segmenter
from mim3d.inference.windows import fitted
from mim3d.models.decoders import DECODERS
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT

SHAPE = (11, 13, 7)
SPACING = (0.5, 1.0, 3.0)
CASES = [(name, "none") for name in DECODERS] + [("light", "ridge")]


def network(name: str, direct: Any = "none") -> UNETR:
    torch.manual_seed(0)
    encoder = VolumeViT(EncoderConfig(width=24, depth=4, heads=2, patch=(4, 4, 2), channels=2))
    decoder = DecoderConfig(name=name, feature_size=4, direct=direct)  # type: ignore[arg-type]
    made = UNETR(encoder, 3, decoder)
    with torch.no_grad():
        # Some decoders start at nothing: their correction, and a direct path.
        for parameter in made.decoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return made.eval()


def volume(shape: tuple[int, int, int] = SHAPE) -> Volume:
    voxels = np.random.Generator(np.random.Philox(3)).standard_normal((2, *shape))
    affine = np.diag([*SPACING, 1.0])
    origin = Origin(shape, (0, 1, 2), (False, False, False), affine, (*shape, 2))
    return Volume(voxels.astype(np.float32), affine, origin=origin)


def probabilities(made: UNETR, window: tuple[int, int, int], **fields: Any) -> np.ndarray:
    segmenter = Segmenter(made, (8, 8, 8), pads=False)
    config = InferenceConfig(window=window, **fields)
    return predict_probabilities(segmenter, volume(), config).voxels


def alone(made: UNETR, shown: Volume) -> Tensor:
    """Probabilities `k x y z` of the whole volume in one pass, with nothing around it."""
    with torch.inference_mode():
        logits = made(torch.from_numpy(shown.voxels)[None], SPACING)
    return logits[0].softmax(0)


@pytest.mark.parametrize(("name", "direct"), CASES)
@pytest.mark.parametrize("window", [SHAPE, (12, 16, 8), (11, 64, 31)])
def test_a_window_larger_than_the_volume_gives_what_the_network_says_of_the_volume_alone(
    name: str, direct: str, window: tuple[int, int, int]
) -> None:
    """Seen to fail with the window filled up by padding, with every decoder."""
    made = network(name, direct)

    found = probabilities(made, window)

    torch.testing.assert_close(torch.from_numpy(found), alone(made, volume()), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "direct"), CASES)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_along_an_axis_where_the_volume_is_smaller_the_window_changes_no_bit(
    name: str, direct: str, axis: int
) -> None:
    """While it slides along the two others."""
    made = network(name, direct)
    windows = []
    for side in (SHAPE[axis], SHAPE[axis] + 1, 3 * SHAPE[axis]):
        window = [8, 8, 4]
        window[axis] = side
        windows.append((window[0], window[1], window[2]))

    first, *others = (probabilities(made, window, flips=("x",)) for window in windows)

    for other in others:
        assert np.array_equal(other, first)


def test_labels_follow_too() -> None:
    segmenter = Segmenter(network("light"), (64, 64, 64), pads=False)

    labels = predict_volume(segmenter, volume()).voxels[0]

    expected = alone(segmenter.network, volume()).argmax(0)  # type: ignore[arg-type]
    assert len(np.unique(labels)) > 1
    assert np.array_equal(labels, expected.numpy())


def test_a_network_that_learned_from_padded_crops_sees_them_padded() -> None:
    made = network("light")
    config = InferenceConfig(window=(40, 29, 31))

    padded = predict_probabilities(Segmenter(made, (8, 8, 8)), volume(), config).voxels

    assert not np.allclose(padded, alone(made, volume()).numpy(), atol=1e-3)


@pytest.mark.parametrize(("name", "direct"), CASES)
def test_what_stands_in_padding_changes_no_bit(name: str, direct: str) -> None:
    made = network(name, direct)
    x, y, z = SHAPE
    valid = torch.zeros(1, 16, 16, 16, dtype=torch.bool)
    valid[:, 3 : 3 + x, 1 : 1 + y, 4 : 4 + z] = True
    voxels = torch.full((1, 2, 16, 16, 16), 7.0)
    voxels[:, :, 3 : 3 + x, 1 : 1 + y, 4 : 4 + z] = torch.from_numpy(volume().voxels)
    other = torch.where(valid[:, None], voxels, torch.tensor(float("nan")))

    with torch.inference_mode():
        before, after = made(voxels, SPACING, valid), made(other, SPACING, valid)

    assert bool(before.isfinite().all())
    assert torch.equal(after, before)


def test_a_fitted_window_is_the_smaller_side_along_each_axis() -> None:
    assert fitted((96, 40, 32), (64, 50, 32)) == (64, 40, 32)
