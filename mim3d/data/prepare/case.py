"""One case of a cohort: its files read, checked against each other, and prepared."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mim3d.config.read import ReadConfig
from mim3d.config.verbs import PreparationConfig
from mim3d.data.classes import ClassTable
from mim3d.data.cohort import Case
from mim3d.data.files import ReadWarning, check_same_grid, is_there, read_pair, read_volume
from mim3d.data.prepare.volume import VolumeRule, prepare_volume, with_notes
from mim3d.data.resample import resample_to
from mim3d.data.store.writing import PreparedCase
from mim3d.data.volume import Note, Volume
from mim3d.foundation.errors import VolumeError


def prepare_case(
    case: Case,
    rule: VolumeRule,
    classes: ClassTable | None,
    config: PreparationConfig,
    read: ReadConfig,
) -> PreparedCase:
    """Reads a case's files and prepares them.

    Args:
        case: which files.
        rule: what a store holds of a volume.
        classes: the source's class table; None takes the values found as classes, but for
            `config.ignore_label`.
        config: how files are joined.
        read: how files are read.

    Raises:
        VolumeError: a file cannot be taken, the files do not fit each other, or there is nothing
            in them.
    """
    with warnings.catch_warnings():
        # What the reader found odd is among the notes of each volume.
        warnings.simplefilter("ignore", ReadWarning)
        volume, label = _read(case, classes, config, read)
    if label is None:
        return prepare_volume(volume, rule, case_id=case.case_id)
    table = classes or ClassTable.from_values(
        np.unique(label.voxels.ravel(order="K")), ignore_value=config.ignore_label
    )
    indices = table.to_index(label.voxels[0])
    prepared = prepare_volume(volume, rule, indices, table.values, case.case_id)
    return with_notes(prepared, tuple(_of_label(note) for note in label.notes))


def read_images(images: Sequence[Path], *, align: bool, read: ReadConfig) -> Volume:
    """The files of a case as one volume, a channel a file.

    Args:
        images: one file with all channels, or one file a channel.
        align: resample channels to the first one's grid instead of refusing other grids.
        read: how files are read.

    Raises:
        VolumeError: a file is missing or cannot be taken, or channels lie on different grids.
    """
    _check_there(images)
    return _joined(read_volume(images[0], read), images, align, read)


def _read(
    case: Case, classes: ClassTable | None, config: PreparationConfig, read: ReadConfig
) -> tuple[Volume, Volume | None]:
    if case.label is None:
        return read_images(case.images, align=config.align_channels, read=read), None
    _check_there((*case.images, case.label))
    values = None if classes is None else classes.values
    ignore = config.ignore_label if classes is None else classes.ignore_value
    first, label = read_pair(
        case.images[0], case.label, config.trust_image_grid, values, ignore, read
    )
    return _joined(first, case.images, config.align_channels, read), label


def _check_there(paths: Sequence[Path]) -> None:
    for path in paths:
        if not is_there(path):
            raise VolumeError(
                "it does not exist", where=os.fspath(path), remedy="check the source's list",
                code="missing-file",
            )  # fmt: skip


def _joined(first: Volume, images: Sequence[Path], align: bool, read: ReadConfig) -> Volume:
    """The first channel with the others beside it."""
    if len(images) == 1:
        return first
    others = [_on_grid(read_volume(path, read), first, path, align) for path in images[1:]]
    volumes = [first, *others]
    several = [volume.channels for volume in volumes if volume.channels > 1]
    if several:
        raise VolumeError(
            f"a file that should hold one channel holds {several[0]}", code="channels"
        )
    voxels = np.concatenate([volume.voxels for volume in volumes])
    notes = dict.fromkeys(note for volume in volumes for note in volume.notes)
    unusable = None
    if any(volume.unusable is not None for volume in volumes):
        none = np.zeros((1, *first.shape), dtype=bool)
        unusable = np.concatenate(
            [none if volume.unusable is None else volume.unusable for volume in volumes]
        )
    return replace(first, voxels=voxels, notes=tuple(notes), unusable=unusable)


def _on_grid(volume: Volume, first: Volume, path: Path, align: bool) -> Volume:
    """The channel on the first one's grid: as it is, or resampled where that is asked for."""
    try:
        check_same_grid(first, volume, where=os.fspath(path))
    except VolumeError as error:
        if not align:
            error.remedy = "register the channels, or say `--prepare.align_channels true`"
            raise
    else:
        return volume
    try:
        # Beyond its own field of view a channel takes its smallest value.
        values = resample_to(volume.voxels, volume.affine, first.affine, first.shape,
                             outside=float(volume.voxels.min()))  # fmt: skip
    except ValueError:
        raise VolumeError(
            "its grid is turned against that of the first channel",
            where=os.fspath(path),
            remedy="register the channels with a tool of your own",
            code="grid",
        ) from None
    note = Note("aligned", "a channel was resampled to the first one's grid")
    return replace(first, voxels=values, notes=(*volume.notes, note), unusable=None)


def _of_label(note: Note) -> Note:
    return Note(note.code, f"label map: {note.text}")
