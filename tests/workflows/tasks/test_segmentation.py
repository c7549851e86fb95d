"""How a segmenter is judged while it trains: as `predict` and `evaluate` judge it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_benchmark import make_store

from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.inference import InferenceConfig
from mim3d.config.training import TrainingConfig
from mim3d.config.verbs import FinetuneConfig
from mim3d.data.classes import ClassTable
from mim3d.evaluation.described import read_labels_json
from mim3d.foundation.reporting import Silent
from mim3d.workflows.finetune import finetune
from mim3d.workflows.loading import load_segmenter
from mim3d.workflows.tasks import segmentation
from mim3d.workflows.tasks.segmentation import dice_by_structure, structures_of


def tiny(store, *, flips=(), ignore_label=None, **augmentation):
    return FinetuneConfig(
        init="none",
        data=DataConfig(store=str(store), crop_size=(16, 16, 12), ignore_label=ignore_label),
        augmentation=AugmentationConfig(**augmentation),
        encoder=EncoderConfig(preset="tiny", width=24, depth=4, heads=2, patch=(4, 4, 4)),
        inference=InferenceConfig(flips=flips, overlap=0.0),
        training=TrainingConfig(steps=1, batch_size=2, precision="fp32", device="cpu"),
    )


TABLE = ClassTable.from_values([1, 4, 7])


def test_a_class_that_the_run_leaves_out_is_no_structure_and_its_voxels_count_on_no_side():
    classes = TABLE.ignoring(4)
    labels = np.array([0, 1, 1, 2, 2, 3], np.uint8).reshape(6, 1, 1)  # indices of 0, 1, 4 and 7
    prediction = np.array([0, 1, 0, 1, 7, 7], np.uint8).reshape(6, 1, 1)

    structures = structures_of(classes, None)
    scores = dice_by_structure(prediction.copy(), labels, structures, classes)
    whole = dice_by_structure(prediction.copy(), labels, structures_of(TABLE, None), TABLE)

    assert [one.values for one in structures] == [(1,), (7,)]
    assert scores == pytest.approx({"label 1": 2 / 3, "label 7": 1.0})
    assert whole == pytest.approx({"label 1": 2 / 4, "label 4": 0.0, "label 7": 2 / 3})


def test_what_a_store_leaves_out_stays_and_nothing_said_changes_nothing():
    known = ClassTable.from_values([1, 4], ignore_value=255)

    assert known.ignoring(4) == known
    assert TABLE.ignoring(None) == TABLE
    assert TABLE.ignoring(7).scored == ((1, "label 1"), (4, "label 4"))


def test_validation_exchanges_sides_in_mirrored_windows_as_prediction_does(tmp_path, monkeypatch):
    asked = []
    slabs = segmentation.slabs

    def noted(*args, **settings):
        asked.append(settings.get("swaps"))
        return slabs(*args, **settings)

    monkeypatch.setattr(segmentation, "slabs", noted)
    config = tiny(make_store(tmp_path), flip_axes=("x",), swap_on_flip=((1, 2),), flips=("x",))

    finetune(config, out=str(tmp_path / "run"), reporter=Silent())

    assert asked
    assert set(asked) == {((1, 2),)}


def test_predictions_of_a_run_that_leaves_out_a_class_are_scored_without_it(tmp_path):
    config = tiny(make_store(tmp_path), ignore_label=2)

    finetune(config, out=str(tmp_path / "run"), reporter=Silent())
    classes = load_segmenter(tmp_path / "run").classes

    assert classes.values == (0, 1, 2)
    (tmp_path / "labels.json").write_text(json.dumps(classes.as_json()))
    said = read_labels_json(tmp_path / "labels.json")
    assert [one.values for one in said.structures] == [(1,)]
    assert said.ignore_value == 2
