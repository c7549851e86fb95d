"""A store as a raw data set of nnU-Net: `imagesTr`, `labelsTr`, `imagesTs`, `dataset.json`.

Source: nnU-Net v2, `documentation/dataset_format.md`. One file a channel (`CASE_0000.nii.gz`),
labels counted from 0 without gaps, the label to ignore the highest. Lists go to
`splits_final.json`, which belongs beside nnU-Net's preprocessed data; what nnU-Net has no place for
(lists, subjects, original values, colours) stands in `dataset.json` under keys that it does not
read, so that `mim3d prepare` makes the same store of the folder again.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim3d.config.export import ExportConfig
from mim3d.data.classes import IGNORE_INDEX, ClassTable
from mim3d.data.cohort.cases import modality_of
from mim3d.data.files import write_label, write_volume
from mim3d.data.store import Store, StoreCase, open_store
from mim3d.data.store.layout import file_name
from mim3d.data.volume import Volume
from mim3d.foundation.atomic import make_folder, whole_folder, write_json
from mim3d.foundation.documents import DocumentError, read_object
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.reporting import Reporter
from mim3d.workflows.result import Result

ENDING = ".nii.gz"
DESCRIPTION, SPLITS = "dataset.json", "splits_final.json"
FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")
CHANNEL = re.compile(r"_\d{4}$")
NAMED = re.compile(r"Dataset\d{3}_[A-Za-z0-9_-]+")
OURS = "mim3d"
"""Key of `dataset.json` for what nnU-Net has no place for."""


def export_store(
    path: str,
    *,
    out: str,
    config: ExportConfig,
    reporter: Reporter,
    overwrite: bool,
    dry_run: bool,
) -> Result:
    """Writes the cases of a store as nnU-Net takes them.

    Intensities are the files' own, on the stored grid: whole numbers as int16 where they are, else
    float32. Training and validation cases with labels go to `imagesTr`; test cases and those
    without labels, which nnU-Net cannot train on, to `imagesTs`.

    Args:
        path: the store.
        out: the folder; nnU-Net wants `Dataset123_Name` below `nnUNet_raw`.
        config: the format; nothing else of it counts here.
        reporter: where progress goes.
        overwrite: replace an earlier export, and nothing else.
        dry_run: say what would be written, and write nothing.

    Raises:
        UserError: a store without labels, or damaged.
        ConfigError: something else stands at `out`.
    """
    del config
    store, folder = open_store(path), Path(out)
    classes = store.classes
    trained = _trained(store)
    if classes is None or not trained:
        raise UserError(
            f"the store `{path}` has no case with labels to train on, which nnU-Net needs",
            remedy="prepare it with label maps",
            code="no-labels",
        )
    names = {case_id: file_name(case_id) for case_id in store.cases}
    table = dataset_json(store, classes, names, trained)
    told = _told(store, classes, folder, trained)
    _check_free(folder, overwrite=overwrite)
    if dry_run:
        text = f"{len(store.cases)} cases would be written to `{out}`; nothing was (--dry_run)"
        return Result("\n".join([*told, text]), {"cases": len(store.cases)})
    with whole_folder(folder) as temporary:
        for name in FOLDERS[:2]:
            make_folder(temporary / name)
        for done, case_id in enumerate(store.cases):
            reporter.progress(done, len(store.cases), f"exporting {case_id}")
            with store.open(case_id) as case:
                part = "Tr" if case_id in trained else "Ts"
                _write_case(temporary, part, names[case_id], case, classes.count)
        write_json(temporary / SPLITS, [_split(store, names, trained)])
        write_json(temporary / DESCRIPTION, table)
    text = f"{len(trained)} case(s) to train on, {len(store.cases) - len(trained)} others"
    facts = {"cases": len(store.cases), "training": len(trained), "told": told}
    return Result("\n".join([*told, text]), facts, (folder,))


def dataset_json(
    store: Store, classes: ClassTable, names: dict[str, str], trained: frozenset[str]
) -> dict[str, Any]:
    """What nnU-Net reads of the data set, and what only mim3d does."""
    labels = {name: index for index, name in enumerate(_unique(classes.names))}
    colours = {str(i): list(rgb) for i, rgb in enumerate(classes.colours) if i}
    if classes.ignore_value is not None:
        labels["ignore"] = classes.count
    return {
        "name": store.name,
        "channel_names": {str(n): word for n, word in enumerate(_channels(store))},
        "labels": labels,
        "numTraining": len(trained),
        "file_ending": ENDING,
        "colours": colours,
        OURS: {
            "channel_names": list(store.channel_names),
            "values": list(classes.values),
            "ignore_value": classes.ignore_value,
            "cases": {
                names[case_id]: {
                    "case": case_id,
                    "subject": store.subject(case_id),
                    "list": store.part(case_id),
                    "targets": store.entry(case_id).targets,
                }
                for case_id in store.cases
            },
        },
    }


def _trained(store: Store) -> frozenset[str]:
    """Cases of `imagesTr`: with labels, and not of the test list."""
    return frozenset(c for c in store.cases
                     if store.entry(c).has_label and store.part(c) != "test")  # fmt: skip


def _channels(store: Store) -> list[str]:
    """Names of the channels; nnU-Net normalises by the word `CT` and takes others as MR."""
    pairs = zip(store.channel_names, store.modalities, strict=True)
    named = []
    for name, modality in pairs:
        is_unsaid = re.fullmatch(r"channel \d+", name) is not None
        word = "MRI" if modality == "mr" and is_unsaid else name
        # A contrast that only mim3d takes for CT would be normalised as MR there, and the reverse.
        named.append("CT" if modality == "ct" else f"{word} image" if _is_ct(word) else word)
    return named


def _is_ct(word: str) -> bool:
    return word.strip().lower() == "ct" or modality_of(word) == "ct"


def _unique(names: tuple[str, ...]) -> list[str]:
    """Class names as keys: `background` first, as nnU-Net demands, and none twice."""
    found: list[str] = []
    for index, name in enumerate(names):
        word = "background" if index == 0 else name
        if word in found or word.lower() == "ignore":
            word = f"{word} {index}"
        found.append(word)
    return found


def _told(store: Store, classes: ClassTable, folder: Path, trained: frozenset[str]) -> list[str]:
    lines = []
    if not NAMED.fullmatch(folder.name):
        lines.append(
            f"nnU-Net finds data sets by their name: call the folder `Dataset123_Name` instead of "
            f"`{folder.name}`"
        )
    if classes.values != tuple(range(classes.count)):
        pairs = ", ".join(f"{v} is {i}" for i, v in enumerate(classes.values) if i != v)
        lines.append(f"nnU-Net counts labels without gaps: {pairs}")
    unlabelled = [c for c in store.cases if c not in trained and store.part(c) != "test"]
    if unlabelled:
        lines.append(
            f"{len(unlabelled)} case(s) without labels go to `imagesTs`: nnU-Net does not train on "
            "them"
        )
    return lines


def _check_free(folder: Path, *, overwrite: bool) -> None:
    """Refuses a folder with anything in it that no export wrote: it may be somebody's originals."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder.is_dir() and _is_export(folder)):
        raise ConfigError(
            f"`{folder}` is there already, and is no export of `mim3d`",
            remedy="choose another --out",
            code="out",
        )
    if not overwrite:
        raise ConfigError(
            f"`{folder}` is there already",
            remedy="add `--overwrite`, or choose another --out",
            code="out",
        )


def _is_export(folder: Path) -> bool:
    """Whether an earlier export wrote all that is there."""
    try:
        names = set(read_object(folder / DESCRIPTION)[OURS]["cases"])
    except (UserError, DocumentError, LookupError, TypeError):
        return False
    written = {DESCRIPTION, SPLITS}
    for part in (one for one in FOLDERS if (folder / one).is_dir()):
        written.add(part)
        for file in (folder / part).iterdir():
            name = file.name.removesuffix(ENDING)
            if (CHANNEL.sub("", name) if part.startswith("images") else name) not in names:
                return False
    return {one.name for one in folder.iterdir()} <= written


def _write_case(folder: Path, part: str, name: str, case: StoreCase, classes: int) -> None:
    size = case.shape[1:]
    voxels, indices = case.read((0, 0, 0), size)
    like = Volume.from_array(voxels, case.affine)
    for number, (own, scale, offset) in enumerate(zip(voxels, *case.scaling(), strict=True)):
        file = folder / f"images{part}" / f"{name}_{number:04d}{ENDING}"
        write_volume(file, _intensities(own, scale, offset), like)
    if indices is not None:
        # What is ignored has the value behind the last class.
        counted = np.where(indices == IGNORE_INDEX, classes, indices).astype(np.uint8)
        write_label(folder / f"labels{part}" / f"{name}{ENDING}", counted, like)


def _intensities(voxels: NDArray[np.int16], scale: float, offset: float) -> NDArray[Any]:
    """The files' own units: integers where they were, in the smallest type that holds them."""
    if scale == 1 and offset == round(offset):
        whole = voxels.astype(np.int32) + int(offset)
        fits = np.iinfo(np.int16)
        is_small = fits.min <= whole.min() and whole.max() <= fits.max
        return whole.astype(np.int16) if is_small else whole
    # float64 first: in float32 alone the last of the 16 bits would be lost.
    return (voxels.astype(np.float64) * scale + offset).astype(np.float32)


def _split(store: Store, names: dict[str, str], trained: frozenset[str]) -> dict[str, list[str]]:
    """The store's own lists as nnU-Net's fold 0."""
    ids = [case_id for case_id in store.cases if case_id in trained]
    return {
        "train": [names[c] for c in ids if store.part(c) == "training"],
        "val": [names[c] for c in ids if store.part(c) == "validation"],
    }
