"""The sliding window against MONAI's and a slow one, and what a window's network is told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from mim3d.config.inference import InferenceConfig
from mim3d.foundation.errors import ShapeError
from mim3d.inference.sliding_window import mirrored, slabs, slide
from mim3d.inference.windows import WindowCount, plan_sweep, window_starts, window_weights

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


def test_logits_on_another_grid_are_a_programmers_error() -> None:
    with pytest.raises(ShapeError, match="same grid"):
        predict(voxels((9, 13, 7)), lambda crops, *_: crops[..., ::2], InferenceConfig())


def whole(image: Tensor, network: nn.Module, overlap: float, weights: str) -> tuple[Tensor, Tensor]:
    """The slow way: sums of weighted logits and of weights over the whole padded volume."""
    sweep = plan_sweep(tuple(image.shape[1:]), WINDOW, overlap)
    padded = torch.zeros((len(image), *sweep.size))
    padded[(slice(None), *sweep.inside)] = image
    single = len(sweep.starts) == 1
    weight = window_weights(WINDOW, "constant" if single else weights)
    total, mass = torch.zeros((3, *sweep.size)), torch.zeros(sweep.size)
    for start in window_starts(sweep.size, WINDOW, overlap):
        box = sweep.box(start)
        total[(slice(None), *box)] += network(padded[(slice(None), *box)][None])[0] * weight
        mass[box] += weight
    return total[(slice(None), *sweep.inside)], mass[sweep.inside]


SIZES = [(11, 13, 7), (29, 12, 13), (9, 47, 8), (10, 11, 40), (5, 31, 6), (3, 4, 5)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0.0, 0.125, 0.5, 0.8])
@pytest.mark.parametrize("weights", ["gaussian", "constant"])
def test_slabs_are_consecutive_rows_of_the_whole_volumes_sums(
    size: tuple[int, int, int], overlap: float, weights: str
) -> None:
    """Caught: rows of the ring not cleared, the part that goes round put one row aside."""
    image, network = voxels(size), Context()
    config = InferenceConfig(overlap=overlap, weights=weights, windows_per_batch=3)
    sweep = plan_sweep(size, WINDOW, overlap)
    sums, masses, rows = [], [], 0

    with torch.no_grad():
        for slab in slabs(image, network, config, sweep, spacing_mm=SPACING, with_mass=True):
            assert slab.first == rows
            assert slab.mass is not None
            rows += slab.sums.shape[1 + sweep.axis]
            sums.append(slab.sums.clone())
            masses.append(slab.mass.clone())
        total, mass = whole(image, network, overlap, weights)

    assert torch.allclose(torch.cat(sums, 1 + sweep.axis), total, atol=2e-5)
    assert torch.allclose(torch.cat(masses, sweep.axis), mass, atol=1e-6)


def test_no_more_rows_are_held_than_a_window_is_deep() -> None:
    size = (64, 12, 13)
    sweep = plan_sweep(size, WINDOW, 0.5)
    storages = set()

    with torch.no_grad():
        for slab in slabs(voxels(size), Context(), InferenceConfig(), sweep, spacing_mm=SPACING):
            assert slab.mass is None
            storages.add(slab.sums.untyped_storage().nbytes())

    assert storages == {4 * 3 * 8 * 12 * 13}


def test_rows_that_no_window_touches_are_zero_and_nothing_is_left_out() -> None:
    size = (60, 10, 6)
    body = np.zeros(size, bool)
    body[:2] = body[-2:] = True
    sweep = plan_sweep(size, WINDOW, 0.5, body)
    assert sweep.count == WindowCount(2, 12)

    def ones(crops: Tensor, *_: object) -> Tensor:
        return torch.ones_like(crops)

    parts = [
        (slab.sums.clone(), slab.mean(torch.tensor([0.0, -7.0])).clone())
        for slab in slabs(
            voxels(size), ones, InferenceConfig(), sweep, spacing_mm=SPACING, with_mass=True
        )
    ]

    sums, means = (torch.cat(some, dim=1) for some in zip(*parts, strict=True))
    assert sums.shape == (2, *size)
    assert (sums[:, 8:52] == 0).all()
    assert (sums[:, :8] > 0).all()
    assert torch.allclose(means[:, :8], torch.ones(()))
    assert torch.allclose(means[:, 52:], torch.ones(()))
    assert (means[0, 8:52] == 0).all()
    assert (means[1, 8:52] == -7).all()


@pytest.mark.parametrize("flips", [("x",), ("y", "z"), ("x", "y", "z")])
@pytest.mark.parametrize("windows", [1, 3, 4, 8, 21])
def test_mirrored_windows_share_batches_within_the_limit(
    flips: tuple[str, ...], windows: int
) -> None:
    image, network = voxels((19, 12, 13)), Context()
    seen: list[int] = []

    def predictor(crops: Tensor, spacing_mm: Tensor, _: Tensor | None) -> Tensor:
        assert len(spacing_mm) == len(crops)
        seen.append(len(crops))
        return network(crops)

    config = InferenceConfig(flips=flips, windows_per_batch=windows)
    found = predict(image, predictor, config)

    expected = predict(image, network, replace(config, windows_per_batch=1))
    assert torch.allclose(found, expected, atol=1e-5)
    total = len(plan_sweep((19, 12, 13), WINDOW, 0.5).starts) << len(flips)
    assert sum(seen) == total
    assert max(seen) <= windows
    # No batch is left half empty but for the last of each group of windows.
    assert len(seen) <= -(-total // windows) * 2


def test_padding_is_zero_in_what_the_network_sees_of_stored_voxels() -> None:
    stored = voxels((5, 10, 4)).mul(50).to(torch.int16)

    def predictor(crops: Tensor, _: Tensor, valid: Tensor | None) -> Tensor:
        assert valid is not None
        assert (crops[~valid[:, None].expand_as(crops)] == 0).all()
        return crops

    sweep = plan_sweep((5, 10, 4), WINDOW, 0.5)
    found = [
        slab.sums.clone()
        for slab in slabs(
            stored, predictor, InferenceConfig(), sweep, spacing_mm=SPACING,
            as_seen=lambda crops: crops.float() + 1000,
        )
    ]  # fmt: skip

    assert torch.equal(found[0], stored.float() + 1000)


def test_nothing_asks_the_device_for_a_number_while_windows_run() -> None:
    """On the `meta` device any read of a value raises; all but the network runs on it."""
    image = torch.empty((2, 29, 12, 13), device="meta")
    config = InferenceConfig(flips=("x",), overlap=0.25)
    sweep = plan_sweep((29, 12, 13), WINDOW, 0.25)
    rows = 0

    for slab in slabs(
        image, lambda crops, *_: crops, config, sweep, spacing_mm=SPACING,
        with_mass=True, swaps=((0, 1),),
    ):  # fmt: skip
        assert slab.mean().device.type == "meta"
        rows += slab.sums.shape[1]

    assert rows == 29
