"""What a training learns of whole cases, from a store's targets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev

import pytest
from archives import write_archive
from preparing import config_with

from mim3d.config.task import ClassificationConfig
from mim3d.data.asked_target import AskedTarget
from mim3d.data.prepare import prepare_store
from mim3d.data.store import Store
from mim3d.data.target_table import asked_names, target_table
from mim3d.foundation.errors import ConfigError, UserError

ROWS = [
    {"age": 61.5, "grade": 3.0, "sick": 1.0, "one": 4.0},
    {"age": 7.25, "grade": 7.0, "sick": 0.0, "one": 4.0},
    {"age": 33.0, "grade": 3.0, "sick": 0.0, "one": 4.0},
    {"age": 80.0, "grade": 5.0, "sick": 0.0, "one": 4.0},
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four training cases with four numbers each."""
    folder: Path = tmp_path_factory.mktemp("table")
    prepare_store(write_archive(folder / "a.npz"), folder / "store", config_with())
    store = Store(folder / "store")
    cases = store.ids("training")[:4]
    store.entries = {
        case: replace(store.entry(case), targets=row) for case, row in zip(cases, ROWS, strict=True)
    }
    return store


def _table(store: Store, is_regression: bool = False, cases: slice = slice(None), **fields):
    config = ClassificationConfig(**fields)
    return target_table(config, store, store.cases[cases], is_regression=is_regression)


def test_classes_are_those_of_the_store_and_counts_those_of_training(store: Store) -> None:
    (grade,) = _table(store, target="grade", cases=slice(0, 3))

    assert grade.classes == (3.0, 5.0, 7.0)
    assert grade.counts == (2, 0, 1)
    assert grade.outputs == 3


def test_a_number_has_mean_and_deviation_of_the_training_cases(store: Store) -> None:
    (age,) = _table(store, True, slice(0, 3), target="age")

    ages = [row["age"] for row in ROWS[:3]]
    assert (age.mean, age.deviation) == pytest.approx((fmean(ages), pstdev(ages)))
    assert age.classes is None
    assert age.outputs == 1


@pytest.mark.parametrize("asked", ["grade,sick", ("grade", "sick")])
def test_several_targets_are_a_list_or_parted_by_commas(store: Store, asked) -> None:
    assert [one.name for one in _table(store, target=asked)] == ["grade", "sick"]


def test_a_sigmoid_has_one_output_for_two_classes(store: Store) -> None:
    (sick,) = _table(store, target="sick", loss="bce")

    assert (sick.outputs, sick.classes) == (1, (0.0, 1.0))


@pytest.mark.parametrize("fields", [{"target": "grade"}, {"target": "sick", "loss": "bce"}])
def test_what_a_run_keeps_reads_back_equal(store: Store, fields) -> None:
    (one,) = _table(store, **fields)

    assert AskedTarget.from_json(json.loads(json.dumps(one.as_json()))) == one


@pytest.mark.parametrize(
    "changes",
    [{"classes": [1.0]}, {"classes": [1.0, 1.0]}, {"deviation": 0.0}, {"mean": float("nan")}],
)
def test_a_damaged_record_is_no_target(changes) -> None:
    stored = AskedTarget("grade", (1.0, 2.0), counts=(1, 1)).as_json()

    with pytest.raises(ValueError, match="target"):
        AskedTarget.from_json({**stored, **changes})


@pytest.mark.parametrize(
    ("fields", "is_regression", "error", "what"),
    [
        ({}, False, ConfigError, "the store has several targets"),
        ({"target": "size"}, False, UserError, "no target `size`"),
        ({"target": "age,age"}, True, ConfigError, "names a target twice"),
        ({"target": "age"}, False, UserError, "`age` has no classes"),
        ({"target": "one"}, False, UserError, "`one` has no classes"),
        ({"target": "one"}, True, UserError, "`one` is 4 in all 4 training cases"),
        ({"target": "grade", "loss": "bce"}, False, ConfigError, "for targets that are 0 or 1"),
    ],
)
def test_what_cannot_be_learned_is_refused(store, fields, is_regression, error, what) -> None:
    with pytest.raises(error, match=what):
        _table(store, is_regression, **fields)


def test_training_cases_of_one_class_alone_teach_nothing(store: Store) -> None:
    with pytest.raises(UserError, match="`sick` is 0 in all 3 training cases"):
        _table(store, target="sick", cases=slice(1, 4))


def test_a_store_without_targets_says_how_it_would_have_some(store: Store) -> None:
    bare = Store(store.path)
    bare.entries = {case: replace(entry, targets={}) for case, entry in store.entries.items()}

    with pytest.raises(UserError, match="has no targets to learn"):
        asked_names(None, bare)
