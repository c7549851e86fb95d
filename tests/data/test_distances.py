"""Shapes as signed distances, against all pairs of voxels."""

from __future__ import annotations

import numpy as np
import pytest

from mim3d.config.verbs import PreparationConfig
from mim3d.data.prepare.distances import signed_distances
from mim3d.data.prepare.keys import noted
from mim3d.data.prepare.volume import VolumeRule, prepare_volume
from mim3d.data.volume import Volume
from mim3d.foundation.errors import VolumeError

SPACING = (1.0, 0.7, 2.5)


def _shape() -> np.ndarray:
    x, y, z = np.meshgrid(np.arange(11), np.arange(13), np.arange(7), indexing="ij")
    inside = ((x - 4) / 3) ** 2 + ((y - 7) / 4) ** 2 + ((z - 3) / 2) ** 2 <= 1
    inside[8, 3:9, 2] = True
    return inside


def _volume(voxels: np.ndarray) -> Volume:
    return Volume.from_array(voxels, np.diag([*SPACING, 1.0]))


def _slow(inside: np.ndarray, most: float) -> np.ndarray:
    places = np.argwhere(np.ones_like(inside)) * SPACING
    kinds = inside.ravel()
    between = np.linalg.norm(places[:, None] - places[None], axis=-1)
    nearest = np.where(kinds[:, None] != kinds[None], between, np.inf).min(axis=1)
    return np.where(kinds, nearest, -nearest).clip(-most, most).reshape(inside.shape)


@pytest.mark.parametrize("values", [(0, 255), (-3, 1)])
def test_each_voxel_holds_the_way_to_the_nearest_of_the_other_kind(values):
    inside = _shape()
    voxels = np.where(inside, values[1], values[0]).astype(np.int16)[None]

    found = signed_distances(_volume(voxels), 3.0)

    np.testing.assert_allclose(found.voxels[0], _slow(inside, 3.0), rtol=1e-6)


@pytest.mark.parametrize(("scale", "low"), [("signed", -1), ("range", 0)])
def test_a_store_holds_them_from_minus_1_to_1_and_one_of_old_from_0(scale, low):
    """What lies outside is air in both."""
    inside = _shape()
    stored = {"modalities": ["other"], "crop_to_body": False, "distance_mm": 4.0}
    rule = VolumeRule.from_json(stored | ({} if scale == "range" else {"distance_scale": scale}))

    case = prepare_volume(_volume(inside.astype(np.uint8)[None]), rule)

    (factor,), (offset,), (normalisation,) = case.scale, case.offset, case.normalisation
    held = normalisation.apply(case.voxels[0] * np.float32(factor) + np.float32(offset))
    share = (_slow(inside, 4.0) + 4) / 8
    np.testing.assert_allclose(held, low + (1 - low) * share, atol=2e-3)
    assert normalisation.air == 0
    assert case.facts["body_share"] == pytest.approx(inside.mean())


def test_preparations_of_distances_say_how_they_are_scaled():
    assert noted(PreparationConfig(distance_mm=4.0))["distance_scale"] == "signed"
    assert "distance_scale" not in noted(PreparationConfig())


def test_volumes_of_more_than_two_values_are_no_shapes():
    voxels = _shape().astype(np.int16)[None]
    voxels[0, 0, 0, 0] = 7

    with pytest.raises(VolumeError, match="3 different value"):
        signed_distances(_volume(voxels), 4.0)
    with pytest.raises(VolumeError, match="1 different value"):
        signed_distances(_volume(np.zeros_like(voxels)), 4.0)
