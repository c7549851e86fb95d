"""Views of a batch: several crops of one case under one id, taken apart."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import ConfigError


def split_views(batch: CropBatch, views: int) -> tuple[CropBatch, ...]:
    """The views of a batch, each a batch of its own; row i of each shows crop `crop_ids[i]`.

    Args:
        batch: first view of all crops, then the second, as a feed lays them out.
        views: how many there are.

    Returns:
        One batch a view; tensors are slices of the whole batch's, not copies.

    Raises:
        ConfigError: the batch does not divide by views.
    """
    rows, rest = divmod(len(batch.case_ids), views)
    if rest:
        raise ConfigError(
            f"a batch of {len(batch.case_ids)} crops does not divide into {views} views",
            code="views",
        )
    return tuple(_rows(batch, slice(v * rows, (v + 1) * rows)) for v in range(views))


def _rows(batch: CropBatch, rows: slice) -> CropBatch:
    named = {field.name: getattr(batch, field.name) for field in fields(batch)}
    some: dict[str, Any] = {k: v[rows] for k, v in named.items() if isinstance(v, Tensor | tuple)}
    return replace(batch, **some)
