"""Rows 32 and 37: documents become a config, a record or one sentence; no name in them is code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mim3d.config.reading import read_config
from mim3d.data.cohort import apply_split, read_cohort
from mim3d.data.store import open_store
from mim3d.data.store.layout import write_record
from mim3d.evaluation.described import read_dataset_json, read_labels_json
from mim3d.evaluation.results import read_results
from mim3d.foundation.documents import write_sealed
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.randomness import generator
from mim3d.foundation.reporting import Silent
from mim3d.training.checkpoints import NUMBERS, Checkpoints, Saved, read_state
from mim3d.training.run import read_status
from mim3d.workflows.convert import read_key_map
from mim3d.workflows.doctor import doctor
from mim3d.workflows.info import info
from mim3d.workflows.run_record import PREPARATION, classes_of, load_preparation
from tests.reliability.child import judged
from tests.reliability.hostile_documents import CONFIGS, DOTTED, changed, document, text_of_json
from tests.reliability.proof import Tally, proof
from tests.reliability.small_store import make_store

SECONDS, SPARE = 5.0, 256 << 20
"""A machine may be slow; the table says whether any document took more than a second."""


@proof(rows=(32,), trials="documents given to the reader of configs",
       quick=200, full=5000, stretch=1000)  # fmt: skip
def hostile_configs(trials: range, seed: int, folder: Path) -> Tally:
    """Any document is a config of the declared types or one sentence."""

    def judge(trial: int) -> str:
        random = generator(seed, trial, "document")
        kind = CONFIGS[trial % len(CONFIGS)]
        path = folder / ("config.json" if random.random() < 0.3 else "config.yaml")
        path.write_bytes(document(random, kind))
        try:
            config = read_config(path, kind)
        except ConfigError as error:
            return _one_sentence(error)
        if type(config) is not kind:
            raise AssertionError(f"a {type(config).__name__} came of it")
        return "a config"

    return _tally(trials, judge)


@proof(rows=(37,), trials="configs, maps and lists with the names of code in them",
       quick=30, full=600, stretch=200)  # fmt: skip
def names_of_code(trials: range, seed: int, folder: Path) -> Tally:
    """A dotted name is refused or stays text: it is never imported, called or evaluated."""

    def judge(trial: int) -> str:
        random = generator(seed, trial, "name of code")
        name = str(random.choice(DOTTED))
        kind = CONFIGS[trial % len(CONFIGS)]
        texts = [
            f"_target_: {name}\n", f"{name}: 1\n", f"objective:\n  name: {name}\n",
            f"objective: {name}\n", f"decoder:\n  name: {name}\n", f"read: {{_target_: {name}}}\n",
            f"encoder:\n  preset: {name}\n", f"prepare:\n  filter: {name}\n",
            f"optim:\n  name: {name}\n", f"evaluation:\n  metric: {name}\n",
        ]  # fmt: skip
        path = folder / "config.yaml"
        path.write_text(texts[int(random.integers(len(texts)))])
        try:
            read_config(path, kind)
        except ConfigError as error:
            return _one_sentence(error)
        raise AssertionError(f"taken: {path.read_text()!r}")

    return _tally(trials, judge)


@proof(rows=(32, 39), trials="records of stores, runs and cohorts, changed and sealed again",
       quick=100, full=4000, stretch=500)  # fmt: skip
def hostile_records(trials: range, seed: int, folder: Path) -> Tally:
    """A record that does not say what it should becomes one sentence wherever it is read."""
    records = _records(folder)

    def judge(trial: int) -> str:
        random = generator(seed, trial, "record")
        path, write, read = records[trial % len(records)]
        whole = path.read_bytes()
        content = json.loads(whole)
        content.pop("checksum", None) if isinstance(content, dict) else None
        value = changed(random, content, int(random.integers(1, 4)))
        try:
            write(path, value)
        except (TypeError, ValueError, AttributeError):  # no object, or nothing that can be sealed
            path.write_bytes(text_of_json(value))
        try:
            read()
        except UserError as error:
            return f"{path.name}: {_one_sentence(error)}"
        finally:
            path.write_bytes(whole)
        return f"{path.name}: read"

    return _tally(trials, judge)


def _one_sentence(error: UserError) -> str:
    if "\n" in error.what or len(error.what) > 400 or not error.what.strip():
        raise AssertionError(f"not one sentence: {error.what[:200]!r}")
    return "refused"


def _tally(trials: range, judge: Callable[[int], str]) -> Tally:
    tally = Tally()
    found = judged(trials, judge, seconds=SECONDS, spare_bytes=SPARE)
    for trial, result in zip(trials, found, strict=True):
        tally.add(trial, result.outcome or "broken", result.fault)
    slowest = max((result.seconds for result in found), default=0.0)
    tally.notes.append("none over a second" if slowest < 1 else f"slowest {slowest:.1f} s")
    return tally


Record = tuple[Path, Callable[[Path, Any], None], Callable[[], object]]


def _as_text(path: Path, value: Any) -> None:
    path.write_bytes(text_of_json(value))


def _records(folder: Path) -> list[Record]:
    """Every kind of record, how it is written, and who reads it."""
    store = make_store(folder)
    run = _run(folder / "run")
    source = folder / "source"
    lists = {"training": ["case_0"], "validation": ["case_1"]}
    files: dict[str, Any] = {
        "split.json": {"name": "s", **lists},
        "dataset.json": {
            "name": "d", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "organ"},
            "training": [{"image": "images/case_0.nii.gz", "label": "labels/case_0.nii.gz"}],
            "test": ["images/case_1.nii.gz"],
        },
        "raw.json": {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": [1, 2], "b": 2},
                     "regions_class_order": [1, 2], "file_ending": ".nii.gz"},
        "labels.json": {"classes": [{"index": 0, "value": 0, "name": "b", "colour": [0, 0, 0]},
                                    {"index": 1, "value": 3, "name": "o", "colour": [1, 2, 3]}],
                        "ignore_value": None},
        "key_map.json": {"strip": ["module."], "drop": ["head."], "rename": {"a.": "b."}},
        "results.json": {
            "format": 1, "classes": ["organ"], "convention": "c", "nsd_tolerance_mm": 1.0,
            "bootstrap": {"resamples": 20, "confidence": 0.95}, "notes": [], "summary": {},
            "cases": [{"case_id": "a", "subject": "s", "class": "organ", "dice": 0.5,
                       "hd95_mm": 2.0, "nsd": 0.3, "counted_as": "case"}],
        },
    }  # fmt: skip
    for name, content in files.items():
        (source / name).write_text(json.dumps(content))
    cohort = read_cohort(source / "images")
    step = run / "checkpoints" / "5"
    return [
        (store / "manifest.json", write_record, lambda: _use_store(store)),
        (store / "fingerprint.json", write_record, lambda: info(str(store))),
        (store / "cases" / "case_0.json", write_record, lambda: _examine(store)),
        (run / PREPARATION, write_sealed, lambda: classes_of(load_preparation(run), run)),
        (step / NUMBERS, write_sealed, lambda: read_state(step)),
        (run / "status.json", _as_text, lambda: (read_status(run), info(str(run)))),
        (source / "split.json", _as_text, lambda: apply_split(cohort, source / "split.json")),
        (source / "dataset.json", _as_text, lambda: read_cohort(source / "dataset.json")),
        (source / "dataset.json", _as_text, lambda: read_dataset_json(source / "dataset.json")),
        (source / "raw.json", _as_text, lambda: read_dataset_json(source / "raw.json")),
        (source / "labels.json", _as_text, lambda: read_labels_json(source / "labels.json")),
        (source / "key_map.json", _as_text, lambda: read_key_map(source / "key_map.json")),
        (source / "results.json", _as_text, lambda: info(str(source / "results.json"))),
        (source / "results.json", _as_text, lambda: _summarise(source)),
    ]  # fmt: skip


def _examine(store: Path) -> None:
    doctor(str(store), reporter=Silent())


def _summarise(source: Path) -> None:
    read_results(source / "results.json").summary()


def _use_store(store: Path) -> None:
    opened = open_store(store)
    _ = (opened.name, opened.channel_names, opened.modality, opened.preparation)
    _ = opened.median_spacing_mm
    for case_id in opened.cases:
        with opened.open(case_id) as case:
            case.read((0, 0, 0), (4, 3, 2))
            case.read_normalised((0, 0, 0), (4, 3, 2))
    info(str(store))


def _run(folder: Path) -> Path:
    """A run as far as a reader of its records looks."""
    folder.mkdir()
    (folder / "config.yaml").write_text("training:\n  steps: 10\n")
    (folder / "status.json").write_text(json.dumps(
        {"state": "done", "step": 5, "training": {"validation": {"loss": {"fixed_loss": 0.5}}}}
    ))  # fmt: skip
    classes = {"classes": [{"index": 0, "value": 0, "name": "background", "colour": [0, 0, 0]},
                           {"index": 1, "value": 1, "name": "organ", "colour": [9, 9, 9]}],
               "ignore_value": None}  # fmt: skip
    record = {"format": 2, "verb": "pretrain", "preparation": {}, "modalities": ["mr"],
              "channel_names": ["a"], "trained_on": {"case_0": "0" * 64},
              "classes": classes}  # fmt: skip
    write_sealed(folder / PREPARATION, record)
    Checkpoints(folder / "checkpoints").write(
        5, weights={"a": torch.ones(2)}, header={}, is_best=True,
        saved=Saved({"weights/a": torch.ones(2)}, {"step": 5}),
    )  # fmt: skip
    return folder
