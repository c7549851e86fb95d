"""What was run: which settings, on which data, with which versions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mim3d.config.verbs import PreparationConfig
from mim3d.pages.report.elements import Details, Element, Notes, Prose, Section, Table
from mim3d.workflows.report.desk import Desk, listed
from mim3d.workflows.report.runs import VERBS, Group, RunMade

NONE = "-"


def settings_of(groups: Sequence[Group], desk: Desk) -> Iterator[Element]:
    """Where groups of one verb differ from each other, and each from the defaults."""
    for verb in dict.fromkeys(group.verb for group in groups):
        alike = [group for group in groups if group.verb == verb]
        name = VERBS.get(verb, verb)
        if len(alike) > 1:
            yield Section(f"Settings in which {name} runs differ",
                          tuple(_against_each_other(alike, desk)), rank=3)  # fmt: skip
        for group in alike:
            table = _against_defaults(group, desk)
            heading = f"`{group.name}`: {len(table.rows)} settings that differ from the defaults"
            yield (
                Section(heading, (table,), rank=3)
                if len(groups) == 1
                else Details(heading, (table,))
            )


def _against_each_other(groups: Sequence[Group], desk: Desk) -> Iterator[Element]:
    rows = []
    for key in groups[0].first.settings:
        cells = [_values(group, key, desk) for group in groups]
        if len(set(cells)) > 1:
            rows.append([f"`{key}`", *cells])
    if not rows:
        yield Prose("None: they differ in their data alone.")
        return
    yield Table(["setting", *(f"`{group.name}`" for group in groups)], rows, is_fixed=True)


def _values(group: Group, key: str, desk: Desk) -> str:
    return ", ".join(dict.fromkeys(desk.value(run.settings.get(key)) for run in group.runs))


def _against_defaults(group: Group, desk: Desk) -> Table:
    keys = dict.fromkeys(key for run in group.runs for key in run.changed)
    rows = [
        [f"`{key}`", _values(group, key, desk), desk.value(group.first.defaults.get(key))]
        for key in group.first.settings
        if key in keys
    ]
    return Table(["setting", "here", "default"], rows, is_fixed=True)


def data_of(groups: Sequence[Group], desk: Desk) -> Iterator[Element]:
    """The data behind the runs, one column for each store they were trained on."""
    stores: dict[str, list[RunMade]] = {}
    for run in (run for group in groups for run in group.runs if run.kept.get("trained_on")):
        stores.setdefault(_store_key(run), []).append(run)
    if not stores:
        return
    yield Notes(list(_differing([run for runs in stores.values() for run in runs])), "warning")
    heads = [listed([run.name for run in runs], 3) for runs in stores.values()]
    rows = []
    for name, told in FACTS.items():
        cells = [told(runs, desk) for runs in stores.values()]
        if any(cell != NONE for cell in cells):
            rows.append([name, *cells])
    yield Table(["", *heads], rows, is_fixed=True)


def _store_key(run: RunMade) -> str:
    told = [run.kept.get(key) for key in ("fingerprint", "preparation", "classes")]
    return json.dumps(told, sort_keys=True, default=str)


CHOOSE = ("data.labels", "data.subjects", "data.fold", "data.inner_fold",
          "data.selection_fraction")  # fmt: skip
"""Settings that decide, with the seed, which cases of a store a run is trained on."""


def _differing(runs: Sequence[RunMade]) -> Iterator[str]:
    """Runs that chose their cases alike and were still trained on other files."""
    alike: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        chosen = [run.verb, run.seed, *(run.settings.get(key) for key in CHOOSE)]
        by_digest = alike.setdefault(json.dumps(chosen, default=str), {})
        by_digest.setdefault(run.data_digest, []).append(run.name)
    for by_digest in alike.values():
        if len(by_digest) > 1:
            told = " against ".join(listed(names, 3) for names in by_digest.values())
            yield f"trained on different files, though with the same settings of data: {told}"


def _fingerprint(kept: Mapping[str, Any]) -> Mapping[str, Any]:
    found = kept.get("fingerprint")
    return found if isinstance(found, Mapping) else {}


def _cases(runs: Sequence[RunMade], desk: Desk) -> str:
    found = _fingerprint(runs[0].kept)
    if "cases" not in found:
        return NONE
    return (
        f"{found['cases']} cases of {found.get('subjects', '?')} subjects, "
        f"{found.get('labelled', '?')} with labels"
    )


def _trained(runs: Sequence[RunMade], desk: Desk) -> str:
    """How many cases each verb learned from, least to most."""
    counts: dict[str, list[int]] = {}
    for run in runs:
        counts.setdefault(run.verb, []).append(len(run.kept["trained_on"]))
    return "; ".join(
        f"{VERBS.get(verb, verb)} {' to '.join(map(str, sorted({min(n), max(n)})))} cases"
        for verb, n in counts.items()
    )


def _digest(runs: Sequence[RunMade], desk: Desk) -> str:
    return listed(list(dict.fromkeys(run.data_digest for run in runs)), 4)


def _channels(runs: Sequence[RunMade], desk: Desk) -> str:
    kept = runs[0].kept
    pairs = zip(kept.get("channel_names", ()), kept.get("modalities", ()), strict=False)
    return ", ".join(f"{name} ({modality})" for name, modality in pairs) or NONE


def _sides(name: str, unit: str) -> Callable[[Sequence[RunMade], Desk], str]:
    """How large the stored volumes are, or their voxels: median, and smallest to largest."""

    def told(runs: Sequence[RunMade], desk: Desk) -> str:
        found = _fingerprint(runs[0].kept).get("stored", {}).get(name)
        if not found:
            return NONE
        median, least, most = (
            " x ".join(f"{side:g}" for side in found[what]) for what in ("median", "min", "max")
        )
        return f"{median}{unit}" + (f" ({least} to {most})" if least != most else "")

    return told


def _classes(runs: Sequence[RunMade], desk: Desk) -> str:
    table = runs[0].kept.get("classes") or {}
    rows = [one for one in table.get("classes", ()) if one.get("value") != 0]
    return ", ".join(str(one.get("name")) for one in rows) or NONE


def _prepared(runs: Sequence[RunMade], desk: Desk) -> str:
    found, default = runs[0].kept.get("preparation", {}), PreparationConfig()
    changed = []
    for key, value in found.items():
        if not hasattr(default, key):
            continue
        usual = getattr(default, key)
        if value != (list(usual) if isinstance(usual, tuple) else usual):
            changed.append(f"`{key}` {desk.value(value)}")
    return ", ".join(changed) or "as by default"


FACTS: dict[str, Callable[[Sequence[RunMade], Desk], str]] = {
    "store": _cases,
    "channels": _channels,
    "size in voxels, median": _sides("shape", ""),
    "spacing, median": _sides("spacing_mm", " mm"),
    "classes": _classes,
    "prepared": _prepared,
    "learned from": _trained,
    "data fingerprint": _digest,
}
"""Rows of the table of data."""


def versions_of(made: Mapping[str, Mapping[str, str]]) -> Iterator[Element]:
    """What everything was made with; where versions differ, that is said first.

    Args:
        made: versions by the name of what they made.
    """
    sets: dict[str, tuple[Mapping[str, str], list[str]]] = {}
    for name, found in made.items():
        if found:
            sets.setdefault(json.dumps(found, sort_keys=True), (found, []))[1].append(name)
    if not sets:
        return
    columns = list(sets.values())
    names = list(dict.fromkeys(key for found, _ in columns for key in found))
    rows = [[name, *(found.get(name, NONE) for found, _ in columns)] for name in names]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    heads = ["", *(listed(who, 3) for _, who in columns)]
    if differing:
        yield Notes([f"Made with different versions of {listed([row[0] for row in differing])}."])
        yield Table(heads, differing, is_fixed=True)
    yield Details("All versions", (Table(heads, rows, is_fixed=True),))
