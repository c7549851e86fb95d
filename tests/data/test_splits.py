from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import pairwise
from math import ceil
from types import SimpleNamespace

import pytest

from mim3d.config.data import DataConfig
from mim3d.data.splits import (
    drawn_subjects,
    fold_of,
    held_out,
    inner_split,
    place,
    pretraining_cases,
    training_cases,
    validation_cases,
)
from mim3d.foundation.errors import ConfigError, UserError

SUBJECTS = [f"subject {number}" for number in range(200)]


def _store(rows, targets=()) -> SimpleNamespace:
    """What splits look at of a store: case, subject, part, labelled; and targets by case."""
    known = dict(targets)
    entries = {
        case: SimpleNamespace(
            case_id=case,
            subject_id=subject,
            part=part,
            has_label=labelled,
            targets=known.get(case, {}),
        )
        for case, subject, part, labelled in rows
    }
    return SimpleNamespace(
        entries=entries, subject=lambda case: entries[case].subject_id, path="store"
    )


def _pairs(count: int = 40) -> SimpleNamespace:
    """Two cases a subject; every fourth subject validates; one unlabelled case and one for test."""
    rows = [
        (f"case {2 * n + side}", f"s{n}", "validation" if n % 4 == 0 else "training", True)
        for n in range(count)
        for side in range(2)
    ]
    return _store([*rows, ("plain", "s1", "training", False), ("last", "t", "test", True)])


def test_adding_subjects_moves_nobody():
    small = held_out(SUBJECTS[:100], 0.2)
    large = held_out(SUBJECTS, 0.2)

    assert small == large & set(SUBJECTS[:100])
    assert held_out(SUBJECTS[::-1], 0.2) == large
    assert 20 <= len(large) <= 60


def test_the_held_out_fifth_is_fold_zero():
    assert held_out(SUBJECTS, 0.2) == {s for s in SUBJECTS if fold_of(s) == 0}


def test_places_are_uniform_and_never_change():
    # SHA-256 of `mim3d split a` begins with 51549635, and 0x51549635 / 2**32 is this.
    assert place("a") == pytest.approx(0.3176969415)
    counts = Counter(fold_of(f"{n}") for n in range(5000))
    assert set(counts) == {0, 1, 2, 3, 4}
    assert max(counts.values()) < 1150


@pytest.mark.parametrize("names", [["a", "b"], ["x", "y", "z"], [f"q{n}" for n in range(4)]])
def test_of_few_subjects_one_validates_and_one_stays(names):
    assert 1 <= len(held_out(names, 0.2)) < len(names)
    assert 1 <= len(held_out(names, 0.99)) < len(names)


def test_one_subject_or_no_fraction_holds_out_nobody():
    assert held_out(["a"], 0.5) == frozenset()
    assert held_out(SUBJECTS, 0.0) == frozenset()


def test_no_subject_is_in_two_lists_and_none_is_lost():
    store = _pairs()
    for fold in (None, 0, 1, 2, 3, 4):
        data = DataConfig(fold=fold)
        training, judging = training_cases(store, data, 0), validation_cases(store, data)

        assert not {store.subject(c) for c in training} & {store.subject(c) for c in judging}
        assert len(training) + len(judging) == 80
        assert "last" not in training + judging
        seen = pretraining_cases(store, data, 0)
        assert not {store.subject(c) for c in seen} & {store.subject(c) for c in judging}
        assert set(training) <= set(seen)


def test_every_labelled_case_judges_in_one_fold():
    store = _pairs()

    judged = [case for fold in range(5) for case in validation_cases(store, DataConfig(fold=fold))]

    assert sorted(judged) == sorted(c for c in store.entries if c.startswith("case"))


def test_pretraining_takes_cases_without_labels_and_fine_tuning_does_not():
    store = _pairs()

    assert "plain" in pretraining_cases(store, DataConfig(), 0)
    assert "plain" not in training_cases(store, DataConfig(), 0)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.25, 0.5, 1.0])
def test_a_fraction_is_of_subjects_rounded_up_and_at_least_two(fraction):
    """Caught: 0.1 x 30 by floats is 3.0000000000000004 and would round up to 4."""
    for count in (1, 7, 10, 30, 98):
        names = SUBJECTS[:count]
        expected = min(count, max(2, ceil(Fraction(str(fraction)) * count)))
        assert len(drawn_subjects(names, fraction, seed=0)) == expected


def test_draws_of_one_seed_are_nested_and_of_two_seeds_differ():
    draws = [drawn_subjects(SUBJECTS, labels, 3) for labels in (2, 0.05, 17, 0.25, 0.5, None)]

    for small, large in pairwise(draws):
        assert small < large
    assert drawn_subjects(SUBJECTS, 0.1, 3) != drawn_subjects(SUBJECTS, 0.1, 4)
    assert drawn_subjects(SUBJECTS[::-1], 0.1, 3) == drawn_subjects(SUBJECTS, 0.1, 3)


def test_pretraining_may_see_a_part_of_the_subjects_only():
    store = _pairs()
    every = pretraining_cases(store, DataConfig(), 3)

    seen = [set(pretraining_cases(store, DataConfig(subjects=n), 3)) for n in (2, 0.25, 9, 1.0)]

    assert [len({store.subject(case) for case in cases}) for cases in seen[::2]] == [2, 9]
    assert seen[0] < seen[2] < set(every)
    assert seen[0] < seen[1] < set(every)
    assert seen[3] == set(every)
    for cases in seen:  # all cases of a subject, or none
        subjects = {store.subject(case) for case in cases}
        assert cases == {case for case in every if store.subject(case) in subjects}
    assert seen[2] != set(pretraining_cases(store, DataConfig(subjects=9), 4))
    with pytest.raises(ConfigError, match=r"`data\.subjects` asks for 1000 subjects of"):
        pretraining_cases(store, DataConfig(subjects=1000), 3)


def test_labels_of_a_subject_come_all_or_none():
    store = _pairs()

    chosen = training_cases(store, DataConfig(labels=5), seed=1)

    assert len(chosen) == 10
    assert len({store.subject(case) for case in chosen}) == 5


@pytest.mark.parametrize("labels", [0, 31, 0.0, 1.5, -0.1])
def test_labels_that_cannot_be_drawn_are_refused(labels):
    with pytest.raises(ConfigError, match=r"data\.labels"):
        training_cases(_pairs(), DataConfig(labels=labels), 0)


def test_an_empty_fold_names_those_that_are_not():
    store = _store([("a", "a", "training", True), ("b", "b", "training", True)])
    filled = {fold_of("a"), fold_of("b")}
    empty = next(fold for fold in range(5) if fold not in filled)

    with pytest.raises(UserError, match=f"fold {empty} of 5 is empty") as caught:
        validation_cases(store, DataConfig(fold=empty))
    for fold in filled:
        assert str(fold) in caught.value.remedy
    with pytest.raises(ConfigError, match="0 to 4"):
        validation_cases(store, DataConfig(fold=5))


def test_a_store_without_labels_cannot_be_fine_tuned_on():
    store = _store([("a", "a", "training", False)])

    assert pretraining_cases(store, DataConfig(), 0) == ("a",)
    with pytest.raises(UserError, match="no training case with labels"):
        training_cases(store, DataConfig(), 0)
    with pytest.raises(UserError, match="no training case"):
        pretraining_cases(_store([("a", "a", "test", True)]), DataConfig(), 0)


def test_the_inner_split_is_by_subject_and_follows_from_the_seed():
    store = _pairs()
    training = training_cases(store, DataConfig(), 0)

    fitting, choosing = inner_split(store, training, seed=0)

    assert sorted(fitting + choosing) == sorted(training)
    assert len({store.subject(c) for c in choosing}) == 6  # a fifth of 30
    assert not {store.subject(c) for c in fitting} & {store.subject(c) for c in choosing}
    assert inner_split(store, training[::-1], seed=0)[1] == choosing[::-1]
    assert set(inner_split(store, training, seed=1)[1]) != set(choosing)


@pytest.mark.parametrize("fraction", [-0.5, 1.0, 1.5, float("nan")])
def test_a_share_to_choose_by_that_is_none_is_refused(fraction):
    store = _pairs()
    training = training_cases(store, DataConfig(), 0)

    with pytest.raises(ConfigError, match=rf"`data\.selection_fraction` is {fraction}"):
        inner_split(store, training, 0, fraction)

    assert inner_split(store, training, 0, 0.0) == (training, ())


@pytest.mark.parametrize("fold", [None, 3])
def test_inner_folds_part_the_training_subjects_and_never_touch_those_that_judge(fold):
    store = _pairs()
    outer = DataConfig(fold=fold)
    judging = {store.subject(case) for case in validation_cases(store, outer)}
    training = set(training_cases(store, outer, 0))
    seen = Counter()

    for inner in range(5):
        data = DataConfig(fold=fold, inner_fold=inner)
        choosing, rest = validation_cases(store, data), training_cases(store, data, 0)
        subjects = {store.subject(case) for case in choosing}
        assert not subjects & judging
        assert not subjects & {store.subject(case) for case in rest}
        assert not subjects & {store.subject(case) for case in pretraining_cases(store, data, 0)}
        assert set(choosing) | set(rest) == training
        seen.update(choosing)

    assert set(seen) == training
    assert set(seen.values()) == {1}
    sizes = [len(validation_cases(store, DataConfig(fold=fold, inner_fold=i))) for i in range(5)]
    assert max(sizes) - min(sizes) <= 2  # one subject, who has two cases


def test_an_inner_fold_takes_nobody_from_a_draw_who_is_not_in_it():
    store = _pairs()
    all_of_them = training_cases(store, DataConfig(labels=12), 7)

    rest = training_cases(store, DataConfig(labels=12, inner_fold=0), 7)

    choosing = set(validation_cases(store, DataConfig(inner_fold=0)))
    assert set(all_of_them) - choosing <= set(rest)
    assert len(rest) == 24


def test_of_two_subjects_an_inner_fold_has_one():
    store = _store([("a", "s1", "training", True), ("b", "s2", "training", True)])
    data = DataConfig(inner_fold=0)

    assert len(validation_cases(store, data)) == len(training_cases(store, data, 0)) == 1
    with pytest.raises(UserError, match="inner fold 4 of 5 is empty: the training list has 2"):
        validation_cases(store, DataConfig(inner_fold=4))
    with pytest.raises(ConfigError, match="`data.inner_fold` is 0 to 4, got 5"):
        training_cases(store, DataConfig(inner_fold=5), 0)


def _with_targets(count: int = 60) -> SimpleNamespace:
    """No label maps; all have an age, two of three a grade; every fourth subject validates."""
    rows = [
        (f"case {n}", f"s{n}", "validation" if n % 4 == 0 else "training", False)
        for n in range(count)
    ]
    targets = {
        f"case {n}": {"age": 30.0 + n, **({"grade": float(n % 2)} if n % 3 else {})}
        for n in range(count)
    }
    return _store([*rows, ("last", "t", "test", False)], {**targets, "last": {"age": 1.0}})


@pytest.mark.parametrize("fold", [None, 0, 3])
@pytest.mark.parametrize("targets", [("age",), ("grade",), ("age", "grade")])
def test_who_has_all_the_targets_that_are_learned_trains_or_judges(fold, targets):
    store, data = _with_targets(), DataConfig(fold=fold)

    training, judging = (
        training_cases(store, data, 0, targets),
        validation_cases(store, data, targets),
    )

    has_all = {
        case
        for case, entry in store.entries.items()
        if set(targets) <= set(entry.targets) and entry.part != "test"
    }
    assert set(training) | set(judging) == has_all
    assert not set(training) & set(judging)
    if fold is not None:
        assert {store.subject(case) for case in judging} == {
            store.subject(case) for case in has_all if fold_of(store.subject(case)) == fold
        }


def test_draws_of_labelled_subjects_over_targets_are_nested_and_exact():
    store = _with_targets()
    draws = [set(training_cases(store, DataConfig(labels=n), 4, ("grade",))) for n in (3, 9, 20)]

    assert [len(draw) for draw in draws] == [3, 9, 20]
    assert draws[0] < draws[1] < draws[2]
    assert all("grade" in store.entries[case].targets for case in draws[2])


def test_without_label_maps_nobody_is_labelled_unless_targets_are_asked_for():
    with pytest.raises(UserError, match="no training case with labels"):
        training_cases(_with_targets(), DataConfig(), 0)


@pytest.mark.parametrize("choice", [{"fold": 1}, {"inner_fold": 2}, {"fold": 1, "inner_fold": 2}])
def test_pretraining_sees_no_one_who_judges_any_target(choice):
    store, data = _with_targets(), DataConfig(**choice)

    seen = {store.subject(case) for case in pretraining_cases(store, data, 0)}

    for targets in (("age",), ("grade",)):
        judging = validation_cases(store, data, targets)
        assert judging
        assert not seen & {store.subject(case) for case in judging}
    assert len(seen) > 20
