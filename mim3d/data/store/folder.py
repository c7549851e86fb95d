"""A store as a whole: its cases, lists, classes, preparation and fingerprint."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mim3d.data.classes import ClassTable
from mim3d.data.store.entry import PARTS, StoreEntry, target_classes
from mim3d.data.store.layout import (
    FINGERPRINT,
    MANIFEST,
    QUARANTINE,
    case_path,
    damaged_record,
    read_json,
    sidecar_path,
    sidecar_paths,
)
from mim3d.data.store.opened import StoreCase
from mim3d.foundation.digests import file_digest
from mim3d.foundation.errors import UserError

if TYPE_CHECKING:
    from mim3d.data.store.dataset import CaseDataset, Transform

Triple = tuple[int, int, int]


class Store:
    """A prepared cohort. Holds no open file; may be pickled and used after a fork.

    Args:
        path: the folder that `mim3d prepare` made.

    Raises:
        UserError: no store there, unfinished, damaged, or of another version.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.manifest: dict[str, Any] = _read_manifest(self.path)
        try:
            entries = [StoreEntry.from_json(stored) for stored in self.manifest["cases"]]
            classes = self.manifest["classes"]
            table = None if classes is None else ClassTable.from_json(classes)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise damaged_record(self.path / MANIFEST, "it does not describe a store") from error
        self.entries: dict[str, StoreEntry] = {entry.case_id: entry for entry in entries}
        self.classes: ClassTable | None = table
        self._verified: set[str] = set()

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(self.ids(part))} {part}" for part in PARTS)
        return f"Store({str(self.path)!r}: {self.name}, {counts})"

    @property
    def name(self) -> str:
        """What the source calls itself, else the store's folder."""
        return str(self.manifest.get("name") or self.path.name)

    @property
    def cases(self) -> tuple[str, ...]:
        """All case ids, sorted."""
        return tuple(self.entries)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """One name a channel."""
        return tuple(map(str, self._stored("channel_names", list)))

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.channel_names)

    @property
    def modalities(self) -> tuple[str, ...]:
        """`ct`, `mr` or `other`, one a channel."""
        return tuple(map(str, self._stored("modalities", list)))

    @property
    def modality(self) -> str:
        """The one of all channels, or `mixed`."""
        return self.modalities[0] if len(set(self.modalities)) == 1 else "mixed"

    @property
    def preparation(self) -> dict[str, Any]:
        """The settings the store was made with; `data.prepare` prepares a volume alike by them."""
        return dict(self._stored("preparation", dict))

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Shapes, spacings, intensities and class frequencies of the cohort."""
        return read_json(self.path / FINGERPRINT)

    @cached_property
    def median_spacing_mm(self) -> tuple[float, float, float]:
        """Median voxel size of all cases, as stored."""
        x, y, z = np.median([e.spacing_mm for e in self.entries.values()], axis=0).tolist()
        return (x, y, z)

    @property
    def members(self) -> dict[str, Store]:
        """The stores that this one is made of, by their names."""
        return {self.name: self}

    @property
    def median_shape(self) -> Triple:
        """Voxels of the median volume along x, y, z, as stored."""
        x, y, z = (round(side) for side in self.fingerprint["stored"]["shape"]["median"])
        return x, y, z

    def modalities_of(self, case_id: str) -> tuple[str, ...]:
        """`ct`, `mr` or `other`, one a channel, of one case."""
        self.entry(case_id)
        if None not in self.preparation.get("modalities", ()):
            return self.modalities
        facts = read_json(sidecar_path(self.path, case_id))["facts"]
        return tuple(map(str, facts["modalities"]))

    def strata(self, cases: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """The cases of each store that this one is made of, by its name."""
        return {self.name: tuple(cases)}

    def labelled(self, cases: Iterable[str]) -> tuple[str, ...]:
        """Those of the cases that have labels of `classes`."""
        return tuple(case_id for case_id in cases if self.entry(case_id).has_label)

    @property
    def target_names(self) -> tuple[str, ...]:
        """What the numbers to predict are called; not every case need have each."""
        names = (name for entry in self.entries.values() for name in entry.targets)
        return tuple(dict.fromkeys(names))

    def target_classes(self, name: str) -> tuple[float, ...]:
        """The distinct values of a target over all cases, rising; none where they are no classes.

        Raises:
            UserError: no case has such a target.
        """
        known = [e.targets[name] for e in self.entries.values() if name in e.targets]
        if not known:
            raise UserError(
                f"the store has no target `{name}`",
                where=str(self.path),
                remedy=f"it has {', '.join(self.target_names) or 'none'}; a CSV gives them as "
                "`target_<name>`",
                code="no-target",
            )
        return target_classes(known)

    def ids(self, part: str | None = None) -> tuple[str, ...]:
        """Case ids of one list, or of all."""
        return tuple(e.case_id for e in self.entries.values() if part in (None, e.part))

    def part(self, case_id: str) -> str:
        """The list a case belongs to."""
        return self.entry(case_id).part

    def subject(self, case_id: str) -> str:
        """Whose case it is."""
        return self.entry(case_id).subject_id

    def source_hash(self, case_id: str) -> str:
        """Hash of the image files' content; equal for equal images in any store."""
        return self.entry(case_id).image_key

    def entry(self, case_id: str) -> StoreEntry:
        """The manifest's line of a case.

        Raises:
            UserError: no such case.
        """
        if case_id not in self.entries:
            raise UserError(f"the store has no case `{case_id}`", where=str(self.path))
        return self.entries[case_id]

    def open(self, case_id: str, verify: bool = True) -> StoreCase:
        """A case to read from.

        Args:
            case_id: which.
            verify: compare the checksum of the whole file, the first time in this process.
        """
        values = None if self.classes is None else self.classes.values
        verified = self._verified if verify else None
        return StoreCase(self.path, self.entry(case_id), values, verified)

    def dataset(
        self,
        part: str | None = None,
        *,
        labelled: bool = False,
        transform: Transform | None = None,
        as_monai: bool = False,
    ) -> CaseDataset:
        """The cases as a map-style data set of torch, one whole volume an item.

        Args:
            part: `training`, `validation` or `test`; None is every case.
            labelled: only cases with a label map.
            transform: called with each item; what it returns is the item.
            as_monai: volumes are MONAI's `MetaTensor`, for its dictionary transforms.

        Raises:
            UserError: there is no such list, or no such case.
        """
        # Late: preparation opens stores too, and does without torch.
        from mim3d.data.store.dataset import CaseDataset, chosen_cases

        chosen = chosen_cases(self, part, PARTS, labelled=labelled)
        return CaseDataset(self, chosen, transform=transform, as_monai=as_monai)

    def verify(self, case_ids: Iterable[str] | None = None) -> dict[str, str]:
        """Reads whole files and compares their checksums.

        Returns:
            Case id to what is wrong with it; empty if all is well.
        """
        wrong: dict[str, str] = {}
        for case_id in self.cases if case_ids is None else case_ids:
            path = case_path(self.path, case_id)
            if not path.is_file():
                wrong[case_id] = "its file is missing"
            elif file_digest(path) != self.entry(case_id).sha256:
                wrong[case_id] = "its checksum is wrong"
            else:
                try:
                    read_json(sidecar_path(self.path, case_id))
                except UserError as error:
                    wrong[case_id] = error.what
        return wrong

    def verify_tables(self) -> dict[str, str]:
        """Compares what stands in the store besides its cases with its checksums.

        Returns:
            A file's name to what is wrong with it; empty if all is well.
        """
        wrong: dict[str, str] = {}
        mine = {sidecar_path(self.path, case_id) for case_id in self.cases}
        refused = [path for path in sidecar_paths(self.path) if path not in mine]
        for path in (self.path / FINGERPRINT, *refused):
            try:
                read_json(path)
            except UserError as error:
                wrong[path.name] = error.what
        noted = self.manifest.get(QUARANTINE)
        path = self.path / QUARANTINE
        if noted is not None and not (path.is_file() and file_digest(path) == noted):
            wrong[QUARANTINE] = "it is not as it was written"
        return wrong

    def _stored(self, name: str, kind: type) -> Any:
        value = self.manifest.get(name)
        if not isinstance(value, kind):
            raise damaged_record(self.path / MANIFEST, f"it has no `{name}`")
        return value


def open_store(path: Path | str) -> Store:
    """The store in that folder.

    Raises:
        UserError: no store there, unfinished, damaged, or of another version.
    """
    return Store(path)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"`{folder}` is not a store, or its preparation has not finished",
            remedy=f"`mim3d prepare SOURCE --out {folder}` makes or finishes it",
            code="no-store",
        )
    return read_json(path)
