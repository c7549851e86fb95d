"""What a person reads about a preparation: the plan before it, the fingerprint after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mim3d.config.verbs import PreparationConfig
from mim3d.data.cohort import Cohort
from mim3d.data.prepare.keys import size
from mim3d.data.store.layout import MANIFEST, read_json

SHOWN_CLASSES = 12
"""Classes listed one by one; of more, only the rarest."""


def plan_lines(
    cohort: Cohort, folder: Path, settings: PreparationConfig, processes: int
) -> Iterator[str]:
    """What will be done, and with how much."""
    labelled = sum(case.label is not None for case in cohort.cases)
    mib = size(*(path for case in cohort.cases for path in case.images)) / 2**20
    channels = ", ".join(cohort.channel_names or ()) or "channels as the files have them"
    yield (
        f"{cohort.name or cohort.source}: {len(cohort.cases)} case(s), {labelled} with labels, "
        f"{mib:,.0f} MiB of images ({cohort.kind}; {channels})"
    )
    yield from cohort.found
    grid = "each case's own spacing"
    if settings.spacing_mm is not None:
        grid = f"{_mm(settings.spacing_mm)} ({settings.interpolation})"
    workers = f"{processes} process(es)" if processes else "this process"
    yield f"to `{folder}`: {grid}, {workers}"


def fingerprint_lines(folder: Path, fingerprint: Mapping[str, Any]) -> Iterator[str]:
    """Shapes, spacings, intensities, classes, lists and notes, a line each."""
    if not fingerprint:
        return
    manifest = read_json(folder / MANIFEST)
    original, stored = fingerprint["original"], fingerprint["stored"]
    yield (
        f"{fingerprint['cases']} case(s) of {fingerprint['subjects']} subject(s), "
        f"{fingerprint['labelled']} with labels, {fingerprint['bytes'] / 2**20:,.1f} MiB"
    )
    yield f"as read: {_grid(original)}"
    if stored != original:
        yield f"as stored: {_grid(stored)}"
    yield _thick(fingerprint["thick_axes"])
    for name, channel in zip(manifest["channel_names"], fingerprint["channels"], strict=True):
        yield _channel(name, channel)
    yield from _classes(fingerprint["classes"], fingerprint["labelled"])
    yield from map(_target, fingerprint.get("targets", ()))
    yield _lists(manifest)
    if fingerprint["notes"]:
        notes = ", ".join(f"{code} ({count})" for code, count in fingerprint["notes"].items())
        yield f"notes in the sidecars: {notes}"


def _grid(extent: Mapping[str, Any]) -> str:
    shape, spacing_mm = extent["shape"], extent["spacing_mm"]
    text = f"{_shape(shape['median'])} voxels of {_mm(spacing_mm['median'])} (median)"
    if shape["min"] != shape["max"]:
        text += f", {_shape(shape['min'])} to {_shape(shape['max'])} voxels"
    if spacing_mm["min"] != spacing_mm["max"]:
        text += f", {_mm(spacing_mm['min'])} to {_mm(spacing_mm['max'])}"
    return text


def _thick(axes: Mapping[str, int]) -> str:
    if set(axes) == {"none"}:
        return "voxels are about cubes"
    each = ", ".join(f"{axis} in {count}" for axis, count in sorted(axes.items()))
    if len(set(axes) - {"none"}) > 1:
        return f"thick axis: {each} case(s); it differs, so isotropic patches are the safer choice"
    return f"thick axis: {each} case(s)"


def _channel(name: str, channel: Mapping[str, Any]) -> str:
    low, high = channel["low"]["median"], channel["high"]["median"]
    if "mean" not in channel:
        word, unit = ("CT", " HU") if channel["modality"] == "ct" else (channel["modality"], "")
        text = f"{name}: {word}, {low:g} to {high:g}{unit} become 0 to 1"
    else:
        mean, deviation = channel["mean"]["median"], channel["deviation"]["median"]
        text = (
            f"{name}: {channel['modality']}, body clipped to {low:.4g} to {high:.4g}, "
            f"mean {mean:.4g}, deviation {deviation:.4g} (medians over cases)"
        )
    error = channel["quantisation_error"]
    return text + (f"; stored to {error:.1e} of a normalised unit" if error else "; stored exactly")


def _classes(rows: Sequence[Mapping[str, Any]], labelled: int) -> Iterator[str]:
    foreground = [row for row in rows if row["value"] != 0]
    shown = foreground
    if len(foreground) > SHOWN_CLASSES:
        shown = sorted(foreground, key=lambda row: float(row["share"]))[:3]
        yield f"{len(foreground)} classes besides background; the rarest:"
    for row in shown:
        ml = "" if row["ml"] is None else f", {row['ml']['median']:.3g} ml (median)"
        yield (
            f"  {row['value']} {row['name']}: in {row['cases']} of {labelled} case(s), "
            f"{row['share']:.3%} of voxels{ml}"
        )


def _target(row: Mapping[str, Any]) -> str:
    known = f"target {row['name']}: known of {row['cases']} case(s)"
    if 0 < len(row["classes"]) <= SHOWN_CLASSES:
        counts = ", ".join(f"{value} ({count})" for value, count in row["classes"].items())
        return f"{known}, {counts}"
    if row["classes"]:
        return f"{known}, {len(row['classes'])} classes"
    values = row["values"]
    return f"{known}, {values['min']:.4g} to {values['max']:.4g}, median {values['median']:.4g}"


def _lists(manifest: Mapping[str, Any]) -> str:
    cases = manifest["cases"]
    counts = []
    for part in ("training", "validation", "test"):
        of_part = [case for case in cases if case["part"] == part]
        if of_part:
            subjects = len({case["subject_id"] for case in of_part})
            counts.append(f"{len(of_part)} {part} ({subjects} subjects)")
    by = {
        "source": "the source's lists",
        "hash": "a hash of the subject, as the source has no validation list",
    }
    decided = manifest["validation"]
    return f"{', '.join(counts)}, by {by.get(decided, f'the {decided}')}"


def _shape(shape: Sequence[float]) -> str:
    return " x ".join(f"{side:g}" for side in shape)


def _mm(spacing_mm: Sequence[float]) -> str:
    return " x ".join(f"{side:.3g}" for side in spacing_mm) + " mm"
