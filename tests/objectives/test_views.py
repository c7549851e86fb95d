from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import ConfigError
from mim3d.objectives.views import split_views

SIZE = (11, 13, 7)


@pytest.fixture
def batch() -> CropBatch:
    """Three views of two crops; every field says its row."""
    rows = torch.arange(6.0)
    return CropBatch(
        voxels=rows.view(6, 1, 1, 1, 1).expand(6, 2, *SIZE).contiguous(),
        affine=torch.eye(4, dtype=torch.float64) * rows.double()[:, None, None],
        case_ids=("a", "b") * 3,
        crop_ids=torch.tensor([4, 9] * 3),
        labels=rows.byte().view(6, 1, 1, 1).expand(6, *SIZE),
        valid=(rows > 3).view(6, 1, 1, 1).expand(6, *SIZE),
        targets=rows[:, None],
        present=rows[:, None] > 2,
        air=rows[:, None],
    )


def test_each_view_has_its_rows_of_every_field(batch):
    views = split_views(batch, 3)

    assert len(views) == 3
    for number, view in enumerate(views):
        rows = [2 * number, 2 * number + 1]
        assert view.case_ids == ("a", "b")
        assert view.crop_ids.tolist() == [4, 9]
        for name in {f.name for f in fields(CropBatch)} - {"case_ids"}:
            assert torch.equal(getattr(view, name), getattr(batch, name)[rows]), name


def test_views_are_slices_and_no_copies(batch):
    second = split_views(batch, 3)[1]

    assert second.voxels.data_ptr() == batch.voxels[2:].data_ptr()


def test_what_a_batch_lacks_its_views_lack(batch):
    bare = replace(batch, labels=None, valid=None, targets=None, present=None, air=None)

    for view in split_views(bare, 2):
        assert (view.labels, view.valid, view.targets, view.present, view.air) == (None,) * 5
        assert len(view.case_ids) == 3


def test_one_view_is_the_batch(batch):
    (only,) = split_views(batch, 1)

    assert torch.equal(only.voxels, batch.voxels)


def test_a_batch_that_does_not_divide_is_refused(batch):
    with pytest.raises(ConfigError, match="a batch of 6 crops does not divide into 4 views"):
        split_views(batch, 4)
