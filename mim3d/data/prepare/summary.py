"""Manifest, fingerprint and quarantine of a store, rebuilt from its sidecars at any time."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mim3d.data.classes import ClassTable
from mim3d.data.cohort.cases import Cohort
from mim3d.data.prepare.earlier import NOT_RENEWED
from mim3d.data.splits import held_out
from mim3d.data.store.entry import sidecar_fields, target_classes
from mim3d.data.store.layout import (
    FINGERPRINT,
    FORMAT,
    MANIFEST,
    QUARANTINE,
    case_path,
    read_json,
    sidecar_path,
    sidecar_paths,
    write_record,
)
from mim3d.foundation.atomic import utf8, write_text
from mim3d.foundation.versions import versions

COLUMNS = ("case", "file", "code", "reason", "remedy")


def cohort_facts(cohort: Cohort, preparation: Mapping[str, Any]) -> dict[str, Any]:
    """What every sidecar says about the cohort, so that each of them suffices to rebuild."""
    return {
        "name": cohort.name,
        "kind": cohort.kind,
        "channel_names": cohort.channel_names,
        "classes": None if cohort.classes is None else cohort.classes.as_json(),
        "has_validation": cohort.has_validation,
        "split": cohort.split,
        "preparation": dict(preparation),
    }


def rebuild(folder: Path | str) -> dict[str, Any]:
    """Writes `manifest.json`, `fingerprint.json` and `quarantine.tsv` from the sidecars.

    Args:
        folder: the store.

    Returns:
        The fingerprint.

    Raises:
        UserError: a damaged sidecar, or more classes than a store can hold.
    """
    folder = Path(folder)
    sidecars = [read_json(path) for path in sidecar_paths(folder)]
    sidecars.sort(key=lambda sidecar: str(sidecar["case_id"]))
    sidecars = _of_one_channel_count(folder, sidecars)
    good = [sidecar for sidecar in sidecars if "refused" not in sidecar]
    table = _table(sidecars)
    write_text(folder / QUARANTINE, table)
    if not good:
        # Nothing to open: an older manifest would name files that are gone.
        (folder / MANIFEST).unlink(missing_ok=True)
        (folder / FINGERPRINT).unlink(missing_ok=True)
        return {}
    cohort = good[0]["cohort"]
    classes = _classes(cohort, good)
    modalities = _modalities(good)
    fingerprint = _fingerprint(good, classes, modalities)
    manifest = {
        "format": FORMAT,
        "name": cohort["name"],
        "kind": cohort["kind"],
        "channel_names": _channel_names(cohort, modalities),
        "modalities": modalities,
        "classes": None if classes is None else classes.as_json(),
        "preparation": {
            **cohort["preparation"],
            "format": FORMAT,
            "modalities": _decided(good, modalities),
        },
        "validation": _who_decided(cohort),
        "versions": versions(),
        QUARANTINE: hashlib.sha256(utf8(table)).hexdigest(),
        "cases": _entries(good, cohort),
    }
    write_record(folder / FINGERPRINT, fingerprint)
    write_record(folder / MANIFEST, manifest)
    return fingerprint


def _of_one_channel_count(folder: Path, sidecars: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Refuses the cases whose number of channels is not that of most."""
    counts = Counter(s["shape"][0] for s in sidecars if "refused" not in s)
    if len(counts) < 2:
        return list(sidecars)
    usual = counts.most_common(1)[0][0]
    kept = []
    for sidecar in sidecars:
        if "refused" in sidecar or sidecar["shape"][0] == usual:
            kept.append(sidecar)
            continue
        reason = f"it has {sidecar['shape'][0]} channel(s), and most cases have {usual}"
        remedy = "prepare such cases as a cohort of their own"
        refused = {"file": "", "code": "channels", "reason": reason, "remedy": remedy}
        names = ("format", "case_id", "subject_id", "part", "targets", "cohort", "modalities")
        written = {**{name: sidecar[name] for name in names}, "refused": refused}
        write_record(sidecar_path(folder, sidecar["case_id"]), written)
        case_path(folder, sidecar["case_id"]).unlink(missing_ok=True)
        kept.append(written)
    return kept


def why_refused(sidecar: Mapping[str, Any]) -> dict[str, str] | None:
    """`file`, `code`, `reason` and `remedy` of a case that is not in the store, or not renewed."""
    return sidecar.get("refused") or sidecar.get(NOT_RENEWED)


def _table(sidecars: Iterable[Mapping[str, Any]]) -> str:
    rows = [COLUMNS]
    for sidecar in sidecars:
        why = why_refused(sidecar)
        if why is not None:
            cells = (sidecar["case_id"], why["file"], why["code"], why["reason"], why["remedy"])
            rows.append(tuple(_cell(cell) for cell in cells))  # type: ignore[arg-type]
    return "".join("\t".join(row) + "\n" for row in rows)


def _cell(text: str) -> str:
    """Text that is one cell of a table: no tabs, line ends, control characters, lone surrogates."""
    plain = "".join(c if c.isprintable() else " " for c in str(text))
    return plain.encode("utf-8", "replace").decode()


def _classes(cohort: Mapping[str, Any], good: Sequence[Mapping[str, Any]]) -> ClassTable | None:
    """The source's table, else all values found in label maps."""
    if cohort["classes"] is not None:
        return ClassTable.from_json(cohort["classes"])
    found = {v for s in good if s["class_values"] is not None for v in s["class_values"]}
    ignore = cohort["preparation"].get("ignore_label")
    return ClassTable.from_values(found, ignore_value=ignore) if found else None


def _modalities(good: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each channel is in most cases."""
    columns = zip(*(sidecar["facts"]["modalities"] for sidecar in good), strict=True)
    return [Counter(column).most_common(1)[0][0] for column in columns]


def _decided(good: Sequence[Mapping[str, Any]], modalities: Sequence[str]) -> list[str | None]:
    """What a further volume's channels are taken for; None where each decides by its values."""
    columns = zip(*(sidecar["facts"]["modalities"] for sidecar in good), strict=True)
    return [
        most if len(set(column)) == 1 else None
        for most, column in zip(modalities, columns, strict=True)
    ]


def _channel_names(cohort: Mapping[str, Any], modalities: Sequence[str]) -> list[str]:
    if cohort["channel_names"] is not None and len(cohort["channel_names"]) == len(modalities):
        return list(cohort["channel_names"])
    return [f"channel {number}" for number in range(len(modalities))]


def _who_decided(cohort: Mapping[str, Any]) -> str:
    """Where the lists come from: `source`, `hash`, or `split` and its name."""
    if cohort["split"] is not None:
        return f"split {cohort['split']}"
    return "source" if cohort["has_validation"] else "hash"


def _entries(good: Sequence[Mapping[str, Any]], cohort: Mapping[str, Any]) -> list[dict[str, Any]]:
    judging: frozenset[str] = frozenset()
    if not cohort["has_validation"]:
        labelled = {s["subject_id"] for s in _labelled(good) if s["part"] == "training"}
        judging = held_out(labelled, float(cohort["preparation"]["validation_fraction"]))
    return [
        {
            **sidecar_fields(s),
            # Also a judging subject's cases without labels: pre-training must not see them.
            "part": "validation"
            if s["part"] == "training" and s["subject_id"] in judging
            else s["part"],
        }
        for s in good
    ]


def _labelled(good: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The cases with label maps; in a cohort without any, those with targets."""
    mapped = [s for s in good if s["class_values"] is not None]
    return mapped or [s for s in good if s["targets"]]


def _fingerprint(
    good: Sequence[Mapping[str, Any]], classes: ClassTable | None, modalities: Sequence[str]
) -> dict[str, Any]:
    facts = [sidecar["facts"] for sidecar in good]
    notes = Counter(note["code"] for sidecar in good for note in sidecar["notes"])
    return {
        "cases": len(good),
        "labelled": sum(s["class_values"] is not None for s in good),
        "subjects": len({s["subject_id"] for s in good}),
        "original": _extent([f["original_shape"][1:] for f in facts],
                            [f["original_spacing_mm"] for f in facts]),
        "stored": _extent([s["shape"][1:] for s in good], [s["spacing_mm"] for s in good]),
        "bytes": sum(s["file"]["bytes"] for s in good),
        "thick_axes": dict(Counter(f["thick_axis"] or "none" for f in facts)),
        "body_share": _spread([f["body_share"] for f in facts]),
        "channels": [_channel(facts, number, kind) for number, kind in enumerate(modalities)],
        "classes": [] if classes is None else _class_rows(good, classes),
        **_targets(good),
        "notes": dict(notes.most_common()),
    }  # fmt: skip


def _channel(facts: Sequence[Mapping[str, Any]], number: int, modality: str) -> dict[str, Any]:
    maps = [f["normalisation"][number] for f in facts]
    ends = ("low", "high")
    fields = ends if maps[0]["kind"] == "window" else (*ends, "mean", "deviation")
    return {
        "modality": modality,
        **{name: _spread([m[name] for m in maps]) for name in fields},
        "quantisation_error": max(f["quantisation_error"][number] for f in facts),
    }


def _class_rows(good: Sequence[Mapping[str, Any]], classes: ClassTable) -> list[dict[str, Any]]:
    labelled = [s for s in good if s["class_values"] is not None]
    total = sum(float(np.prod(s["shape"][1:])) for s in labelled)
    rows = []
    for value, name in zip(classes.values, classes.names, strict=True):
        counts = [s["facts"]["class_voxels"].get(str(value), 0) for s in labelled]
        ml = [count * float(np.prod(s["spacing_mm"])) / 1000
              for count, s in zip(counts, labelled, strict=True) if count]  # fmt: skip
        rows.append(
            {
                "value": value,
                "name": name,
                "cases": sum(count > 0 for count in counts),
                "share": sum(counts) / total if total else 0.0,
                "ml": _spread(ml) if ml else None,
            }
        )
    return rows


def _targets(good: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`targets`: in how many cases each is known, its spread, and how often each class of it is."""
    names = dict.fromkeys(name for s in good for name in s["targets"])
    rows = []
    for name in names:
        values = [s["targets"][name] for s in good if name in s["targets"]]
        classes = target_classes(values)
        rows.append(
            {
                "name": name,
                "cases": len(values),
                "values": _spread(values),
                "classes": {f"{value:g}": values.count(value) for value in classes},
            }
        )
    return {"targets": rows} if rows else {}


def _extent(shapes: Sequence[Any], spacings: Sequence[Any]) -> dict[str, Any]:
    return {
        "shape": {"min": np.min(shapes, axis=0).tolist(),
                  "median": np.median(shapes, axis=0).tolist(),
                  "max": np.max(shapes, axis=0).tolist()},
        "spacing_mm": {"min": np.min(spacings, axis=0).tolist(),
                       "median": np.median(spacings, axis=0).tolist(),
                       "max": np.max(spacings, axis=0).tolist()},
    }  # fmt: skip


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = np.percentile(values, (0, 50, 100)).tolist()
    return {"min": low, "median": middle, "max": high}
