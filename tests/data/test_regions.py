from __future__ import annotations

import numpy as np
import pytest
import torch

from mim3d.data.classes import ClassTable
from mim3d.data.regions import SCHEMES, region_scheme
from mim3d.foundation.errors import ConfigError, UserError

# The table of the papers' conventions, written out: scheme, TC, WT, ET.
TABLE = [
    ("brats2021", {1, 4}, {1, 2, 4}, {4}),
    ("brats2023", {1, 3}, {1, 2, 3}, {3}),
    ("msd_task01", {2, 3}, {1, 2, 3}, {3}),
    ("selfmedmae_legacy", {2, 3}, {1, 2, 3}, {2}),
]


def _label_map(scheme) -> np.ndarray:
    values = np.array(scheme.known_values)
    return values[np.arange(11 * 13 * 7) * 7 % 5 % len(values)].reshape(11, 13, 7)


@pytest.mark.parametrize(("name", "tc", "wt", "et"), TABLE)
def test_regions_are_the_unions_of_the_published_values(name, tc, wt, et):
    scheme = SCHEMES[name]
    labels = _label_map(scheme)

    regions = scheme.to_regions(labels)

    assert scheme.names == ("TC", "WT", "ET")
    assert regions.shape == (3, 11, 13, 7)
    for channel, values in zip(regions, (tc, wt, et), strict=True):
        assert (channel == np.isin(labels, list(values))).all()


@pytest.mark.parametrize("name", list(SCHEMES))
def test_a_label_map_comes_back_from_its_regions(name):
    scheme = SCHEMES[name]
    labels = _label_map(scheme)

    assert (scheme.to_values(scheme.to_regions(labels)) == labels).all()
    back = scheme.to_values(scheme.to_regions(torch.from_numpy(labels)))
    assert (back.numpy() == labels).all()


@pytest.mark.parametrize("name", list(SCHEMES))
def test_tensors_and_arrays_give_the_same_regions(name):
    labels = _label_map(SCHEMES[name])

    from_tensor = SCHEMES[name].to_regions(torch.from_numpy(labels))

    assert (from_tensor.numpy() == SCHEMES[name].to_regions(labels)).all()


def test_regions_that_do_not_nest_are_written_et_over_tc_over_wt():
    scheme = SCHEMES["brats2021"]
    # Voxels: TC alone, WT alone, ET alone, ET + WT, none.
    regions = np.array([[1, 0, 0, 0, 0], [0, 1, 0, 1, 0], [0, 0, 1, 1, 0]], bool)

    assert scheme.to_values(regions).tolist() == [1, 2, 4, 4, 0]


def test_the_legacy_scheme_differs_from_the_true_one_in_et_alone():
    labels = _label_map(SCHEMES["msd_task01"])

    right = SCHEMES["msd_task01"].to_regions(labels)
    with pytest.warns(UserWarning, match="takes non-enhancing tumour"):
        legacy = region_scheme("selfmedmae_legacy").to_regions(labels)

    assert (right[:2] == legacy[:2]).all()
    assert (right[2] != legacy[2]).any()


def test_values_that_do_not_fit_name_the_scheme_that_does():
    with pytest.raises(UserError, match="label value 4 has no tissue") as caught:
        SCHEMES["msd_task01"].check_values([0, 1, 2, 4])
    assert caught.value.remedy == "`brats2021` fits the values found"

    with pytest.raises(UserError) as caught:
        SCHEMES["brats2021"].check_values([0, 1, 2, 3])
    assert "`brats2023` or `msd_task01`" in (caught.value.remedy or "")

    with pytest.raises(UserError, match="label value 7") as caught:
        SCHEMES["brats2021"].check_values([0, 1, 7])
    assert "no scheme fits" in (caught.value.remedy or "")


def test_a_misspelt_scheme_is_answered_with_the_nearest():
    with pytest.raises(ConfigError) as caught:
        region_scheme("brats_2021")
    assert caught.value.remedy == "did you mean `brats2021`?"


@pytest.mark.parametrize("values", [(0, 1, 2, 4), (0, 2, 4)])
def test_a_scheme_over_indices_gives_the_regions_of_the_values(values):
    classes = ClassTable.from_values(values)
    labels = np.array(values)[np.arange(60) % len(values)].reshape(3, 4, 5)
    scheme = SCHEMES["brats2021"]

    over_indices = scheme.indexed(classes).to_regions(classes.to_index(labels))

    assert (over_indices == scheme.to_regions(labels)).all()
    with pytest.raises(UserError, match="label value 3"):
        scheme.indexed(ClassTable.from_values([0, 3]))


def test_ignored_voxels_are_in_no_region():
    labels = np.array([255, 4])

    assert not SCHEMES["brats2021"].to_regions(labels)[:, 0].any()
