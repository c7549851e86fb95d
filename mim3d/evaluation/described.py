"""What stands beside label files about their classes and cases: `labels.json`, `dataset.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mim3d.data.classes import ClassTable, check_names
from mim3d.data.cohort.cases import is_volume_name, stem
from mim3d.data.regions import RegionScheme, region_scheme
from mim3d.evaluation.overlap import Structure
from mim3d.foundation.documents import read_object
from mim3d.foundation.errors import UserError

LARGEST_JSON = 2**24
PARTS = ("training", "validation", "test")


@dataclass(frozen=True)
class Described:
    """Classes and cases as a file beside the labels has them.

    Attributes:
        structures: what to score, background left out; None where no class is named.
        scheme: the scheme whose regions these are, or None.
        ignore_value: value that is left out, or None.
        subjects: case id to subject.
        parts: case id to the list it is in.
    """

    structures: tuple[Structure, ...] | None = None
    scheme: RegionScheme | None = None
    ignore_value: int | None = None
    subjects: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)

    @property
    def values(self) -> frozenset[int] | None:
        """Values that a label map may hold; None where nothing is said or the scheme decides."""
        if self.structures is None or self.scheme is not None:
            return None
        return frozenset({0, *(value for s in self.structures for value in s.values)})


def is_label_file(path: Path) -> bool:
    """Whether the name is that of a volume, and not one of probabilities."""
    named = is_volume_name(path.name) and not stem(path).endswith("_probabilities")
    return named and path.is_file()


def of_classes(classes: ClassTable) -> tuple[Structure, ...]:
    """Every class but the background and what is left out."""
    return tuple(Structure(name, (value,)) for value, name in classes.scored)


def of_regions(scheme: RegionScheme) -> tuple[Structure, ...]:
    """Every region of a scheme, in its order."""
    return tuple(Structure(name, tuple(values)) for name, values in scheme.regions.items())


def read_labels_json(path: Path) -> Described:
    """What `mim3d predict` wrote beside its predictions.

    Raises:
        UserError: the file is damaged, calls two values alike or names an unknown region scheme.
    """
    content = _json(path)
    try:
        classes = ClassTable.from_json(content)
        regions = content.get("regions")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"`{path.name}` beside the predictions does not list classes",
            remedy="remove it to score classes by their numbers",
            code="bad-labels-json",
        ) from error
    check_names(classes.values, classes.names, path)
    if regions is None:
        return Described(of_classes(classes), ignore_value=classes.ignore_value)
    scheme = region_scheme(regions)
    return Described(of_regions(scheme), scheme, classes.ignore_value)


def read_dataset_json(path: Path) -> Described:
    """Classes, subjects and lists of an MSD or nnU-Net `dataset.json`.

    Raises:
        UserError: the file is no JSON object, or its labels are neither names nor numbers, or two
            are called alike.
    """
    content = _json(path)
    labels = content.get("labels")
    subjects: dict[str, str] = {}
    parts: dict[str, str] = {}
    for part in PARTS:
        entries = content.get(part)
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, Mapping) and isinstance(entry.get("label"), str):
                case = stem(Path(entry["label"]))
                parts[case] = part
                if "subject" in entry:
                    subjects[case] = str(entry["subject"])
    if not isinstance(labels, Mapping) or not labels:
        return Described(subjects=subjects, parts=parts)
    try:
        named = _named(labels, path)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the labels of `{path.name}` are neither number to name nor name to number",
            code="bad-dataset-json",
        ) from error
    ignored = named.pop("ignore", None)
    structures = tuple(Structure(name, values) for name, values in named.items() if any(values))
    ignore = ignored[0] if ignored else None
    return Described(structures or None, None, ignore, subjects, parts)


def _named(labels: Mapping[str, Any], path: Path) -> dict[str, tuple[int, ...]]:
    """MSD's number to name and nnU-Net's name to number, or numbers, as name to values."""
    if all(str(key).isdigit() for key in labels):
        check_names(map(int, labels), map(str, labels.values()), path)
        return {str(name): (int(value),) for value, name in labels.items()}
    return {
        str(name): tuple(int(v) for v in value) if isinstance(value, list) else (int(value),)
        for name, value in labels.items()
    }


def _json(path: Path) -> dict[str, Any]:
    return read_object(path, most=LARGEST_JSON)
