"""A store as a map-style data set of torch, for loops that are not ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from mim3d.foundation.errors import UserError

if TYPE_CHECKING:
    from mim3d.data.store.folder import Store
    from mim3d.data.store.opened import StoreCase

Transform = Callable[[dict[str, Any]], Any]


class CaseDataset(Dataset[Any]):
    """One item a case: its whole volume, normalised as training normalises, and its label map.

    An item is a dictionary: `image` (`c x y z`, float32), `label` (`1 x y z`, uint8, the store's
    class indices; left out where a case has none), `affine` (`4 4`, float64, voxel to mm, RAS+),
    `spacing_mm` (`3`), `case_id`, `subject_id`, and `targets` where the store has any. With
    `as_monai` image and label are MONAI's `MetaTensor` with that affine, so that transforms such as
    `Spacingd` and `RandCropByPosNegLabeld` know the grid.

    Holds no open file: it may be pickled, and read by worker processes.

    Args:
        store: prepared cohort.
        case_ids: which cases, in which order.
        transform: called with each item; what it returns is the item.
        as_monai: whether volumes are MONAI's.
    """

    def __init__(
        self,
        store: Store,
        case_ids: Sequence[str],
        *,
        transform: Transform | None = None,
        as_monai: bool = False,
    ) -> None:
        self.store = store
        self.case_ids = tuple(case_ids)
        self.transform = transform
        self.as_monai = as_monai
        for case_id in self.case_ids:
            store.entry(case_id)

    def __len__(self) -> int:
        return len(self.case_ids)

    def __getitem__(self, index: int) -> Any:
        case_id = self.case_ids[index]
        entry = self.store.entry(case_id)
        with self.store.open(case_id) as case:
            item = _volumes(case, as_monai=self.as_monai)
        item |= {"case_id": case_id, "subject_id": entry.subject_id}
        if self.store.target_names:
            item["targets"] = dict(entry.targets)
        return item if self.transform is None else self.transform(item)


def chosen_cases(
    store: Store, part: str | None, parts: Sequence[str], *, labelled: bool
) -> tuple[str, ...]:
    """The cases of a list, of which there is at least one.

    Args:
        store: prepared cohort.
        part: name of the list; None is every case.
        parts: the names there are.
        labelled: whether only cases with a label map count.

    Raises:
        UserError: there is no such list, or no such case.
    """
    if part is not None and part not in parts:
        raise UserError(
            f"`{part}` is not a list of a store", where=str(store.path),
            remedy=f"take one of {', '.join(parts)}", code="no-part",
        )  # fmt: skip
    found = store.ids(part)
    found = store.labelled(found) if labelled else found
    if not found:
        kind = "labelled case" if labelled else "case"
        where = "" if part is None else f" in the list `{part}`"
        raise UserError(
            f"the store has no {kind}{where}", where=str(store.path),
            remedy="`mim3d info STORE` says what each list holds", code="empty-cohort",
        )  # fmt: skip
    return found


def _volumes(case: StoreCase, *, as_monai: bool) -> dict[str, Any]:
    size: Any = case.shape[1:]
    affine = np.array(case.affine)
    image = torch.from_numpy(case.read_normalised((0, 0, 0), size))
    _, labels = case.read((0, 0, 0), size)
    item: dict[str, Any] = {"image": image}
    if labels is not None:
        item["label"] = torch.from_numpy(np.ascontiguousarray(labels))[None]
    if as_monai:
        from monai.data.meta_tensor import MetaTensor

        named = {"filename_or_obj": case.case_id}
        for name, volume in item.items():
            item[name] = MetaTensor(volume, affine=torch.from_numpy(affine), meta=dict(named))
    item["affine"] = torch.from_numpy(affine)
    item["spacing_mm"] = torch.tensor(case.spacing_mm, dtype=torch.float32)
    return item
