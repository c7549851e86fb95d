"""A store as torch's map-style data set, with plain tensors or with MONAI's."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Flipd
from preparing import RULE, config_with
from torch.utils.data import DataLoader

from mim3d.data.phantom import make_cohort
from mim3d.data.store import Store, open_store
from mim3d.foundation.errors import UserError
from mim3d.foundation.reporting import Silent
from mim3d.workflows.prepare import prepare


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("dataset")
    source = make_cohort(folder / "source", 0, training=3, validation=1, rule=RULE)
    prepare(str(source), out=str(folder / "store"), config=config_with(), reporter=Silent())
    return open_store(folder / "store")


def test_an_item_is_what_the_store_holds_normalised(store: Store) -> None:
    cases = store.dataset("training", labelled=True)

    item = cases[1]

    with store.open(store.ids("training")[1]) as case:
        size = case.shape[1:]
        intensities = case.read_intensities((0, 0, 0), size)
        _, labels = case.read((0, 0, 0), size)
        expected = case.normalisation[0].apply(intensities[0])
        affine = case.affine
    assert len(cases) == 3
    np.testing.assert_array_equal(item["image"][0].numpy(), expected)
    assert labels is not None
    np.testing.assert_array_equal(item["label"][0].numpy(), labels)
    np.testing.assert_array_equal(item["affine"].numpy(), affine)
    assert item["case_id"] == store.ids("training")[1]
    np.testing.assert_allclose(
        item["spacing_mm"], np.linalg.norm(affine[:3, :3], axis=0), rtol=1e-6
    )


def test_worker_processes_and_pickles_give_the_same_items(store: Store) -> None:
    cases = store.dataset()
    copied = pickle.loads(pickle.dumps(cases))

    loader = DataLoader(cases, batch_size=None, num_workers=1, multiprocessing_context="fork")
    for number, item in enumerate(loader):
        assert torch.equal(item["image"], cases[number]["image"])
        assert torch.equal(item["image"], copied[number]["image"])


def test_monai_transforms_know_the_grid(store: Store) -> None:
    flipped = store.dataset("validation", as_monai=True, transform=Flipd(("image", "label"), 0))

    item, plain = flipped[0], store.dataset("validation")[0]

    assert isinstance(item["image"], MetaTensor)
    assert torch.equal(item["image"].as_tensor(), plain["image"].flip(1))
    last = torch.tensor([plain["image"].shape[1] - 1.0, 0, 0, 1], dtype=torch.float64)
    torch.testing.assert_close(item["image"].affine[:, 3], plain["affine"] @ last)


def test_a_list_that_is_none_and_one_without_cases_are_refused(store: Store) -> None:
    with pytest.raises(UserError, match="`train` is not a list of a store"):
        store.dataset("train")
    with pytest.raises(UserError, match="no case in the list `test`"):
        store.dataset("test")
