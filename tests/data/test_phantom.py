from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from mim3d.data.body import find_air
from mim3d.data.cohort import read_cohort
from mim3d.data.phantom import PhantomRule, make_cohort, make_volume

SMALL = PhantomRule(shape=(29, 25, 15), spacing_mm=(1.5, 1.0, 3.0), channels=2, organs=3)


def test_the_same_seed_and_subject_give_the_same_voxels_and_others_do_not():
    voxels, labels = make_volume(3, 1, SMALL)
    again, labels_again = make_volume(3, 1, SMALL)
    other, _ = make_volume(3, 2, SMALL)

    assert (voxels == again).all()
    assert (labels == labels_again).all()
    assert (voxels != other).any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("modality", ["mr", "ct"])
def test_every_subject_has_all_classes_a_tumour_in_its_organ_and_air_around(seed, modality):
    rule = PhantomRule(modality=modality)
    for subject in range(3):
        voxels, labels = make_volume(seed, subject, rule)

        assert voxels.dtype == np.int16
        assert labels.shape == rule.shape
        assert set(np.unique(labels)) == set(range(5))
        air = ~find_air(voxels[0], modality).body(voxels[0])
        assert 0.2 < air.mean() < 0.7
        assert not (air & (labels > 0)).mean() > 1e-3
        # The tumour touches no other organ but the first.
        edge = np.zeros_like(labels, bool)
        for axis in range(3):
            for step in (-1, 1):
                edge |= np.roll(labels == 4, step, axis)
        assert not (set(np.unique(labels[edge])) & {2, 3})


def test_organs_can_be_told_by_their_intensity():
    voxels, labels = make_volume(0, 0, SMALL)

    means = [[voxels[c][labels == k].mean() for k in range(1, 5)] for c in range(2)]

    for channel in means:
        assert np.diff(np.sort(channel)).min() > 0.05 * np.mean(channel)


def test_the_cohort_on_disk_holds_what_make_volume_gives(tmp_path):
    make_cohort(tmp_path, 7, training=2, validation=1, test=1, unlabelled=1, rule=SMALL,
                subjects=["a", "a", "u", "v"])  # fmt: skip

    cohort = read_cohort(tmp_path)

    parts = [(case.part, case.subject_id, case.label is not None) for case in cohort.cases]
    assert parts == [
        ("training", "a", True),
        ("training", "a", True),
        ("training", "u", False),
        ("validation", "v", True),
        ("test", "phantom_004", False),
    ]
    assert cohort.classes.names == ("background", "organ 1", "organ 2", "organ 3", "tumour")
    assert cohort.modality == "mr"
    image = nib.load(cohort.cases[1].images[0])
    voxels, labels = make_volume(7, 1, SMALL)
    assert (np.moveaxis(np.asarray(image.dataobj), 3, 0) == voxels).all()
    assert (np.asarray(nib.load(cohort.cases[1].label).dataobj) == labels).all()
    assert image.header.get_zooms()[:3] == pytest.approx((1.5, 1.0, 3.0))
    assert json.loads((tmp_path / "dataset.json").read_text())["name"] == "phantom 7"
