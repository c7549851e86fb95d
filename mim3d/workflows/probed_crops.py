"""The labelled crops that probes look at, and which of their tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mim3d.config.data import DataConfig, Triple
from mim3d.config.verbs import PretrainConfig
from mim3d.data.batch import BatchNeeds, CropBatch
from mim3d.data.feed import make_feed
from mim3d.data.splits import drawn_subjects, inner_split, pretraining_cases
from mim3d.data.store import Store
from mim3d.evaluation.probes import ProbedTokens, voxel_features
from mim3d.foundation.randomness import generator
from mim3d.objectives.linear_start import cell_shares, labels_on
from mim3d.tokens.grid import valid_box
from mim3d.tokens.patches import cut_crop

TESTED = 1 / 3
"""Share of the probed subjects, and of the crops, that a probe is scored on."""
POSSIBLE_CELLS = (2, 3, 5)
"""Cells of a token along an axis that have labels of their own."""
MOST_INTENSITIES = 2**26
"""Intensities of all crops, which are held in memory: 256 MiB. Large crops are fewer for it."""
FEWEST_CROPS = 6
MOST_TOKENS = (16_384, 8_192)
"""Labelled tokens to fit on and to score on; more are thinned at random."""


@dataclass(frozen=True)
class ProbedCrops:
    """Crops of some subjects, and which of their tokens are probed.

    Args:
        batches: the crops.
        kept: `b n` bool of each batch, the tokens that are looked at.
        shares: `n c k`, the classes of each kept token's cells.
        subjects: `n`, int64, whose it is.
        count: crops.
        people: subjects.
    """

    batches: tuple[CropBatch, ...]
    kept: tuple[Tensor, ...]
    shares: Tensor
    subjects: Tensor
    count: int
    people: int

    def tokens(self, features: Tensor) -> ProbedTokens:
        """The kept tokens' features, `n d`, with their labels."""
        return ProbedTokens(features.cpu(), self.shares, self.subjects)

    def centres_mm(self, patch: Triple) -> Tensor:
        """Where the kept tokens lie, from the centre of what is valid of their crop, `n 3`."""
        places = []
        for batch, kept in zip(self.batches, self.kept, strict=True):
            grid = cut_crop(batch.voxels, batch.valid, patch).crop.grid
            box = None if batch.valid is None else valid_box(batch.valid)
            middle = None if box is None else (box.start + box.stop) / 2
            centres = grid.centres_mm(batch.spacing_mm, middle)
            places.append(centres.expand(*kept.shape, 3)[kept])
        return torch.cat(places)

    def voxels(self, patch: Triple) -> Tensor:
        """The intensities of the kept tokens, `n p`."""
        return torch.cat([
            voxel_features(
                cut_crop(batch.voxels, batch.valid, patch).patches[kept],
                batch.voxels.shape[1],
                patch,
            )
            for batch, kept in zip(self.batches, self.kept, strict=True)
        ])  # fmt: skip


def labelled_crops(store: Store, config: PretrainConfig) -> tuple[ProbedCrops, ProbedCrops] | None:
    """Crops to fit probes on and crops of other subjects to score them on.

    They come from an inner split by subject of the training list. The subjects are the first in the
    order in which this seed draws `data.labels`.

    Returns:
        None where none are asked for, or fewer than two subjects have labels.
    """
    seed, probes = config.training.seed, config.probes
    if probes.subjects == 0:
        return None
    whole_list = replace(config.data, subjects=None)
    cases = store.labelled(pretraining_cases(store, whole_list, seed))
    subjects = {store.subject(case) for case in cases}
    if len(subjects) < 2 or store.classes is None or store.classes.count < 2:
        return None
    drawn = drawn_subjects(subjects, min(probes.subjects, len(subjects)), seed)
    lists = inner_split(store, [c for c in cases if store.subject(c) in drawn], seed, TESTED)
    held = MOST_INTENSITIES // (store.channels * math.prod(config.data.crop_size))
    crops = min(probes.crops, max(FEWEST_CROPS, held))
    tested = max(1, round(crops * TESTED))
    counts = crops - tested, tested
    fit, test = (
        _crops(store, config, listed, count, most)
        for listed, count, most in zip(lists, counts, MOST_TOKENS, strict=True)
    )
    return (fit, test) if len(fit.shares) and len(test.shares) else None


def _crops(
    store: Store, config: PretrainConfig, cases: Sequence[str], count: int, most: int
) -> ProbedCrops:
    feed = make_feed(
        store,
        cases,
        data=_around_labels(config.data),
        augmentation=config.augmentation,  # fixed crops are not augmented
        needs=BatchNeeds(labels=True),
        batch_size=min(config.training.batch_size, count),
        seed=config.training.seed,
    )
    batches = tuple(feed.fixed(count))
    assert store.classes is not None
    patch, classes = config.encoder.patch, store.classes.count
    cells = cells_of(patch)
    labelled = [_cells(batch, patch, cells, classes) for batch in batches]
    known = [where for _, where in labelled]
    kept = _thinned(known, most, config.training.seed)
    names = [[store.subject(case) for case in batch.case_ids] for batch in batches]
    numbers = {name: i for i, name in enumerate(sorted({n for batch in names for n in batch}))}
    subjects = [
        torch.tensor([numbers[name] for name in batch])[:, None].expand(where.shape)[where]
        for batch, where in zip(names, kept, strict=True)
    ]
    shares = [shares[where] for (shares, _), where in zip(labelled, kept, strict=True)]
    return ProbedCrops(batches, kept, torch.cat(shares), torch.cat(subjects), count, len(numbers))


def cells_of(patch: Triple) -> Triple:
    """Cells of a token along each axis: the fewest beyond one that divide it, or one."""
    x, y, z = (next((count for count in POSSIBLE_CELLS if edge % count == 0), 1) for edge in patch)
    return x, y, z


def _around_labels(data: DataConfig) -> DataConfig:
    """Crops around labelled voxels, so that small structures are among them, read from the disk."""
    return replace(
        data, placement="label", label_share=1.0, origin_grid=None, feed="store",
        resident_on="auto", window_cases=None, max_crops_per_visit=None, workers=0,
        crop_sizes=(),
    )  # fmt: skip


def _cells(batch: CropBatch, patch: Triple, cells: Triple, classes: int) -> tuple[Tensor, Tensor]:
    """Shares `b n c k`, and `b n` bool where every cell of a token holds labelled voxels."""
    assert batch.labels is not None
    grid = cut_crop(batch.voxels, batch.valid, patch).crop.grid
    return cell_shares(labels_on(grid, batch.labels, batch.valid), patch, cells, classes)


def _thinned(known: Sequence[Tensor], most: int, seed: int) -> tuple[Tensor, ...]:
    """At most so many of the True in all masks together, the same for the same masks."""
    flat = torch.cat([where.flatten() for where in known])
    places = flat.nonzero()[:, 0]
    order = generator(seed, "probed tokens").permutation(len(places))[:most]
    kept = torch.zeros_like(flat)
    kept[places[torch.from_numpy(np.sort(order))]] = True
    parts = torch.split(kept, [where.numel() for where in known])
    return tuple(part.reshape(where.shape) for part, where in zip(parts, known, strict=True))
