"""Several stores as one cohort, with the face of one store, for pre-training.

A case is known by the name of its store and its id there, a subject by its id alone: a patient who
was scanned twice judges in both stores or in neither. Voxels, spacing and normalisation stay each
store's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mim3d.data.classes import ClassTable
from mim3d.data.store.folder import Store, Triple
from mim3d.data.store.opened import StoreCase
from mim3d.foundation.errors import ConfigError

MIXED = "mixed"
"""What a channel is whose modality is not the same in all stores."""


class JoinedStore(Store):
    """Several prepared cohorts as one.

    Args:
        stores: two or more, in the order in which they are named.

    Raises:
        ConfigError: a store stands there twice, the stores have different numbers of channels, or
            an image that one trains on judges in another.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self._members = _named(stores)
        _check_channels(self._members)
        self.path = Path(", ".join(str(store.path) for store in stores))
        self._origin = {
            f"{name}/{case_id}": (name, case_id)
            for name, store in self.members.items()
            for case_id in store.cases
        }
        self.entries = {
            case_id: replace(self.members[name].entry(own), case_id=case_id)
            for case_id, (name, own) in self._origin.items()
        }
        _check_judges(self)
        self.classes: ClassTable | None = next(
            (store.classes for store in stores if store.classes is not None), None
        )

    @property
    def members(self) -> dict[str, Store]:
        """The stores, by their names; of those with one name the later ones have a number."""
        return self._members

    @property
    def name(self) -> str:
        """The names of all."""
        return ", ".join(self.members)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """One name a channel; where stores differ, all of its names."""
        return tuple(
            "/".join(dict.fromkeys(names))
            for names in zip(*(s.channel_names for s in self.members.values()), strict=True)
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """`ct`, `mr` or `other`, one a channel, or `mixed` where stores differ."""
        return tuple(
            kinds[0] if len(set(kinds)) == 1 else MIXED
            for kinds in zip(*(s.modalities for s in self.members.values()), strict=True)
        )

    @property
    def preparation(self) -> dict[str, Any]:
        """The settings each store was made with, by its name."""
        return {name: store.preparation for name, store in self.members.items()}

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """The fingerprint of each store, by its name."""
        return {name: store.fingerprint for name, store in self.members.items()}

    @cached_property
    def median_shape(self) -> Triple:
        """Voxels of the median volume of all cases along x, y, z, as stored."""
        x, y, z = np.median([e.shape[1:] for e in self.entries.values()], axis=0).tolist()
        return round(x), round(y), round(z)

    def modalities_of(self, case_id: str) -> tuple[str, ...]:
        """`ct`, `mr` or `other`, one a channel, of the store that a case lies in."""
        self.entry(case_id)
        member, own_id = self._origin[case_id]
        return self.members[member].modalities_of(own_id)

    def strata(self, cases: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """The cases of each store, by its name."""
        parts: dict[str, list[str]] = {name: [] for name in self.members}
        for case_id in cases:
            parts[self._origin[case_id][0]].append(case_id)
        return {name: tuple(part) for name, part in parts.items()}

    def labelled(self, cases: Iterable[str]) -> tuple[str, ...]:
        """Those of the cases whose labels are `classes`: of stores that have the same table."""
        alike = {name for name, store in self.members.items() if store.classes == self.classes}
        return tuple(
            case_id
            for case_id in cases
            if self.entry(case_id).has_label and self._origin[case_id][0] in alike
        )

    def open(self, case_id: str, verify: bool = True) -> StoreCase:
        """A case to read from; arguments as `Store.open` takes them."""
        self.entry(case_id)
        name, own = self._origin[case_id]
        case = self.members[name].open(own, verify)
        case.case_id = case_id
        return case

    def verify(self, case_ids: Iterable[str] | None = None) -> dict[str, str]:
        """Case id to what is wrong with its file, as `Store.verify` finds it."""
        wrong: dict[str, str] = {}
        for case_id in self.cases if case_ids is None else case_ids:
            name, own = self._origin[case_id]
            found = self.members[name].verify([own])
            if found:
                wrong[case_id] = found[own]
        return wrong

    def verify_tables(self) -> dict[str, str]:
        """Name of a store and a file to what is wrong with it, as `Store.verify_tables` finds."""
        return {
            f"{name}/{file}": why
            for name, store in self.members.items()
            for file, why in store.verify_tables().items()
        }


def open_stores(paths: Sequence[Path | str]) -> Store:
    """The stores in these folders as one; a single one as it is.

    Raises:
        UserError: one of them is no store, unfinished, damaged, or of another version.
        ConfigError: they cannot be one cohort.
    """
    stores = [Store(path) for path in paths]
    return stores[0] if len(stores) == 1 else JoinedStore(stores)


def _named(stores: Sequence[Store]) -> dict[str, Store]:
    """The stores by the names that tell them apart."""
    named: dict[str, Store] = {}
    known: set[Path] = set()
    for store in stores:
        if store.path.resolve() in known:
            raise ConfigError(
                f"`data.stores` names `{store.path}` twice",
                remedy="name each store once; `data.store_weights` says how often it is drawn from",
                code="stores",
            )
        known.add(store.path.resolve())
        name, number = store.name, 1
        while name in named:
            number += 1
            name = f"{store.name} {number}"
        named[name] = store
    return named


def _check_channels(members: dict[str, Store]) -> None:
    first, *others = members.values()
    for other in others:
        if other.channels != first.channels:
            listed = " and ".join(
                f"`{store.path}` has {store.channels} ({', '.join(store.channel_names)})"
                for store in (first, other)
            )
            raise ConfigError(
                f"the stores have different numbers of channels: {listed}",
                remedy="name stores with equally many channels in `data.stores`",
                code="channels",
            )


def _check_judges(store: JoinedStore) -> None:
    """Refuses an image that judges in one store and is learned from, as another's, in the next."""
    judging = {e.image_key: e for e in store.entries.values() if e.part == "validation"}
    for entry in store.entries.values():
        judge = judging.get(entry.image_key)
        if judge is None or entry.part != "training" or entry.subject_id == judge.subject_id:
            continue
        raise ConfigError(
            f"`{entry.case_id}` would be trained on and is the same image as `{judge.case_id}`, "
            "which is in a validation list",
            remedy="prepare both stores with the same lists, or leave one of them out",
            code="stores",
        )
