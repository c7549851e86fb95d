"""What a network is shown: bit for bit training's numbers, and the package's own body."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mim3d.data.body import body_mask, find_air
from mim3d.data.prepare.volume import VolumeRule, prepare_volume
from mim3d.data.volume import Volume
from mim3d.inference.seen import body_of, normaliser, seen_volume
from mim3d.inference.segmenter import Segmenter


def volume(kind: str) -> Volume:
    """Two channels with another scale each: HU, whole numbers beyond int16, or fractions."""
    random = np.random.default_rng(3)
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (33, 21, 17)], indexing="ij"))
    inside = (places**2).sum(0) < 0.7
    first = np.where(inside, random.normal(60, 90, inside.shape), -1000)
    air = -1000 if kind == "ct" else 0
    second = np.where(inside, random.normal(300, 40, inside.shape), air)
    voxels = np.stack([first, second])
    if kind == "ct":
        voxels = voxels.round().astype(np.int16)
    elif kind == "large":
        voxels = (voxels.round() + 40_000).astype(np.int32)
    else:
        voxels = voxels.astype(np.float32) / 7
    return Volume.from_array(voxels, np.diag([1.2, 0.9, 2.5, 1.0]))


RULES = {
    "ct": VolumeRule(modalities=("ct", "ct"), window_hu=(-175.0, 250.0)),
    "large": VolumeRule(modalities=("mr", "mr")),
    "fractions": VolumeRule(modalities=("mr", "other"), spacing_mm=(1.0, 1.0, 2.0)),
}


@pytest.mark.parametrize("kind", RULES)
def test_windows_hold_to_the_bit_what_training_saw(kind: str) -> None:
    """Caught: scale and offset applied in float64."""
    prepared = prepare_volume(volume(kind), RULES[kind])
    box = (slice(None), slice(3, 19), slice(2, 12), slice(1, 9))

    found = normaliser(prepared)(torch.from_numpy(prepared.voxels[box])[None])

    assert np.array_equal(found[0].numpy(), prepared.normalised[box])


@pytest.mark.parametrize("kind", RULES)
def test_the_body_is_that_of_the_package_on_the_networks_grid(kind: str) -> None:
    given = volume(kind)
    prepared = prepare_volume(given, RULES[kind])
    airs = tuple(
        find_air(channel, modality)
        for channel, modality in zip(given.voxels, RULES[kind].modalities, strict=True)
    )

    body = body_of(prepared)

    assert np.array_equal(body, body_mask(prepared.intensities, airs))
    assert 0.1 < body.mean() < 0.9 or kind == "large"


def test_without_a_rule_voxels_are_as_they_are_and_nothing_is_air() -> None:
    given = volume("ct")

    seen = seen_volume(given, Segmenter(torch.nn.Identity(), (8, 8, 8)))

    assert seen.body is None
    assert seen.as_seen is None
    assert np.array_equal(seen.voxels.numpy(), given.voxels)
    assert seen.voxels.dtype == torch.float32


def test_the_volume_goes_to_the_device_as_int16() -> None:
    model = Segmenter(torch.nn.Identity(), (8, 8, 8), rule=RULES["ct"])

    seen = seen_volume(volume("ct"), model)

    assert seen.voxels.dtype == torch.int16
    assert seen.body is not None
    assert seen_volume(volume("ct"), model, wants_body=False).body is None
