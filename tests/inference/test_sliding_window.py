"""The sliding window against MONAI's, and what a window's network is told."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from mim3d.config.sections import InferenceConfig
from mim3d.foundation.errors import ConfigError, ShapeError
from mim3d.inference.sliding_window import (
    axis_starts,
    check_inference,
    mirrored,
    slide,
    window_starts,
    window_weights,
)

SPACING = (0.8, 1.1, 2.5)
WINDOW = (8, 10, 6)


class Context(nn.Module):
    """A network whose output depends on a voxel's surroundings and on its place in the window."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blur = nn.Conv3d(2, outputs, 5, padding=2)

    def forward(self, voxels: Tensor, *_: object) -> Tensor:
        ramp = torch.linspace(0, 1, voxels.shape[2])[:, None, None]
        return self.blur(voxels) + ramp


def voxels(size: tuple[int, int, int], channels: int = 2) -> Tensor:
    return torch.randn(channels, *size, generator=torch.Generator().manual_seed(sum(size)))


def predict(image: Tensor, predictor: object, config: InferenceConfig, **more: object) -> Tensor:
    with torch.no_grad():
        return slide(image, predictor, config, window=WINDOW, spacing_mm=SPACING, **more)


@pytest.mark.parametrize("size", [(8, 10, 6), (19, 23, 13), (5, 31, 6), (9, 7, 17)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("weights", ["gaussian", "constant"])
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_result_equals_monai_for_a_network_with_context(
    size: tuple[int, int, int], overlap: float, weights: str
) -> None:
    image, network = voxels(size), Context()

    ours = predict(image, network, InferenceConfig(overlap=overlap, weights=weights))

    with torch.no_grad():
        theirs = sliding_window_inference(image[None], WINDOW, 3, network, overlap, mode=weights)
    # float32 sums of up to 8 x 125 products in another order.
    assert torch.allclose(ours, theirs[0], atol=2e-5)


@pytest.mark.parametrize("size", [(8, 10, 6), (33, 20, 41), (9, 11, 7)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6, 0.95])
def test_windows_begin_where_monais_do(size: tuple[int, int, int], overlap: float) -> None:
    ours = window_starts(size, WINDOW, overlap)

    strides = [
        w if w == s else max(1, int(w * (1 - overlap))) for w, s in zip(WINDOW, size, strict=True)
    ]
    theirs = dense_patch_slices(size, WINDOW, strides)
    assert ours == [tuple(part.start for part in box) for box in theirs]


@pytest.mark.parametrize(("size", "window"), list(product(range(4, 40, 5), (1, 3, 4))))
def test_every_voxel_of_an_axis_is_covered_and_no_window_sticks_out(size: int, window: int) -> None:
    for overlap in (0.0, 0.3, 0.5, 0.99):
        starts = axis_starts(size, window, overlap)

        covered = {place for start in starts for place in range(start, start + window)}
        assert covered == set(range(size))
        assert len(set(starts)) == len(starts)


def test_number_of_windows_of_a_torso_is_as_planned() -> None:
    # 512 x 512 x 300 at 96 cubed: 10 x 10 x 6 and 7 x 7 x 4.
    assert len(window_starts((512, 512, 300), (96, 96, 96), 0.5)) == 600
    assert len(window_starts((512, 512, 300), (96, 96, 96), 0.25)) == 196


@pytest.mark.parametrize("kind", ["gaussian", "constant"])
def test_weights_equal_monais_importance_map(kind: str) -> None:
    ours = window_weights((8, 11, 5), kind)

    assert torch.allclose(ours, compute_importance_map((8, 11, 5), mode=kind), atol=1e-7)
    assert ours.min() > 0


@pytest.mark.parametrize("windows", [1, 2, 5, 1000])
def test_number_of_windows_a_batch_does_not_change_the_result(windows: int) -> None:
    image, network = voxels((19, 23, 13)), Context()

    some = predict(image, network, InferenceConfig(windows_per_batch=windows))

    # Convolutions of another batch size may sum in another order.
    assert torch.allclose(some, predict(image, network, InferenceConfig()), atol=1e-5)


def test_a_network_never_sees_more_windows_than_a_batch_holds() -> None:
    seen: list[int] = []

    def predictor(crops: Tensor, spacing_mm: Tensor, valid: Tensor | None) -> Tensor:
        assert crops.shape[1:] == (2, *WINDOW)
        assert spacing_mm.tolist() == [pytest.approx(SPACING)] * len(crops)
        seen.append(len(crops))
        return crops

    done: list[tuple[int, int]] = []
    config = InferenceConfig(windows_per_batch=4)
    predict(voxels((19, 10, 13)), predictor, config, progress=lambda *now: done.append(now))

    assert max(seen) <= 4
    assert sum(seen) == done[-1][1] == done[-1][0]


def test_padding_of_a_small_volume_is_marked_and_holds_zeros() -> None:
    image = voxels((5, 10, 4)) + 10

    def predictor(crops: Tensor, _: Tensor, valid: Tensor | None) -> Tensor:
        assert valid is not None
        assert valid.sum() == 5 * 10 * 4
        assert valid[0, 1:6, :, 1:5].all()
        assert (crops[0][:, ~valid[0]] == 0).all()
        assert torch.equal(crops[0, :, 1:6, :, 1:5], image)
        return torch.where(valid[:, None], crops, torch.nan)

    assert torch.equal(predict(image, predictor, InferenceConfig()), image)


def test_a_volume_without_padding_is_valid_everywhere() -> None:
    def predictor(crops: Tensor, _: Tensor, valid: Tensor | None) -> Tensor:
        assert valid is None
        return crops

    predict(voxels((9, 13, 7)), predictor, InferenceConfig())


def test_flips_average_every_combination_of_mirrored_axes() -> None:
    image, network = voxels(WINDOW)[None], Context()

    with torch.no_grad():
        ours = mirrored(network, image, torch.ones(1, 3), None, ("x", "z"))
        expected = (
            network(image)
            + network(image.flip(2)).flip(2)
            + network(image.flip(4)).flip(4)
            + network(image.flip(2, 4)).flip(2, 4)
        ) / 4

    assert torch.allclose(ours, expected, atol=1e-6)


def test_flips_mirror_what_is_valid_too() -> None:
    valid = torch.zeros(1, *WINDOW, dtype=torch.bool)
    valid[:, :3, :4, :5] = True
    image = torch.where(valid[:, None], voxels(WINDOW)[None], torch.tensor(0.0))

    def predictor(crops: Tensor, _: Tensor, known: Tensor | None) -> Tensor:
        assert known is not None
        assert (crops[:, 0] != 0).equal(known)
        return crops

    result = mirrored(predictor, image, torch.ones(1, 3), valid, ("x", "y", "z"))

    assert torch.allclose(result, image)


def test_left_and_right_change_places_in_a_mirror_along_x_only() -> None:
    def sided(crops: Tensor, *_: object) -> Tensor:
        """Channel 1 is the half with small x, channel 2 the other, in the window's own frame."""
        left = torch.zeros_like(crops[:, :1])
        left[:, :, :4] = 1
        return torch.cat([crops[:, :1], left, 1 - left], dim=1)

    image = voxels(WINDOW)[None]
    for flips in (("x",), ("y",), ("x", "y", "z")):
        result = mirrored(sided, image, torch.ones(1, 3), None, flips, swaps=((1, 2),))

        assert torch.allclose(result, sided(image), atol=1e-6)


def test_half_precision_windows_are_added_up_in_float32() -> None:
    def predictor(crops: Tensor, *_: object) -> Tensor:
        return torch.full_like(crops, 1 / 3).bfloat16()

    result = predict(voxels((18, 21, 14)), predictor, InferenceConfig(overlap=0.75))

    assert result.dtype == torch.float32
    exact = float(torch.tensor(1 / 3).bfloat16())
    assert torch.allclose(result, torch.tensor(exact), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"overlap": 1.0}, "overlap"),
        ({"overlap": -0.1}, "overlap"),
        ({"windows_per_batch": 0}, "windows-per-batch"),
        ({"window": (8, 0, 8)}, "window"),
        ({"flips": ("x", "x")}, "flips"),
    ],
)
def test_impossible_windows_are_refused(change: dict[str, object], code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_inference(replace(InferenceConfig(), **change))

    assert caught.value.code == code


def test_logits_on_another_grid_are_a_programmers_error() -> None:
    with pytest.raises(ShapeError, match="same grid"):
        predict(voxels((9, 13, 7)), lambda crops, *_: crops[..., ::2], InferenceConfig())
