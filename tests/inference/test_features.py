"""Features of whole volumes: one a patch, of the right patch, in the right place."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from mim3d.config.encoder import EncoderConfig
from mim3d.config.inference import InferenceConfig
from mim3d.foundation.errors import ConfigError
from mim3d.inference.features import TokenReader, VolumeFeatures, aligned_sweep, encode_volume
from mim3d.inference.seen import Seen
from mim3d.models.vit import VolumeViT
from mim3d.tokens.grid import TokenGrid

SHAPE, PATCH = (23, 19, 11), (4, 5, 3)
SPACING = (0.7, 1.3, 2.1)
AFFINE = np.array([[0, -1.3, 0, 5], [0.7, 0, 0, -8], [0, 0, 2.1, 3], [0, 0, 0, 1]], np.float64)


def volume() -> torch.Tensor:
    return torch.arange(2 * np.prod(SHAPE), dtype=torch.float32).reshape(2, *SHAPE)


def patch_means(voxels, spacing_mm, valid):
    """A reader whose feature of a patch is its mean over valid voxels, by slow loops."""
    b, _, x, y, z = voxels.shape
    counts = [-(-side // edge) for side, edge in zip((x, y, z), PATCH, strict=True)]
    rows = torch.zeros(b, np.prod(counts), 3)
    for one in range(b):
        for row, place in enumerate(itertools.product(*map(range, counts))):
            box = tuple(slice(i * edge, (i + 1) * edge)
                        for i, edge in zip(place, PATCH, strict=True))  # fmt: skip
            known = torch.ones(x, y, z, dtype=torch.bool) if valid is None else valid[one]
            inside = voxels[(one, slice(None), *box)][:, known[box]]
            rows[one, row, :2] = inside.mean(dim=1) if inside.numel() else torch.nan
            rows[one, row, 2] = spacing_mm[one].prod()
    return rows


@pytest.mark.parametrize("window", [(8, 10, 6), (9, 8, 4), (40, 40, 40), (4, 5, 3)])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_each_patch_of_the_volume_has_the_feature_of_its_own_voxels(window, overlap):
    seen = Seen(volume(), AFFINE)

    found = encode_volume(
        seen, patch_means, InferenceConfig(overlap=overlap, windows_per_batch=3),
        patch=PATCH, window=window, device="cpu",
    )  # fmt: skip

    assert found.grid.counts == (6, 4, 4)
    assert len(found.patches) == 96
    for place, row in zip(found.places.tolist(), found.patches, strict=True):
        box = tuple(slice(i * edge, (i + 1) * edge) for i, edge in zip(place, PATCH, strict=True))
        # float32 means of numbers up to 9614, some taken twice
        torch.testing.assert_close(row[:2], volume()[(slice(None), *box)].mean((1, 2, 3)))
        assert row[2] == pytest.approx(0.7 * 1.3 * 2.1)


def test_windows_without_body_leave_their_patches_out():
    body = np.zeros(SHAPE, bool)
    body[13, 17, 2] = True  # in patch (3, 3, 0), hence in the window of patches 2..3, 2..3, 0..1
    seen = Seen(volume(), AFFINE, body=body)

    found = encode_volume(
        seen, patch_means, InferenceConfig(overlap=0), patch=PATCH, window=(8, 10, 6), device="cpu"
    )  # fmt: skip

    expected = sorted(itertools.product((2, 3), (2, 3), (0, 1)))
    assert [tuple(place) for place in found.places.tolist()] == expected


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_where_air_is_dropped_patches_without_body_are_padding_and_have_no_feature(overlap):
    body = np.zeros(SHAPE, bool)
    body[13, 17, 2] = body[2, 3, 1] = body[5, 3, 1] = (
        True  # patches (3, 3, 0), (0, 0, 0), (1, 0, 0)
    )
    seen, shown = Seen(volume(), AFFINE, body=body), []

    def read(voxels, spacing_mm, valid):
        shown.append(valid)
        return patch_means(voxels, spacing_mm, valid)

    found = encode_volume(
        seen, read, InferenceConfig(overlap=overlap, windows_per_batch=3),
        patch=PATCH, window=(24, 20, 12), device="cpu", drop_air=True,
    )  # fmt: skip

    assert [tuple(place) for place in found.places.tolist()] == [(0, 0, 0), (1, 0, 0), (3, 3, 0)]
    for place, row in zip(found.places.tolist(), found.patches, strict=True):
        box = tuple(slice(i * edge, (i + 1) * edge) for i, edge in zip(place, PATCH, strict=True))
        torch.testing.assert_close(row[:2], volume()[(slice(None), *box)].mean((1, 2, 3)))
    (valid,) = shown
    assert int(valid.sum()) == 3 * np.prod(PATCH) - 4 * 3  # (3, 3, 0) ends where the volume ends


def test_a_volume_is_pooled_as_a_classifier_pools_it():
    features = VolumeFeatures(
        torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.zeros(2, 3), TokenGrid.over(SHAPE, PATCH)
    )

    assert features.pooled("mean").tolist() == [2.0, 5.0]
    assert features.pooled("statistics").tolist() == pytest.approx([2.0, 5.0, 1.0, 0.001])
    with pytest.raises(ConfigError, match="class token"):
        features.pooled("class_token")


def test_middles_in_millimetres_are_those_of_the_patches_own_voxels():
    seen = Seen(volume(), AFFINE)
    found = encode_volume(
        seen, patch_means, InferenceConfig(overlap=0), patch=PATCH, window=(8, 10, 6), device="cpu"
    )  # fmt: skip

    centres = found.centres_mm(AFFINE)

    row = [tuple(place) for place in found.places.tolist()].index((2, 1, 3))
    voxels = itertools.product(range(8, 12), range(5, 10), range(9, 12))
    points = np.array([[*voxel, 1] for voxel in voxels]) @ AFFINE.T
    np.testing.assert_allclose(centres[row], points[:, :3].mean(axis=0), rtol=1e-12)


def test_of_one_window_the_features_are_the_encoders_own():
    torch.manual_seed(0)
    config = EncoderConfig(width=24, depth=2, heads=2, patch=PATCH, channels=2, class_token=True)
    encoder = VolumeViT(config).eval()
    voxels = torch.randn(2, 16, 10, 9)
    affine = np.diag([*SPACING, 1.0])

    with torch.no_grad():
        found = encode_volume(
            Seen(voxels, affine), TokenReader(encoder), InferenceConfig(overlap=0),
            patch=PATCH, window=(16, 10, 9), device="cpu",
        )  # fmt: skip
        states = encoder(voxels[None], SPACING)

    torch.testing.assert_close(found.patches, states.tokens[0])
    torch.testing.assert_close(found.class_token, states.prefix[0, 0])
    torch.testing.assert_close(found.mean, states.tokens[0].mean(dim=0))


def test_a_volume_smaller_than_the_window_has_the_features_of_the_volume_alone():
    torch.manual_seed(0)
    config = EncoderConfig(width=24, depth=2, heads=2, patch=PATCH, channels=2)
    encoder = VolumeViT(config).eval()
    voxels = torch.randn(2, 13, 10, 9)
    affine = np.diag([*SPACING, 1.0])

    with torch.no_grad():
        found = encode_volume(
            Seen(voxels, affine), TokenReader(encoder), InferenceConfig(overlap=0),
            patch=PATCH, window=(30, 21, 20), device="cpu",
        )  # fmt: skip
        alone = encoder(voxels[None], SPACING).tokens[0]

    torch.testing.assert_close(found.patches, alone, atol=2e-5, rtol=1e-4)  # float32, other sums


def test_the_class_token_is_the_mean_over_windows():
    class Counting:
        made = 0

        def __call__(self, voxels, spacing_mm, valid):
            rows = torch.zeros(len(voxels), 1 + 2 * 2 * 2, 1)
            for row in rows:
                row[0] = self.made
                self.made += 1
            return rows

    found = encode_volume(
        Seen(volume(), AFFINE), Counting(), InferenceConfig(overlap=0),
        patch=PATCH, window=(8, 10, 6), device="cpu",
    )  # fmt: skip

    assert found.class_token == pytest.approx(np.mean(range(3 * 2 * 2)))


def test_windows_lie_on_whole_patches_and_cover_the_volume():
    for window, overlap in itertools.product([(7, 10, 6), (12, 12, 12)], [0.0, 0.3, 0.6]):
        sweep = aligned_sweep(SHAPE, window, PATCH, overlap)
        first = [side.start for side in sweep.inside]
        covered = np.zeros(sweep.size, bool)
        for start in sweep.starts:
            assert all((s - f) % p == 0 for s, f, p in zip(start, first, PATCH, strict=True))
            covered[sweep.box(start)] = True
        assert covered[sweep.inside].all()
