"""Which classes label maps have: the lists that stand beside them, and those of their case."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from mim3d.data.classes import ClassTable
from mim3d.data.palette import OKABE_ITO, TAB20, Rgb
from mim3d.evaluation.described import read_labels_json
from mim3d.foundation.documents import read_object
from mim3d.foundation.errors import UserError
from mim3d.workflows.view.catalogue import Catalogue
from mim3d.workflows.view.roots import Roots

LARGEST_JSON = 2**24


def lists_labels(path: Path) -> bool:
    """Whether a file is `{"labels": ...}`, as stands beside label maps: `organs.json`."""
    if path.suffix.lower() != ".json" or not path.is_file() or path.name == "dataset.json":
        return False
    return isinstance(read_object(path, most=LARGEST_JSON).get("labels"), dict)


def classes_beside(folder: Path, roots: Roots, found: Catalogue) -> ClassTable | None:
    """The classes that stand beside label maps; a note where they cannot be read."""
    try:
        if (folder / "labels.json").is_file():
            place = roots.check(folder / "labels.json")
            read_labels_json(place)
            return ClassTable.from_json(read_object(place, most=LARGEST_JSON))
        if (folder / "dataset.json").is_file():
            return named_classes(roots.check(folder / "dataset.json"))
    except UserError as error:
        found.notes.append(f"classes go by number: {error}")
    return None


def named_classes(path: Path) -> ClassTable | None:
    """The classes of nnU-Net's `dataset.json` beside predictions, without its cases."""
    labels = read_object(path, most=LARGEST_JSON).get("labels")
    if not isinstance(labels, dict):
        return None
    flipped = not all(str(key).isdigit() for key in labels)
    pairs = [(value, key) if flipped else (key, value) for key, value in labels.items()]
    names = {int(v): str(n) for v, n in pairs if str(v).isdigit() and str(n) != "ignore"}
    return ClassTable.from_values(names, names) if names else None


def share_classes(found: Catalogue) -> None:
    """Gives label maps without a list of classes that of their case, and a class one colour.

    A prediction may know fewer classes than the label map that it is held against, and both lists
    may take their colours in the order of their own classes.
    """
    for case in found.cases.values():
        labels = [number for number in case.layers if found.layers[number].role != "image"]
        labels.sort(key=lambda number: found.layers[number].role == "prediction")
        known = [classes for n in labels if (classes := found.layers[n].classes) is not None]
        colours: dict[int, Rgb] = {}
        for classes in known:
            own = dict(zip(classes.values, classes.colours, strict=True))
            taken = set(colours.values())
            colours |= {v: rgb for v, rgb in own.items() if v not in colours and rgb not in taken}
            colours |= colours_by_value(own.keys() - colours.keys(), set(colours.values()))
        for number in labels:
            layer = found.layers[number]
            if known:
                table = layer.classes or known[0]
                painted = tuple(colours[value] for value in table.values)
                found.layers[number] = replace(layer, classes=replace(table, colours=painted))


def colours_by_value(values: Iterable[int], taken: Collection[Rgb]) -> dict[int, Rgb]:
    """A colour that follows from the value, none that is taken as long as there are others."""
    palette = [rgb for rgb in OKABE_ITO + TAB20 if rgb not in taken] or list(OKABE_ITO)
    return {value: palette[(value - 1) % len(palette)] for value in values if value > 0}
