"""Readers of frozen features that say a class for every voxel: ridge regression, and neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mim3d.config.data import Triple
from mim3d.config.probe import ComparisonConfig
from mim3d.data.classes import ClassTable
from mim3d.data.store import Store
from mim3d.evaluation.overlap import Structure
from mim3d.evaluation.probes import (
    INNER_EVERY,
    ProbedTokens,
    RidgeFit,
    chosen_strength,
    neighbour_shares,
    thresholds,
)
from mim3d.foundation.randomness import generator
from mim3d.foundation.reporting import Reporter
from mim3d.objectives.linear_start import cell_shares, labels_on
from mim3d.tokens.grid import TokenGrid
from mim3d.workflows.probed_crops import cells_of
from mim3d.workflows.probing.views import SeenTokens, Views
from mim3d.workflows.tasks.segmentation import dice_by_structure

BANK = 4
"""`knn` looks among one in so many of the most patches that `linear` is fitted to."""
Guess = Callable[[Tensor], Tensor]
"""From features `n d` to scores of the classes of each cell, `n c k`; the highest one wins."""


@dataclass(frozen=True, eq=False)
class LabelledStore:
    """Label maps that are read.

    Attributes:
        store: where they are.
        classes: its table.
        structures: what is scored.
        fit: cases that readers are fitted to.
        judging: cases of other subjects.
    """

    store: Store
    classes: ClassTable
    structures: Sequence[Structure]
    fit: Sequence[str]
    judging: Sequence[str]


def read_label_maps(
    views: Views,
    asked: LabelledStore,
    readers: Sequence[str],
    config: ComparisonConfig,
    *,
    seed: int,
    reporter: Reporter,
) -> dict[tuple[str, str], NDArray[np.float64]]:
    """Dice of each judged case by reader and view: the mean over its structures.

    Args:
        views: what is read.
        asked: of whom.
        readers: `knn`, `linear` or both.
        config: how many patches and neighbours.
        seed: names the draw of the patches.
        reporter: is told how far it is.

    Returns:
        `n`, in the order of `asked.judging`; 1 where nothing is and nothing is said.
    """
    tokens = _tokens(views, asked, config.tokens, seed, reporter)
    with torch.autocast("cpu", enabled=False):
        guesses = {
            (reader, view): MAKERS[reader](fit, config)
            for view, fit in tokens.items()
            for reader in readers
        }
    found: dict[tuple[str, str], list[float]] = {key: [] for key in guesses}
    for done, case_id in enumerate(asked.judging):
        reporter.progress(done, len(asked.judging), f"reading {case_id}")
        seen = views.tokens(case_id)
        labels = _labels(asked.store, case_id)
        for (reader, view), guess in guesses.items():
            values = _dense(guess(seen.features[view]), seen, labels.shape, asked.classes.count)
            scores = dice_by_structure(
                np.asarray(asked.classes.to_value(values)), labels, asked.structures, asked.classes
            )
            found[reader, view].append(float(np.mean(list(scores.values()))) if scores else 1.0)
    return {key: np.array(values) for key, values in found.items()}


def _tokens(
    views: Views, asked: LabelledStore, most: int, seed: int, reporter: Reporter
) -> dict[str, ProbedTokens]:
    """Labelled patches of the cases to fit to, by view; of every case as large a share."""
    cells, classes = cells_of(views.patch), asked.classes.count
    subjects = sorted({asked.store.subject(case) for case in asked.fit})
    rows: dict[str, list[Tensor]] = {name: [] for name in views.names}
    shares, whose = [], []
    grids = [TokenGrid.over(_size(asked.store, case), views.patch).n for case in asked.fit]
    keep = min(1.0, most / sum(grids))
    for done, case_id in enumerate(asked.fit):
        reporter.progress(done, len(asked.fit), f"reading {case_id}")
        seen = views.tokens(case_id)
        labels = torch.from_numpy(_labels(asked.store, case_id))[None]
        known, is_known = cell_shares(
            labels_on(seen.grid, labels, None), views.patch, cells, classes
        )
        index = _index(seen)
        chosen = is_known[0, index].nonzero()[:, 0]
        order = generator(seed, "probed patches", case_id).permutation(len(chosen))
        chosen = chosen[torch.from_numpy(np.sort(order[: max(1, round(keep * len(chosen)))]))]
        for name, features in seen.features.items():
            rows[name].append(features[chosen])
        shares.append(known[0, index[chosen]])
        whose.append(torch.full((len(chosen),), subjects.index(asked.store.subject(case_id))))
    return {
        name: ProbedTokens(torch.cat(parts), torch.cat(shares), torch.cat(whose))
        for name, parts in rows.items()
    }


def _linear(fit: ProbedTokens, config: ComparisonConfig) -> Guess:
    """Predicted shares less the thresholds at which classes are as frequent as in `fit`."""
    strength, ridge = chosen_strength(fit), RidgeFit(fit)
    needed = thresholds(fit.shares, ridge.predict(fit.features, strength))

    def guess(features: Tensor) -> Tensor:
        above = ridge.predict(features, strength) - needed
        above[..., 0] = 0
        return above.float()

    return guess


def _neighbours(fit: ProbedTokens, config: ComparisonConfig) -> Guess:
    """Mean shares of the neighbours less such thresholds, by subjects of `fit` that are left out.

    A structure smaller than a patch is seldom the most of it: without thresholds all would be
    background.
    """
    every = max(1, math.ceil(len(fit.features) * BANK / config.tokens))
    bank = ProbedTokens(fit.features[::every], fit.shares[::every], fit.subjects[::every])
    needed = _needed_by_neighbours(bank, config.neighbours)

    def guess(features: Tensor) -> Tensor:
        above = neighbour_shares(bank, features, config.neighbours) - needed
        above[..., 0] = 0
        return above.float()

    return guess


def _needed_by_neighbours(bank: ProbedTokens, neighbours: int) -> Tensor:
    """Thresholds of the classes, `k`; of one subject alone half."""
    people = sorted(set(bank.subjects.tolist()))
    if len(people) < 2:
        return torch.full((bank.shares.shape[2],), 0.5, dtype=torch.float64)
    guesses = torch.zeros_like(bank.shares)
    for start in range(min(INNER_EVERY, len(people))):
        asked = torch.isin(bank.subjects, bank.subjects.new_tensor(people[start::INNER_EVERY]))
        guesses[asked] = neighbour_shares(bank.part(~asked), bank.features[asked], neighbours)
    return thresholds(bank.shares, guesses)


MAKERS: dict[str, Callable[[ProbedTokens, ComparisonConfig], Guess]] = {
    "linear": _linear,
    "knn": _neighbours,
}


def _dense(
    scores: Tensor, seen: SeenTokens, shape: tuple[int, ...], classes: int
) -> NDArray[np.int64]:
    """The class of each voxel, `x y z`: scores of cells, interpolated linearly between them.

    Patches that no window saw are air, hence background.

    Args:
        scores: `n c k`, of the patches seen.
        seen: where they lie.
        shape: of the volume.
        classes: k.
    """
    grid, cells = seen.grid, cells_of(seen.grid.patch)
    x, y, z = shape
    best = torch.full(grid.padded, -torch.inf)[:x, :y, :z]
    found = torch.zeros((x, y, z), dtype=torch.int64)
    lowest = float(scores.min()) - 1
    for place in range(classes):
        # One class at a time: the scores of all classes of a whole volume may not fit.
        whole = torch.full((grid.n, scores.shape[1]), lowest if place else 0.0)
        whole[_index(seen)] = scores[..., place]
        dense = F.interpolate(
            _arranged(whole, grid, cells)[None, None],
            grid.padded,
            mode="trilinear",
            align_corners=False,
        )[0, 0, :x, :y, :z]
        is_better = dense > best
        found[is_better] = place
        best = torch.where(is_better, dense, best)
    return found.numpy()


def _arranged(values: Tensor, grid: TokenGrid, cells: Triple) -> Tensor:
    """Values of the cells of all patches `n c`, as they lie in space."""
    return (
        values.reshape(*grid.counts, *cells)
        .permute(0, 3, 1, 4, 2, 5)
        .reshape(*(count * cell for count, cell in zip(grid.counts, cells, strict=True)))
    )


def _index(seen: SeenTokens) -> Tensor:
    """Numbers of the patches seen among all, z fastest, `n`."""
    _, gy, gz = seen.grid.counts
    return (seen.places * torch.tensor([gy * gz, gz, 1])).sum(dim=1)


def _labels(store: Store, case_id: str) -> NDArray[np.uint8]:
    with store.open(case_id) as case:
        labels = case.read((0, 0, 0), _size(store, case_id))[1]
    assert labels is not None  # these cases are labelled ones
    return labels


def _size(store: Store, case_id: str) -> Triple:
    _, x, y, z = store.entry(case_id).shape
    return x, y, z
