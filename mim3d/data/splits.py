"""Who trains and who judges: lists by subject, drawn from hashes and seeds, never from order.

A case is labelled if it has a label map; where targets are learned, if it has all of those.
A subject's place is a number in [0, 1) made of its id alone, so that adding subjects moves nobody.
Validation is what lies below `validation_fraction`; fold k of 5 is the k-th fifth. Only the inner
folds, by which rates are chosen, are cut by rank: a short training list must not leave one empty.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from fractions import Fraction
from math import ceil
from typing import Literal

from mim3d.config.data import DataConfig
from mim3d.data.store.entry import StoreEntry
from mim3d.data.store.folder import Store
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.randomness import generator

FOLDS = 5
EMPTY_FOLD = "empty-fold"
"""Code of the error that nobody is in a fold."""
LEAST_SUBJECTS = 2
"""Fewest subjects a fraction of labels gives."""


def place(subject_id: str) -> float:
    """The subject's place in [0, 1): SHA-256 of its id."""
    raw = hashlib.sha256(f"mim3d split {subject_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(raw[:6], "big") / 2**48


def held_out(subjects: Iterable[str], fraction: float) -> frozenset[str]:
    """The subjects for validation: those whose place lies below `fraction`.

    Of two subjects or more at least one is held out and one stays, whatever their places.
    """
    ordered = sorted(set(subjects), key=lambda subject: (place(subject), subject))
    if fraction <= 0 or len(ordered) < 2:
        return frozenset()
    count = sum(place(subject) < fraction for subject in ordered)
    return frozenset(ordered[: min(max(count, 1), len(ordered) - 1)])


def fold_of(subject_id: str) -> int:
    """The fold, 0 to 4, whose validation list the subject is in."""
    return int(place(subject_id) * FOLDS)


def pretraining_cases(store: Store, data: DataConfig, seed: int) -> tuple[str, ...]:
    """Cases to pre-train on, with labels or without; never those that judge.

    With `data.fold` the subjects of that fold are left out, and the stored validation list is not;
    with `data.inner_fold` those of that fifth are left out too. It is not known what will be
    learned later: those that judge label maps are left out, and those that judge any target.

    Args:
        store: the prepared cohort.
        data: `subjects` is a number of subjects or a fraction of them.
        seed: names the draw of subjects; the draws of one seed are nested in each other.

    Raises:
        UserError: none.
        ConfigError: fewer subjects than asked for.
    """
    judging = _others_judges(store, data)
    parts = ("training",) if data.fold is None else ("training", "validation")
    chosen = tuple(
        e.case_id for e in _entries(store) if e.part in parts and e.subject_id not in judging
    )
    _some(chosen, store, "no training case")
    drawn = drawn_subjects(map(store.subject, chosen), data.subjects, seed, "subjects")
    return tuple(case for case in chosen if store.subject(case) in drawn)


def training_cases(
    store: Store, data: DataConfig, seed: int, targets: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Labelled cases to fine-tune on.

    Args:
        store: the prepared cohort.
        data: `labels` is a number of subjects or a fraction of them; `fold` replaces the stored
            lists; the subjects of `inner_fold` are left out.
        seed: names the draw of subjects; the draws of one seed are nested in each other.
        targets: numbers of whole cases that are learned, by name; none is label maps.

    Raises:
        UserError: none, or fewer labelled subjects than asked for.
    """
    choosing = _choosing_subjects(store, data, targets)
    labelled = _labelled(store, data, targets)
    pool = tuple(case for case in labelled if store.subject(case) not in choosing)
    _some(pool, store, "no training case with labels")
    subjects = drawn_subjects((store.subject(case) for case in pool), data.labels, seed)
    return tuple(case for case in pool if store.subject(case) in subjects)


def validation_cases(
    store: Store, data: DataConfig, targets: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Labelled cases that judge: the stored list, or one fold. May be empty.

    With `data.inner_fold` it is that fifth of the labelled training subjects, and neither the
    stored list nor the fold is looked at.

    Args:
        store: the prepared cohort.
        data: which list or fold.
        targets: numbers of whole cases that are learned, by name; none is label maps.

    Raises:
        UserError: the fold asked for is empty.
    """
    if data.inner_fold is not None:
        choosing = _choosing_subjects(store, data, targets)
        labelled = _labelled(store, data, targets)
        return tuple(case for case in labelled if store.subject(case) in choosing)
    judging = _judging_subjects(store, data, targets)
    of_all = tuple(e for e in _entries(store) if is_labelled(e, targets))
    if data.fold is None:
        return tuple(e.case_id for e in of_all if e.part == "validation")
    return tuple(e.case_id for e in of_all if e.part != "test" and e.subject_id in judging)


def is_labelled(entry: StoreEntry, targets: tuple[str, ...] = ()) -> bool:
    """Whether a case has a label map, or all of these targets where there are any."""
    return all(name in entry.targets for name in targets) if targets else entry.has_label


def inner_split(
    store: Store, cases: Iterable[str], seed: int, fraction: float = 0.2
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Splits cases by subject in two, for choices that must not see the validation list.

    Args:
        store: the prepared cohort.
        cases: those to split, mostly `training_cases`.
        seed: names the split.
        fraction: share of the subjects in the second part, rounded up; one subject stays at least.

    Returns:
        The cases to train on, and the cases to choose by.

    Raises:
        ConfigError: the fraction is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ConfigError(
            f"`data.selection_fraction` is {fraction}, expected 0 to below 1",
            remedy="a fifth of the training subjects is `--data.selection_fraction 0.2`",
            code="range",
        )
    listed = tuple(cases)
    order = _shuffled({store.subject(case) for case in listed}, seed, "inner split")
    count = min(ceil(Fraction(str(fraction)) * len(order)), len(order) - 1)
    choosing = set(order[:count])
    return (
        tuple(case for case in listed if store.subject(case) not in choosing),
        tuple(case for case in listed if store.subject(case) in choosing),
    )


def drawn_subjects(
    subjects: Iterable[str],
    wanted: int | float | None,
    seed: int,
    setting: Literal["labels", "subjects"] = "labels",
) -> frozenset[str]:
    """The first so many subjects in the order of this seed.

    Args:
        subjects: all there are; for `data.labels` those that have labels.
        wanted: a number of subjects; a fraction, rounded up, at least 2; or None for all.
        seed: names the order.
        setting: which of `data` asks; each has an order of its own.

    Raises:
        ConfigError: a fraction beyond (0, 1], or more subjects than there are.
    """
    order = _shuffled(set(subjects), seed, setting)
    if wanted is None:
        return frozenset(order)
    if isinstance(wanted, float):
        if not 0 < wanted <= 1:
            raise ConfigError(
                f"`data.{setting}` is a fraction from 0 to 1 or a whole number, got {wanted}"
            )
        count = max(LEAST_SUBJECTS, ceil(Fraction(str(wanted)) * len(order)))
        count = min(count, len(order))
    else:
        count = wanted
    if not 1 <= count <= len(order):
        there = f"{len(order)} with labels" if setting == "labels" else str(len(order))
        raise ConfigError(
            f"`data.{setting}` asks for {wanted} subjects of {there}",
            remedy=f"any number from 1 to {len(order)}, or a fraction such as 0.1",
        )
    return frozenset(order[:count])


def _shuffled(subjects: set[str], seed: int, purpose: str) -> list[str]:
    """Subjects by a random key each, so that leaving one out moves no other."""

    def key(subject: str) -> tuple[float, str]:
        return (float(generator(seed, purpose, subject).random()), subject)

    return sorted(subjects, key=key)


def _entries(store: Store) -> Iterable[StoreEntry]:
    return store.entries.values()


def _others_judges(store: Store, data: DataConfig) -> frozenset[str]:
    """Everyone who judges or chooses, whatever is learned."""
    of_maps = any(entry.has_label for entry in _entries(store))
    # Where nothing is labelled, label maps are what is missing.
    names = sorted({name for entry in _entries(store) for name in entry.targets})
    kinds: list[tuple[str, ...]] = [()] if of_maps or not names else []
    kinds += [(name,) for name in names]
    found = [
        _judging_subjects(store, data, kind) | _choosing_subjects(store, data, kind)
        for kind in kinds
    ]
    return frozenset[str]().union(*found)


def _judging_subjects(store: Store, data: DataConfig, targets: tuple[str, ...]) -> frozenset[str]:
    if data.fold is None:
        return frozenset(e.subject_id for e in _entries(store) if e.part == "validation")
    if not 0 <= data.fold < FOLDS:
        raise ConfigError(f"`data.fold` is 0 to {FOLDS - 1}, got {data.fold}")
    labelled = {
        e.subject_id for e in _entries(store) if is_labelled(e, targets) and e.part != "test"
    }
    judging = frozenset(subject for subject in labelled if fold_of(subject) == data.fold)
    if not judging:
        raise UserError(
            f"fold {data.fold} of {FOLDS} is empty: the cohort has {len(labelled)} subjects with "
            "labels",
            where=str(store.path),
            remedy=f"folds with subjects: {_filled(labelled)}",
            code=EMPTY_FOLD,
        )
    return judging


def _choosing_subjects(store: Store, data: DataConfig, targets: tuple[str, ...]) -> frozenset[str]:
    """The labelled training subjects of the inner fold; none where none is asked for."""
    if data.inner_fold is None:
        return frozenset()
    if not 0 <= data.inner_fold < FOLDS:
        raise ConfigError(f"`data.inner_fold` is 0 to {FOLDS - 1}, got {data.inner_fold}")
    subjects = {store.subject(case) for case in _labelled(store, data, targets)}
    ordered = sorted(subjects, key=lambda subject: (_inner_place(subject), subject))
    choosing = frozenset(ordered[data.inner_fold :: FOLDS])
    if not choosing or len(ordered) < 2:
        raise UserError(
            f"inner fold {data.inner_fold} of {FOLDS} is empty: the training list has "
            f"{len(ordered)} subjects with labels",
            where=str(store.path),
            remedy="use `--data.inner_fold 0`" if len(ordered) > 1 else None,
            code=EMPTY_FOLD,
        )
    return choosing


def _inner_place(subject_id: str) -> float:
    """Another place of the subject, independent of the one that makes validation and folds."""
    return place(f"inner {subject_id}")


def _filled(subjects: Iterable[str]) -> str:
    return ", ".join(map(str, sorted({fold_of(subject) for subject in subjects}))) or "none"


def _labelled(store: Store, data: DataConfig, targets: tuple[str, ...]) -> tuple[str, ...]:
    judging = _judging_subjects(store, data, targets)
    parts = ("training",) if data.fold is None else ("training", "validation")
    return tuple(
        e.case_id
        for e in _entries(store)
        if is_labelled(e, targets) and e.part in parts and e.subject_id not in judging
    )


def _some(cases: tuple[str, ...], store: Store, what: str) -> tuple[str, ...]:
    if not cases:
        raise UserError(
            f"{what} in the store",
            where=str(store.path),
            remedy="check the lists that `mim3d prepare` printed",
            code="empty-cohort",
        )
    return cases
