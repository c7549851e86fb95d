"""What readers of frozen features are given, beside slow loops over the stored voxels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from mim3d.config.data import DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.inference import InferenceConfig
from mim3d.data.phantom import PhantomRule, make_cohort
from mim3d.data.store import Store, open_store
from mim3d.evaluation.probes import position_features
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.reporting import Silent
from mim3d.tokens.grid import TokenGrid
from mim3d.workflows.frozen import load_encoder
from mim3d.workflows.prepare import prepare
from mim3d.workflows.probed_crops import cells_of
from mim3d.workflows.probing.label_maps import _dense
from mim3d.workflows.probing.trained import random_run
from mim3d.workflows.probing.views import RANDOM, RUN, VOXELS, SeenTokens, Views

PATCH = (4, 5, 3)
RULE = PhantomRule(shape=(14, 13, 9), spacing_mm=(1.5, 1.2, 3.0), organs=1, tumour=False)
WINDOWS = InferenceConfig(overlap=0.5, skip_air=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("views")
    make_cohort(folder / "cohort", seed=1, training=2, validation=1, rule=RULE)
    prepare(str(folder / "cohort"), out=str(folder / "store"), reporter=Silent())
    return open_store(folder / "store")


@pytest.fixture(scope="module")
def views(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Views:
    folder = tmp_path_factory.mktemp("runs")
    encoder = EncoderConfig(width=24, depth=2, heads=2, patch=PATCH, channels=1,
                            default_spacing_mm=(1, 1, 1))  # fmt: skip
    encoders = {
        name: load_encoder(random_run(folder / str(seed), encoder, DataConfig(), seed),
                           device="cpu", precision="fp32")
        for seed, name in enumerate((RUN, RANDOM))
    }  # fmt: skip
    return Views(encoders, store, store.ids("training"), WINDOWS, window=(8, 10, 6))


def stored(store: Store, case_id: str) -> np.ndarray:
    with store.open(case_id) as case:
        return case.read_normalised((0, 0, 0), case.shape[1:])


def test_all_views_are_of_the_same_patches_and_none_of_another_views_numbers(views, store):
    seen = views.tokens(store.ids()[0])

    assert set(seen.features) == {RUN, RANDOM, VOXELS}
    assert {len(rows) for rows in seen.features.values()} == {len(seen.places)} == {seen.grid.n}
    assert not torch.allclose(seen.features[RUN], seen.features[RANDOM], atol=0.1)


def test_raw_voxels_of_a_patch_are_its_intensities_and_its_place(views, store):
    case_id = store.ids()[0]
    volume, spacing = stored(store, case_id), store.entry(case_id).spacing_mm
    shape = volume.shape[1:]
    padded = np.zeros((1, *TokenGrid.over(shape, PATCH).padded), np.float32)
    padded[(slice(None), *map(slice, shape))] = volume
    seen = views.tokens(case_id)
    entries = [store.entry(case) for case in store.ids("training")]
    reach = max(n * edge / 2 for one in entries
                for n, edge in zip(one.shape[1:], one.spacing_mm, strict=True))  # fmt: skip

    for place, row in zip(seen.places.tolist(), seen.features[VOXELS], strict=True):
        box = tuple(slice(i * p, (i + 1) * p) for i, p in zip(place, PATCH, strict=True))
        np.testing.assert_allclose(row[:60], padded[(0, *box)].ravel(), rtol=1e-6)
        middle = [((i + 0.5) * p - n / 2) * mm
                  for i, p, n, mm in zip(place, PATCH, shape, spacing, strict=True)]  # fmt: skip
        extent = torch.full((3,), -reach), torch.full((3,), reach)
        where = position_features(torch.tensor([middle]), extent)[0]
        np.testing.assert_allclose(row[60:], where, atol=1e-5)


def test_a_whole_volume_of_raw_voxels_is_a_grid_of_means_of_one_length(views, store):
    vectors = [views.volume(case_id) for case_id in store.ids()]

    x, y, z = views.boxes
    assert x * y * z <= 1024
    assert {len(one[VOXELS]) for one in vectors} == {x * y * z}
    volume = stored(store, store.ids()[0])[0]
    low = [slice(0, -(-side // count)) for side, count in zip(volume.shape, (x, y, z), strict=True)]
    assert vectors[0][VOXELS][0] == pytest.approx(volume[tuple(low)].mean(), rel=1e-4)


def test_a_class_token_that_is_not_there_cannot_stand_for_a_volume(views, store):
    with pytest.raises(ConfigError, match="class token"):
        Views(views.encoders, store, store.ids(), WINDOWS, window=(8, 10, 6), pool="class_token")


def test_voxels_take_the_class_of_cells_interpolated_linearly_between_their_middles():
    random = np.random.default_rng(0)
    shape, k = (14, 13, 8), 3
    grid, cells = TokenGrid.over(shape, (4, 6, 3)), cells_of((4, 6, 3))
    assert cells == (2, 2, 3)
    scores = random.random((grid.n, 12, k)).astype(np.float32)
    fine = [count * cell for count, cell in zip(grid.counts, cells, strict=True)]
    arranged = np.zeros((*fine, k), np.float32)
    for n, place in enumerate(itertools.product(*map(range, grid.counts))):
        for c, cell in enumerate(itertools.product(*map(range, cells))):
            spot = tuple(i * m + j for i, m, j in zip(place, cells, cell, strict=True))
            arranged[spot] = scores[n, c]
    axes = [(np.arange(side) + 0.5) * count / whole - 0.5
            for side, count, whole in zip(shape, fine, grid.padded, strict=True)]  # fmt: skip
    where = np.meshgrid(*axes, indexing="ij")
    dense = np.stack([map_coordinates(arranged[..., c], where, order=1, mode="nearest")
                      for c in range(k)])  # fmt: skip

    seen = SeenTokens({}, grid.indices(), grid)
    found = _dense(torch.from_numpy(scores), seen, shape, k)

    gap = np.sort(dense, axis=0)
    clear = gap[-1] - gap[-2] > 1e-5  # where two classes are level, rounding decides
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found[clear], dense.argmax(0)[clear])


def test_patches_that_no_window_saw_are_background():
    grid = TokenGrid.over((8, 8, 8), (4, 4, 4))
    places = grid.indices()[:4]  # x below 4
    scores = torch.zeros(4, 8, 2)
    scores[..., 1] = 5

    found = _dense(scores, SeenTokens({}, places, grid), (8, 8, 8), 2)

    assert (found[:3] == 1).all()
    assert (found[5:] == 0).all()
