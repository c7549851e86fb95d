"""A value of label files that is no class: named when a store is prepared."""

from __future__ import annotations

import json

import numpy as np
import pytest
from preparing import RULE, config_with, quarantine, voxel_files, write_nifti

from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.data.classes import IGNORE_INDEX
from mim3d.data.cutting import label_changes
from mim3d.data.phantom import make_cohort, make_volume
from mim3d.data.prepare import prepare_store
from mim3d.data.store import Store
from mim3d.foundation.errors import ConfigError

UNSURE = 200


@pytest.fixture
def folder(tmp_path):
    """Two cases with labels 0 to 3, and `UNSURE` in some voxels of one."""
    for number in range(2):
        voxels, labels = make_volume(1, number, RULE)
        labels = labels.copy()
        if number:
            labels[3:9, 4:8, 2:6] = UNSURE
        write_nifti(tmp_path / f"in/imagesTr/c{number}.nii.gz", voxels[0])
        write_nifti(tmp_path / f"in/labelsTr/c{number}.nii.gz", labels)
    return tmp_path / "in"


def _named(folder, values) -> None:
    """Gives the folder a `dataset.json` with these classes."""
    files = [{"image": f"imagesTr/c{n}.nii.gz", "label": f"labelsTr/c{n}.nii.gz"} for n in (0, 1)]
    content = {"labels": values, "modality": {"0": "MRI"}, "training": files}
    (folder / "dataset.json").write_text(json.dumps(content))


NAMES = {"0": "air", "1": "one", "2": "two", "3": "tumour"}


@pytest.mark.parametrize(
    "names", [None, NAMES, {**NAMES, str(UNSURE): "unsure"}, {**NAMES, str(UNSURE): "ignore"}]
)
def test_the_value_is_no_class_and_its_voxels_have_no_index(folder, tmp_path, names):
    if names is not None:
        _named(folder, names)

    result = prepare_store(
        folder, tmp_path / "store", config_with(ignore_label=UNSURE, crop_to_body=False)
    )

    store = Store(tmp_path / "store")
    assert result.refused == ()
    assert store.classes.values == (0, 1, 2, 3)
    assert store.classes.ignore_value == UNSURE
    _, labels = make_volume(1, 1, RULE)
    with store.open("c1") as case:
        _, indices = case.read((0, 0, 0), RULE.shape)
        assert case.classes_present() == (0, 1, 2, 3)
    ignored = np.zeros(RULE.shape, bool)
    ignored[3:9, 4:8, 2:6] = True
    assert (indices[ignored] == IGNORE_INDEX).all()
    assert (indices[~ignored] == labels[~ignored]).all()
    shares = [row["share"] for row in store.fingerprint["classes"]]
    assert len(shares) == 4
    assert sum(shares) == pytest.approx(1 - ignored.sum() / (2 * ignored.size))


def test_training_may_name_the_value_again(folder, tmp_path):
    prepare_store(folder, tmp_path / "store", config_with(ignore_label=UNSURE))
    store = Store(tmp_path / "store")

    changes = label_changes(store, DataConfig(ignore_label=UNSURE), AugmentationConfig())

    assert changes.ignored is None  # the store has left it out already


def test_without_the_setting_the_value_is_a_class_or_foreign(folder, tmp_path):
    prepare_store(folder, tmp_path / "store", config_with())
    assert Store(tmp_path / "store").classes.values == (0, 1, 2, 3, UNSURE)
    _named(folder, NAMES)

    prepare_store(folder, tmp_path / "other", config_with())

    assert str(UNSURE) in quarantine(tmp_path / "other")["c1"]["reason"]


def test_naming_it_renews_the_store_and_leaving_it_out_does_not(tmp_path):
    source = make_cohort(tmp_path / "cohort", 1, training=2, validation=0, rule=RULE)
    prepare_store(source, tmp_path / "store", config_with())
    before = voxel_files(tmp_path / "store")

    assert prepare_store(source, tmp_path / "store", config_with(ignore_label=None)).prepared == ()
    assert voxel_files(tmp_path / "store") == before
    renewed = prepare_store(source, tmp_path / "store", config_with(ignore_label=3))

    assert len(renewed.prepared) == 2
    assert Store(tmp_path / "store").classes.names == ("background", "organ 1", "organ 2")


def test_the_settings_of_older_stores_have_the_key_they_had(tmp_path):
    """As version 0.1 computed it, before there were these settings."""
    from mim3d.config.read import ReadConfig
    from mim3d.config.verbs import PreparationConfig
    from mim3d.data.classes import ClassTable
    from mim3d.data.prepare.keys import preparation_key

    config = PreparationConfig(spacing_mm=(1.0, 1.5, 2.0), crop_to_body=True)

    key = preparation_key(config, ReadConfig(), ClassTable.from_values((0, 1, 2)), ("mr",))

    assert key == "fa36e1a203d7d5888b248b219c930882af95f5639c6e6d9f7ab2315343220b04"


def test_two_values_to_ignore_and_values_out_of_range_are_refused(folder, tmp_path):
    _named(folder, {**NAMES, "201": "ignore"})
    with pytest.raises(ConfigError, match="the source itself ignores 201"):
        prepare_store(folder, tmp_path / "store", config_with(ignore_label=UNSURE))
    for value in (0, -1, 65536):
        with pytest.raises(ConfigError, match=r"prepare\.ignore_label"):
            prepare_store(folder, tmp_path / "store", config_with(ignore_label=value))
    assert not (tmp_path / "store").exists()
