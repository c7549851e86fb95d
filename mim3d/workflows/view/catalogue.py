"""What there is to see: cases with their layers and scores, and pictures of runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mim3d.data.classes import ClassTable
from mim3d.evaluation.cases import Score
from mim3d.workflows.view.pairing import (
    Home,
    Sighting,
    nearest,
    pairing_key,
    shared_folders,
    together,
)

Role = Literal["image", "label", "prediction"]


@dataclass(frozen=True)
class Layer:
    """One volume or label map that can be shown.

    Attributes:
        role: what it is.
        name: what the page calls it.
        path: a file, a DICOM folder, a row of an archive, or a store.
        stored: the case's id, where `path` is a store.
        channel_names: of an image; empty where nothing says them.
        classes: of a label map; None where nothing says them.
    """

    role: Role
    name: str
    path: Path
    stored: str | None = None
    channel_names: tuple[str, ...] = ()
    classes: ClassTable | None = None


@dataclass
class SeenCase:
    """One case of the page.

    Attributes:
        name: as the person knows it.
        part: the list it belongs to; empty where nothing says it.
        layers: by their numbers in the catalogue.
        scores: what each results file says of it, by the file's name.
        key: that pairs names; of several cases it is the same where files are called alike.
        homes: the folders that tell it from those.
    """

    name: str
    part: str = ""
    layers: list[int] = field(default_factory=list)
    scores: dict[str, list[Score]] = field(default_factory=dict)
    key: str = ""
    homes: tuple[Home, ...] = ()


@dataclass(frozen=True)
class Panel:
    """One picture that mim3d drew.

    Attributes:
        run: whose it is.
        kind: pictures of one kind follow each other: `reconstruction`.
        title: which of them: `step 200`.
        path: a PNG file.
    """

    run: str
    kind: str
    title: str
    path: Path


@dataclass
class Catalogue:
    """All of it, in the order in which it was found.

    Attributes:
        cases: by name, once `sort` has been called.
        layers: by number.
        panels: by number.
        notes: what the person should know.
        sightings: where each layer was met.
    """

    cases: dict[str, SeenCase] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sightings: list[Sighting] = field(default_factory=list)

    def add(self, name: str, layer: Layer, *, part: str = "", home: Home = ()) -> None:
        """Puts a layer to those that were met, under the name of its case."""
        is_stored = layer.stored is not None
        self.sightings.append(
            Sighting(name, home, len(self.layers), part, layer.role, is_stored=is_stored)
        )
        self.layers.append(layer)

    def sort(self) -> None:
        """Makes cases of what was met."""
        groups = together(self.sightings)
        named = Counter(group[0].name for group in groups)
        for group in groups:
            name, homes = group[0].name, tuple(dict.fromkeys(one.home for one in group))
            alike = [other[0].home for other in groups if named[name] > 1 and other[0].name == name]
            shown = f"{name} ({_telling(homes[0], alike)})" if alike else name
            while shown in self.cases:
                shown += "'"
            part = next((one.part for one in group if one.part), "")
            layers = [one.layer for one in group]
            key = pairing_key(name)
            self.cases[shown] = SeenCase(shown, part, layers, key=key, homes=homes)

    def add_scores(self, source: str, scores: Sequence[Score], home: Home = ()) -> int:
        """Puts scores to the cases they are of; returns how many cases that were.

        Args:
            source: what the page calls the results.
            scores: of all its cases.
            home: of the results, by which cases of one name are told apart.
        """
        by_key: dict[str, list[SeenCase]] = {}
        for case in self.cases.values():
            by_key.setdefault(case.key, []).append(case)
        met = set()
        for score in scores:
            found = by_key.get(pairing_key(score.case_id), ())
            homes = [home_ for case in found for home_ in case.homes]
            owner = nearest(home, homes) if len(found) > 1 else None
            for case in found:
                if len(found) == 1 or owner in case.homes:
                    case.scores.setdefault(source, []).append(score)
                    met.add(case.name)
        return len(met)

    def summary(self) -> list[dict[str, Any]]:
        """One line a case, for the page's list."""
        return [
            {
                "name": case.name,
                "part": case.part,
                "roles": sorted({self.layers[n].role for n in case.layers}),
                "dice": {source: _mean(scores) for source, scores in case.scores.items()},
            }
            for case in self.cases.values()
        ]


def _telling(home: Home, others: Sequence[Home]) -> str:
    """What a home has that not all others have."""
    shared = min(shared_folders(home, other) for other in others)
    return "/".join(home[shared:]) or "/".join(home[-1:]) or "elsewhere"


def table_row(score: Score) -> dict[str, Any]:
    """A score as the page shows it."""
    row: Mapping[str, Any] = vars(score)
    return {"class": row["structure"], **{k: row[k] for k in ("dice", "hd95_mm", "nsd")},
            "counted_as": row["counted_as"]}  # fmt: skip


def _mean(scores: list[Score]) -> float | None:
    """Mean Dice of a case over the structures that either side has."""
    found = [score.dice for score in scores if score.dice is not None]
    return sum(found) / len(found) if found else None
