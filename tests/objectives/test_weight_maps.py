"""Weight maps stay on their place in the volume, whatever happens to the crops."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from positions import make_case, make_store
from safetensors.torch import load_file, save_file

from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.data.augment import AugmentationPlan, apply, rotation
from mim3d.data.batch import BatchNeeds, CropBatch
from mim3d.data.crop_reading import cut_crop
from mim3d.data.crops import CropPlan
from mim3d.data.feed import make_feed
from mim3d.foundation.errors import UserError
from mim3d.foundation.randomness import RandomStream, generator
from mim3d.objectives.base import Moment
from mim3d.objectives.weight_maps import VolumeGrid, WeightMaps
from mim3d.tokens.grid import TokenGrid
from tests.reliability.ranks import finished

SHAPE = (31, 23, 17)
SIZE = (11, 13, 7)
CUBE = (11, 11, 11)
ONE = (1, 1, 1)
HOT = (10, 9, 5)

TURNED = rotation(np.deg2rad((20, -35, 50)))
CHANGES = {
    "as it is": AugmentationPlan(),
    **{
        f"flip {flips}": AugmentationPlan(flips=flips)
        for flips in itertools.product((False, True), repeat=3)
        if any(flips)
    },
    **{
        f"{turns} turns {plane}": AugmentationPlan(turns=turns, plane=plane)
        for turns in (1, 2, 3)
        for plane in ((0, 1), (0, 2), (1, 2), (2, 0))
    },
    "rotation": AugmentationPlan(warp=TURNED.tolist()),
    "zoom": AugmentationPlan(warp=(np.eye(3) / 1.3).tolist()),
    "stretch": AugmentationPlan(warp=(np.eye(3) / (0.9, 1.2, 1.05)).tolist()),
    "rescale": AugmentationPlan(warp=np.diag((0.6, 0.6, 0.8)).tolist(), rescale=(0.6, 0.6, 0.8)),
    "all of it": AugmentationPlan(
        flips=(True, False, True), turns=3, plane=(0, 2), warp=(TURNED * (0.8, 1.1, 0.7)).tolist()
    ),
}


def moment(step: int = 0) -> Moment:
    return Moment(step, 10, RandomStream(0, step))


def grid_of(case) -> VolumeGrid:
    return VolumeGrid(case.shape[1:], case.affine)


def batch_of(crops, case_ids=("case",)) -> CropBatch:
    return CropBatch(
        torch.stack([crop.voxels for crop in crops]),
        torch.from_numpy(np.stack([crop.affine for crop in crops])),
        tuple(case_ids),
        torch.arange(len(crops)),
        valid=torch.stack(
            [
                torch.ones(crop.voxels.shape[1:], dtype=torch.bool)
                if crop.valid is None
                else crop.valid
                for crop in crops
            ]
        ),
    )


def changed_crop(case, change: AugmentationPlan, start, size):
    crop = cut_crop(
        case,
        CropPlan("case", start, size),
        warp=change.warp_matrix,
        rescale=change.rescale,
    )
    return apply(change, crop)


def case_showing(picture: np.ndarray):
    """A case whose voxels are the picture, in both channels."""
    case = make_case(SHAPE)
    return replace(case, stored=np.stack([picture, picture]).astype(np.int16))


def random_batch(rng: np.random.Generator, cases, patch, counts) -> tuple[CropBatch, TokenGrid]:
    """Crops somewhere in and around their cases, turned and scaled at will."""
    size = tuple(n * p for n, p in zip(counts, patch, strict=True))
    affines = []
    for case in cases:
        inner = np.eye(4)
        inner[:3, :3] = rotation(rng.uniform(-1, 1, 3)) * rng.uniform(0.7, 1.4, 3)
        inner[:3, 3] = rng.uniform(-3, 8, 3)
        affines.append(case.affine @ inner)
    batch = CropBatch(
        torch.zeros(len(cases), 1, *size),
        torch.from_numpy(np.stack(affines)),
        tuple(case.case_id for case in cases),
        torch.arange(len(cases)),
    )
    return batch, TokenGrid.over(size, patch)


# Reading


@pytest.mark.parametrize("where", [(4, 3, 2), (-3, 2, 9)], ids=["inside", "overhanging"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_map_of_voxels_shows_what_the_crop_shows_through_every_augmentation(name, where):
    # With cells and patches of one voxel, the map of a picture must be the crop of the picture.
    rng = np.random.default_rng(1)
    hot = np.zeros(SHAPE)
    hot[HOT] = 1000
    for picture in (hot, rng.integers(0, 1000, SHAPE)):
        case = case_showing(picture)
        maps = WeightMaps({"case": grid_of(case)}, ONE)
        maps.fill("case", torch.from_numpy(picture) / 100)

        change = CHANGES[name]
        crop = changed_crop(case, change, where, CUBE if change.turns else SIZE)
        batch = batch_of([crop])
        size = crop.voxels.shape[1:]
        found = maps.read(batch, TokenGrid.over(size, ONE)).values.reshape(size)

        inside = batch.valid[0]
        torch.testing.assert_close(found[inside], crop.voxels[0][inside], rtol=0, atol=1e-3)
        assert where[0] < 0 or found.max() > 1  # the hot voxel is in sight


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_token_that_holds_the_hot_cell_weighs_most(change):
    patch = (4, 3, 2)
    case = make_case(SHAPE)
    maps = WeightMaps({"case": grid_of(case)}, patch)
    hot = torch.zeros(maps.counts_of("case"))
    hot[3, 3, 3] = 1.0  # voxels 12-15, 9-11, 6-7
    maps.fill("case", hot)
    centre = case.affine @ [13.5, 10.0, 6.5, 1.0]

    size = (12, 12, 12) if change.turns else (16, 15, 10)
    crop = changed_crop(case, change, (6, 4, 1), size)
    grid = TokenGrid.over(size, patch)
    values = maps.read(batch_of([crop]), grid).values[0].double()

    # The weighted mean of the tokens' places is the hot cell's, to half a token.
    voxels = grid.centres_voxel().double().numpy() - 0.5
    places = voxels @ crop.affine[:3, :3].T + crop.affine[:3, 3]
    mean = (values[:, None].numpy() * places).sum(axis=0) / values.sum().item()
    away = np.linalg.inv(crop.affine)[:3, :3] @ (mean - centre[:3])
    assert (np.abs(away) <= np.array(patch) / 2).all()
    if change.warp is None and change.turns == 0 and not any(change.flips):
        token = np.floor((np.linalg.inv(crop.affine) @ centre)[:3] / patch).astype(int)
        assert values.reshape(grid.counts).argmax() == np.ravel_multi_index(token, grid.counts)


@pytest.mark.parametrize(
    "data",
    [{}, {"feed": "resident"}, {"feed": "resident", "resident_on": "device"}],
    ids=["store", "resident", "device"],
)
def test_maps_follow_the_crops_of_every_feed(tmp_path, data):
    # Voxels are linear in the place, so interpolation of the map must give the crop's voxels.
    store = make_store(tmp_path, [(31, 23, 17), (26, 30, 21)])
    cases = {case_id: store.open(case_id) for case_id in store.ids("training")}
    grids = {name: VolumeGrid(case.shape[1:], case.affine) for name, case in cases.items()}
    maps = WeightMaps(grids, ONE)
    for name, case in cases.items():
        maps.fill(name, torch.from_numpy(make_case(case.shape[1:]).stored[0] / 100))
    augmentation = AugmentationConfig(
        flip_axes=("x", "y", "z"),
        turn_plane=("x", "y"),
        turn_probability=0.5,
        affine_probability=0.7,
        rotation_degrees=(15, 15, 30),
        zoom=0.1,
        rescale=(0.5, 1.0),
        rescale_axes="each",
    )
    feed = make_feed(
        store,
        tuple(cases),
        data=DataConfig(crop_size=(9, 9, 7), **data),
        augmentation=augmentation,
        needs=BatchNeeds(),
        batch_size=6,
        seed=3,
    )

    for _, (batch,) in feed.batches(0, 4):
        found = maps.read(batch, TokenGrid.over((9, 9, 7), ONE))
        inside = torch.ones(batch.voxels[:, 0].shape, dtype=torch.bool)
        inside = inside if batch.valid is None else batch.valid
        values = found.values.reshape(inside.shape)
        torch.testing.assert_close(values[inside], batch.voxels[:, 0][inside], rtol=0, atol=0.02)


def test_what_nothing_is_known_of_reads_as_unknown():
    case = make_case(SHAPE)
    maps = WeightMaps({"case": grid_of(case)}, (4, 3, 2))
    crop = changed_crop(case, AugmentationPlan(), (0, 0, 0), (8, 6, 4))
    near, grid = batch_of([crop]), TokenGrid.over((8, 6, 4), (4, 3, 2))

    maps.note(near, grid, torch.full((1, 8), 3.0), moment())
    maps.update()
    far = batch_of([changed_crop(case, AugmentationPlan(), (16, 12, 8), (8, 6, 4))])

    assert maps.read(near, grid).known.all()
    assert not maps.read(far, grid).known.any()
    assert maps.read(far, grid).values.eq(0).all()


def test_a_case_without_a_map_is_named():
    maps = WeightMaps({"case": grid_of(make_case(SHAPE))}, ONE)
    crop = changed_crop(make_case(SHAPE), AugmentationPlan(), (0, 0, 0), SIZE)

    with pytest.raises(UserError, match="no weight map for the case `other`"):
        maps.read(batch_of([crop], ["other"]), TokenGrid.over(SIZE, ONE))


# Writing


def slow_means(grids, patch, steps, momentum):
    """The running means by loops over tokens and cells, and how much is known."""
    sums, evidence = {}, {}
    for name, grid in grids.items():
        counts = [-(-side // edge) for side, edge in zip(grid.shape, patch, strict=True)]
        sums[name], evidence[name] = np.zeros(counts), np.zeros(counts)
    for notes in steps:
        weight = {name: np.zeros_like(each) for name, each in sums.items()}
        total = {name: np.zeros_like(each) for name, each in sums.items()}
        for batch, tokens, values, weights in notes:
            for b, name in enumerate(batch.case_ids):
                counts = sums[name].shape
                for t, index in enumerate(itertools.product(*map(range, tokens.counts))):
                    centre = [(i + 0.5) * p - 0.5 for i, p in zip(index, tokens.patch, strict=True)]
                    mm = batch.affine[b].numpy() @ [*centre, 1.0]
                    voxel = (np.linalg.inv(grids[name].affine) @ mm)[:3]
                    place = [
                        min(max((v + 0.5) / p - 0.5, 0), n - 1)
                        for v, p, n in zip(voxel, patch, counts, strict=True)
                    ]
                    for cell in itertools.product(*map(range, counts)):
                        hats = [max(0, 1 - abs(c - x)) for c, x in zip(cell, place, strict=True)]
                        share = float(np.prod(hats)) * weights[b, t].item()
                        weight[name][cell] += share
                        total[name][cell] += share * values[b, t].item()
        for name in sums:
            kept = momentum ** weight[name]
            mean = total[name] / np.maximum(weight[name], 1e-30)
            sums[name] = kept * sums[name] + (1 - kept) * mean
            evidence[name] = kept * evidence[name] + 1 - kept
    return sums, evidence


def test_running_means_are_those_of_the_slow_formula():
    rng = np.random.default_rng(4)
    cases = [make_case((9, 8, 7), case_id="a"), make_case((11, 6, 8), case_id="b")]
    grids = {case.case_id: grid_of(case) for case in cases}
    patch = (4, 3, 2)
    maps = WeightMaps(grids, patch, momentum=0.7)

    steps = []
    for step in range(3):
        notes = []
        for counts in ((2, 2, 3), (1, 2, 2)):  # crops of two sizes
            batch, tokens = random_batch(rng, [cases[0], cases[1], cases[0]], patch, counts)
            values = torch.from_numpy(rng.normal(size=(3, tokens.n)) + 2)
            weights = torch.from_numpy(rng.uniform(0, 1, size=(3, tokens.n)))
            maps.note(batch, tokens, values, moment(step), weights=weights)
            notes.append((batch, tokens, values, weights))
        maps.update()
        steps.append(notes)
    sums, evidence = slow_means(grids, patch, steps, 0.7)

    for name in grids:
        found, known = maps.map_of(name)
        expected = sums[name] / np.maximum(evidence[name], 1e-30)
        np.testing.assert_array_equal(known.numpy(), evidence[name] >= 1e-3)
        assert known.any()
        # float32 sums of values near 2; division by evidence down to 1e-3 makes 1e-7 to 1e-4.
        np.testing.assert_allclose(found[known], expected[known.numpy()], rtol=0, atol=2e-4)


def test_tokens_that_are_cells_are_read_as_they_were_written_also_mirrored():
    patch, size = (4, 3, 2), (16, 12, 8)
    case = make_case(SHAPE)
    grid = TokenGrid.over(size, patch)
    values = torch.rand(1, grid.n, generator=torch.Generator().manual_seed(0))
    for flips in itertools.product((False, True), repeat=3):
        maps = WeightMaps({"case": grid_of(case)}, patch)
        crop = changed_crop(case, AugmentationPlan(flips=flips), (4, 3, 2), size)

        maps.note(batch_of([crop]), grid, values, moment())
        maps.update()

        # Seen again the other way round, the same numbers lie the other way round.
        torch.testing.assert_close(maps.read(batch_of([crop]), grid).values, values)
        plain = changed_crop(case, AugmentationPlan(), (4, 3, 2), size)
        seen = maps.read(batch_of([plain]), grid).values.reshape(grid.counts)
        axes = [axis for axis in range(3) if flips[axis]]
        torch.testing.assert_close(seen, values.reshape(grid.counts).flip(axes))


def test_only_the_tokens_that_are_named_are_written():
    patch, size = (4, 3, 2), (8, 6, 4)
    case = make_case(SHAPE)
    maps, grid = WeightMaps({"case": grid_of(case)}, patch), TokenGrid.over(size, patch)
    batch = batch_of([changed_crop(case, AugmentationPlan(), (0, 0, 0), size)])

    index, values = torch.tensor([[6, 1, 3]]), torch.tensor([[4.0, torch.nan, 9.0]])
    maps.note(batch, grid, values, moment(), index=index, weights=torch.tensor([[1.0, 1.0, 0.0]]))
    maps.update()

    known = maps.read(batch, grid)
    assert known.known[0].tolist() == [i == 6 for i in range(8)]
    assert known.values[0, 6] == 4


def test_looks_from_outside_and_steps_that_were_never_made_leave_nothing_behind():
    case = make_case(SHAPE)
    maps, grid = WeightMaps({"case": grid_of(case)}, ONE), TokenGrid.over(SIZE, ONE)
    batch = batch_of([changed_crop(case, AugmentationPlan(), (2, 3, 4), SIZE)])

    maps.eval().note(batch, grid, torch.ones(1, grid.n), moment(0))
    maps.update()
    maps.train().note(batch, grid, torch.full((1, grid.n), 99.0), moment(1))  # skipped
    maps.note(batch, grid, torch.ones(1, grid.n), moment(2))
    maps.update()

    assert maps.read(batch, grid).values.eq(1).all()


def test_a_mean_does_not_remember_that_it_began_at_zero_and_forgets_what_is_long_ago():
    case = make_case(SHAPE)
    maps, grid = WeightMaps({"case": grid_of(case)}, ONE, momentum=0.5), TokenGrid.over(SIZE, ONE)
    batch = batch_of([changed_crop(case, AugmentationPlan(), (2, 3, 4), SIZE)])
    seen = []
    for step, value in enumerate((4.0, 4.0, 0.0, 0.0)):
        maps.note(batch, grid, torch.full((1, grid.n), value), moment(step))
        maps.update()
        seen.append(maps.read(batch, grid).values[0, 0].item())

    # Weights 1/2, 1/4, 1/8, 1/16 from the newest on, divided by their sum.
    assert seen == pytest.approx([4, 4, 4 * (1 / 4 + 1 / 8) / (7 / 8), 4 * (3 / 16) / (15 / 16)])


def test_reading_gets_a_new_copy_once_so_many_epochs():
    case = make_case(SHAPE)
    grids = {name: grid_of(case) for name in ("case", "b", "c", "d")}
    maps = WeightMaps(grids, ONE, momentum=0.0, refresh_epochs=0.5)  # every 2 crops
    grid = TokenGrid.over(SIZE, ONE)
    batch = batch_of([changed_crop(case, AugmentationPlan(), (2, 3, 4), SIZE)])
    seen = []
    for step in range(6):  # one crop a step
        maps.note(batch, grid, torch.full((1, grid.n), step + 1.0), moment(step))
        maps.update()
        seen.append(maps.read(batch, grid).values[0, 0].item())

    assert seen == [0, 2, 2, 4, 4, 6]
    other = WeightMaps(grids, ONE, momentum=0.0, refresh_epochs=0.5)
    other.load_state_dict(maps.state_dict())
    assert other.read(batch, grid).values.eq(6).all()
    assert set(maps.state_dict()) == {"sums", "evidence", "read_sums", "read_evidence", "period"}


def test_the_order_of_micro_batches_and_their_number_change_no_bit():
    rng = np.random.default_rng(5)
    cases = [make_case((9, 8, 7), case_id=name) for name in "abab"]
    batch, tokens = random_batch(rng, cases, (4, 3, 2), (3, 2, 2))
    values = torch.from_numpy(rng.normal(size=(4, tokens.n))).float()
    states = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        maps = WeightMaps({case.case_id: grid_of(case) for case in cases[:2]}, (4, 3, 2))
        for parts in ([order], [order[:1], order[1:]]):
            for part in parts:
                some = replace(
                    batch,
                    affine=batch.affine[part],
                    case_ids=tuple(batch.case_ids[i] for i in part),
                )
                maps.note(some, tokens, values[part], moment())
            maps.update()
        states.append(maps.state_dict())

    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_volumes_of_one_voxel_along_z_have_maps():
    affine = np.diag([0.5, 0.7, 1.0, 1.0])
    maps = WeightMaps({"case": VolumeGrid((20, 12, 1), affine)}, (4, 4, 1))
    batch = CropBatch(
        torch.zeros(1, 1, 20, 12, 1), torch.from_numpy(affine)[None], ("case",), torch.arange(1)
    )
    grid = TokenGrid.over((20, 12, 1), (4, 4, 1))
    values = torch.arange(15.0)[None]

    maps.note(batch, grid, values, moment())
    maps.update()

    torch.testing.assert_close(maps.read(batch, grid).values, values)


def note_shares(folder: Path) -> None:
    """Four crops a step, of which the processes note equal shares; ten tokens at most of each."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")
    cases = [make_case((19, 18, 17), case_id=name) for name in "abba"]
    grids = {case.case_id: VolumeGrid(case.shape[1:], case.affine) for case in cases[:2]}
    maps = WeightMaps(grids, (4, 3, 2), refresh_epochs=3)
    for step in range(4):
        for index in range(4):
            rng = generator(step, index)
            batch, tokens = random_batch(rng, [cases[index]], (4, 3, 2), (3, 2, 2))
            values = torch.from_numpy(rng.normal(size=(1, tokens.n)))
            if index // (4 // world) == rank:
                # Crops tell of more tokens from one to the next, so do the processes.
                some = torch.arange(3 + 2 * index)[None]
                maps.note(batch, tokens, values[:, : some.shape[1]], moment(step), index=some)
        maps.update()
    folder.mkdir(exist_ok=True)
    save_file(dict(maps.state_dict()), folder / f"rank_{rank}.safetensors")
    if world > 1:
        dist.destroy_process_group()


def test_two_processes_hold_the_same_maps_as_one_to_the_bit(tmp_path):
    for world in (1, 2):
        finished(partial(note_shares, tmp_path / str(world)), world)

    alone = load_file(tmp_path / "1" / "rank_0.safetensors")
    assert alone["sums"].abs().sum() > 0
    for rank in (0, 1):
        ours = load_file(tmp_path / "2" / f"rank_{rank}.safetensors")
        assert all(torch.equal(ours[name], tensor) for name, tensor in alone.items())
