"""From paths to a catalogue: what each folder is, by what lies in it. Opens hardly any volume."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mim3d.config.read import ReadConfig
from mim3d.data.cohort import Cohort, read_cohort
from mim3d.data.cohort.cases import is_volume_name, stem
from mim3d.data.cohort.folders import IMAGES, IS_LABEL, LABELS, is_dicom_folder
from mim3d.data.files import archive_of
from mim3d.data.store import open_store
from mim3d.evaluation.described import is_label_file
from mim3d.evaluation.results import read_results
from mim3d.foundation.errors import UserError
from mim3d.workflows.naming import names_of
from mim3d.workflows.view.catalogue import Catalogue, Layer, Panel, Role
from mim3d.workflows.view.pairing import BIDS, Home, common_folder, home_of, is_plain, owner_of
from mim3d.workflows.view.reading import looks_like_labels
from mim3d.workflows.view.roots import Roots
from mim3d.workflows.view.tables import classes_beside, lists_labels, named_classes, share_classes

TABLES = (".csv", ".tsv", ".npz")
MOST_CHANNELS = 8
PREDICTED = ("labels.json", "predict_from_raw_data_args.json")
"""What mim3d and nnU-Net write beside predictions."""
CHANNEL = re.compile(r"(.+)_(\d{4})")
"""nnU-Net's image names: the case, and the number of the channel."""
STEP = re.compile(r"(.+?)_(\d{3,})")
"""A picture of a step: `reconstruction_0000200`."""


@dataclass
class Search:
    """One search through the given paths.

    Attributes:
        roots: what may be read.
        read: limits of the reader.
        found: what there is, so far.
        results: files of results, put to their cases at the end.
    """

    roots: Roots
    read: ReadConfig
    found: Catalogue
    results: list[Path]

    def home(self, folder: Path, *, is_apart: bool = False) -> Home:
        """Which folders tell the files of one from others of their names."""
        return home_of(folder, common_folder(self.roots.given), is_apart=is_apart)


def find(roots: Roots, read: ReadConfig) -> Catalogue:
    """Everything under the given paths that can be shown.

    Args:
        roots: the paths.
        read: limits of the reader.

    Raises:
        UserError: nothing there can be shown, or a file that was named cannot be used.
    """
    search = Search(roots, read, Catalogue(), [])
    if _is_one_case(roots.given):
        _files_together(search)
    else:
        for path in roots.given:
            (_file if path.is_file() else _tree)(path, search)
    found = search.found
    found.sort()
    share_classes(found)
    names = names_of(search.results)
    for path in search.results:
        _scores(path, names[path], search, was_named=path in roots.given)
    if roots.left_out:
        found.notes.append(
            f"{len(roots.left_out)} link(s) lead out of the given paths and are left out, first "
            f"`{roots.left_out[0].name}`: give the folder that they lead to as well"
        )
    if not found.cases and not found.panels:
        raise UserError(
            "there is nothing to see",
            where=", ".join(f"`{path}`" for path in roots.given),
            remedy="give volumes, folders of them, a store, predictions, or a run with pictures"
            + (f"; {found.notes[0]}" if found.notes else ""),
            code="nothing-to-see",
        )
    return found


def _is_one_case(given: tuple[Path, ...]) -> bool:
    """Whether only volumes were named, and lists of their labels."""
    volumes = [path for path in given if path.is_file() and is_volume_name(path.name)]
    others = [path for path in given if path not in volumes]
    return bool(volumes) and all(lists_labels(path) for path in others)


def _files_together(search: Search) -> None:
    """Files of volumes alone are layers of one case: `mim3d view scan.nii.gz organs.nii.gz`."""
    paths = [path for path in search.roots.given if is_volume_name(path.name)]
    lists = {path.stem: path for path in search.roots.given if path not in paths}
    name = stem(paths[0])
    for path in paths:
        classes = named_classes(lists[stem(path)]) if stem(path) in lists else None
        role = _role_of_file(path, search)
        search.found.add(name, Layer(role, stem(path), path, classes=classes))


def _file(path: Path, search: Search) -> None:
    if is_volume_name(path.name):
        layer = Layer(_role_of_file(path, search), _place(path), path)
        search.found.add(stem(path), layer, home=search.home(path.parent))
    elif path.name == "dataset.json" or path.suffix.lower() in TABLES:
        _cohort(path, search, was_named=True)
    elif path.suffix.lower() == ".json":
        search.results.append(path)
    elif path.suffix.lower() == ".png":
        search.found.panels.append(Panel(path.parent.name, "picture", path.stem, path))
    else:
        raise UserError(
            f"`{path.name}` is nothing that can be shown",
            remedy="volumes end in .nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd or .hdr; results of "
            "`mim3d evaluate` in .json",
            code="unknown-format",
        )


def _tree(top: Path, search: Search) -> None:
    """Looks through a folder; what a dataset.json or a store holds is not looked at twice."""
    taken: list[Path] = []
    for folder, inside in search.roots.folders(top):
        if any(root == folder or root in folder.parents for root in taken):
            continue
        names = {path.name for path in inside}
        if "manifest.json" in names and "fingerprint.json" in names:
            _store(folder, search)
            taken.append(folder)
        elif "dataset.json" in names and not any(is_label_file(path) for path in inside):
            if _cohort(folder / "dataset.json", search):
                taken.append(folder)
        else:
            _folder(folder, inside, search)


def _folder(folder: Path, inside: list[Path], search: Search) -> None:
    names = {path.name for path in inside}
    volumes = [path for path in inside if is_label_file(path)]
    if volumes:
        _volumes(folder, inside, volumes, search)
    elif any(path.is_file() for path in inside) and is_dicom_folder(folder):
        case, home = owner_of(folder.name, search.home(folder.parent))
        search.found.add(case, Layer("image", _place(folder), folder), home=home)
    if "pictures" in names and ("status.json" in names or names & set(PREDICTED)):
        _panels(folder, search)
    is_run = "status.json" in names
    for path in inside:
        if path.suffix == ".json" and path.name.startswith("results") and not is_run:
            search.results.append(path)


def _volumes(folder: Path, inside: list[Path], volumes: list[Path], search: Search) -> None:
    """One layer a file; what they are, the folder says, else each name, else the first file."""
    names = {path.name for path in inside}
    classes = (
        classes_beside(folder, search.roots, search.found)
        if names & {*PREDICTED, "dataset.json"}
        else None
    )
    fixed: Role | None = None
    if LABELS.fullmatch(folder.name) and not names & set(PREDICTED):
        fixed = "label"
    elif names & {*PREDICTED, "dataset.json"}:
        fixed = "prediction"
    channels = _channels(folder, volumes)
    images = [path for path in volumes if not IS_LABEL.search(stem(path))]
    alike = _looking_like_labels(images, search) if fixed is None else set()
    if alike and len(alike) == len(images):
        is_predicted = any("pred" in name.lower() for name in folder.parts[-2:])
        fixed = "prediction" if is_predicted else "label"
    if alike:
        which = f"`{images[0].name}` holds" if fixed else f"{len(alike)} of its files hold"
        search.found.notes.append(
            f"{'all' if fixed else 'some'} of `{folder.name}` is shown as label maps: {which} few "
            "whole numbers"
        )
    home, whole = search.home(folder, is_apart=fixed is not None), search.home(folder)
    for path in volumes:
        is_label = path in alike or IS_LABEL.search(stem(path))
        role = fixed or ("label" if is_label else "image")
        case, contrast = channels.get(path) or (stem(path), _contrast(path))
        name = _place(folder / "x") if role != "image" else contrast
        listed = folder / f"{stem(path)}.json"
        own = role != "image" and listed in inside and lists_labels(listed)
        table = named_classes(listed) if own else classes
        above = home
        if is_plain(case):
            name = case
            case, above = owner_of(case, whole)
        search.found.add(case, Layer(role, name, path, classes=table), home=above)


def _looking_like_labels(images: list[Path], search: Search) -> set[Path]:
    """Files without a word for label maps in their names that are some; of most folders two tell.

    Only where the first and the last one differ in kind all are looked at.
    """
    if not images:
        return set()
    first, last = (looks_like_labels(path, search.read) for path in (images[0], images[-1]))
    if first == last:
        return set(images) if first else set()
    return {path for path in images if looks_like_labels(path, search.read)}


def _contrast(path: Path) -> str:
    """What tells the images of one case apart: the suffix of BIDS, else the folder."""
    base = stem(path)
    if base.startswith("sub-") and "_" in base:
        return "_".join(part for part in base.split("_") if not BIDS.fullmatch(part))
    return path.parent.name


def _channels(folder: Path, volumes: list[Path]) -> dict[Path, tuple[str, str]]:
    """Case and channel of the files of an nnU-Net folder `imagesTs`; empty for other folders.

    `case_0001` may as well be the second case of a folder: a channel it is where every case has
    the same ones, and number 0 among them.
    """
    found = {path: CHANNEL.fullmatch(stem(path)) for path in volumes}
    parts = {path: (match[1], int(match[2])) for path, match in found.items() if match}
    if not IMAGES.fullmatch(folder.name) or len(parts) < len(volumes):
        return {}
    by_case: dict[str, set[int]] = {}
    for case, number in parts.values():
        by_case.setdefault(case, set()).add(number)
    every = list(by_case.values())
    if 0 not in every[0] or any(one != every[0] for one in every) or len(every[0]) > MOST_CHANNELS:
        return {}
    return {path: (case, f"channel {number}") for path, (case, number) in parts.items()}


def _role_of_file(path: Path, search: Search) -> Role:
    if IS_LABEL.search(stem(path)) or LABELS.fullmatch(path.parent.name):
        return "label"
    return "label" if looks_like_labels(path, search.read) else "image"


def _cohort(path: Path, search: Search, *, was_named: bool = False) -> bool:
    """The cases of a source with a list; whether it could be read."""
    try:
        cohort = read_cohort(path)
    except UserError as error:
        if was_named:
            raise
        search.found.notes.append(f"`{path.parent.name}/{path.name}` is passed over: {error}")
        return False
    home = search.home(path.parent)
    for case in cohort.cases:
        several = len(case.images) > 1
        paths = [*case.images, *([case.label] if case.label else [])]
        outside = [one for one in paths if not search.roots.holds(archive_of(one) or one)]
        search.roots.left_out += outside
        for place, image in enumerate(case.images):
            if image not in outside:
                names = cohort.channel_names or ()
                own = names[place : place + 1] if several else names
                layer = Layer("image", _title(cohort, path), image, channel_names=own)
                search.found.add(case.case_id, layer, part=case.part, home=home)
        if case.label is not None and case.label not in outside:
            layer = Layer("label", _title(cohort, path), case.label, classes=cohort.classes)
            search.found.add(case.case_id, layer, part=case.part, home=home)
    return True


def _title(cohort: Cohort, path: Path) -> str:
    return cohort.name or (path.parent.name if path.name == "dataset.json" else path.stem)


def _store(folder: Path, search: Search) -> None:
    try:
        store = open_store(folder)
    except UserError as error:
        search.found.notes.append(f"the store `{folder.name}` is passed over: {error}")
        return
    title = folder.name if folder.name.lower() == "store" else f"store {folder.name}"
    home = search.home(folder)
    for case_id, entry in store.entries.items():
        image = Layer("image", title, folder, case_id, store.channel_names)
        search.found.add(case_id, image, part=entry.part, home=home)
        if entry.has_label:
            layer = Layer("label", title, folder, case_id, classes=store.classes)
            search.found.add(case_id, layer, part=entry.part, home=home)


def _panels(folder: Path, search: Search) -> None:
    """The pictures of a run, steps of one kind after each other."""
    try:
        pictures = search.roots.listed(folder / "pictures")
    except OSError:
        return
    for path in pictures:
        if path.suffix == ".png" and path.is_file():
            found = STEP.fullmatch(path.stem)
            kind, title = (found[1], f"step {int(found[2])}") if found else (path.stem, path.stem)
            if not (folder / "status.json").is_file():
                kind = "overlays"
            search.found.panels.append(Panel(_place(folder / "x"), kind, title, path))


def _scores(path: Path, name: str, search: Search, *, was_named: bool) -> None:
    try:
        results = read_results(path)
    except UserError as error:
        if was_named:
            raise
        search.found.notes.append(f"`{path.name}` is passed over: {error}")
        return
    cases = search.found.add_scores(name, results.scores, search.home(path.parent))
    if not cases:
        search.found.notes.append(f"`{path.name}` scores none of the cases that were found")


def _place(path: Path) -> str:
    """A folder by its last two names, where the upper one helps to tell it from others."""
    folder, above = path.parent.name, path.parent.parent.name
    return f"{above}/{folder}" if above in ("predictions", "runs", "labels") else folder
