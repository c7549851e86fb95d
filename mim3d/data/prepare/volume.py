"""One volume as a store holds it: measured whole, cropped to the body, resampled, as int16.

Training reads what this made from a store; prediction calls it on a file. Both see the same
numbers, to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mim3d.data.body import Air, Modality, body_box, body_mask, find_air
from mim3d.data.intensity import Normalisation, infer_modality, measure, ranged, signed
from mim3d.data.prepare.distances import SURFACE, signed_distances
from mim3d.data.resample import (
    UNCHANGED,
    extent,
    resample,
    resample_labels,
    resampled_affine,
)
from mim3d.data.store.writing import PreparedCase, draw_voxels, intensities, quantise
from mim3d.data.volume import Note, Volume, spacing_of
from mim3d.foundation.errors import VolumeError

Box = tuple[slice, slice, slice]

LEAST_BODY = 1e-3
"""Least share of the volume that the body fills."""
CLASS_CHANGE = 0.2
"""Relative change of a class's volume by resampling that is noted."""
FINEST = 1000
"""Steps of int16 that one normalised unit has at least, else outliers are clipped."""
MOST_MARGIN = 8
"""Voxels of air that stay at most: 5 mm around a mouse's head at 0.15 mm is most of the volume."""
SLAB = 32
"""Planes worked on at once."""
THICK = 1.5
"""From this ratio of a voxel's longest to its shortest side on, its axis is called thick."""


@dataclass(frozen=True)
class VolumeRule:
    """The settings that decide what a store holds of a volume.

    Args:
        modalities: one a channel; None in a place infers it from the values.
        spacing_mm: resample to this; None keeps the volume's own.
        interpolation: between voxels.
        window_hu: what becomes 0 to 1 in CT.
        clip_percentiles: of the body, in other modalities.
        intensity_range: what becomes 0 and 1, whatever the modality; None measures.
        crop_to_body: cut away air around the body.
        body_margin_mm: air that stays.
        distance_mm: shapes become signed distances up to this; None leaves intensities as they are.
        distance_scale: these become -1 to 1 (`signed`), or as in stores of old 0 to 1 (`range`).
    """

    modalities: tuple[Modality | None, ...] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    interpolation: Literal["linear", "cubic"] = "linear"
    window_hu: tuple[float, float] = (-1000.0, 1000.0)
    clip_percentiles: tuple[float, float] = (0.5, 99.5)
    crop_to_body: bool = True
    body_margin_mm: float = 5.0
    intensity_range: tuple[float, float] | None = None
    distance_mm: float | None = None
    distance_scale: Literal["range", "signed"] = "range"

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> VolumeRule:
        """The rule of a store, from its `preparation`."""
        names = cls.__dataclass_fields__
        fields = {name: stored[name] for name in names if stored.get(name) is not None}
        tuples = {n: tuple(v) for n, v in fields.items() if isinstance(v, list)}
        return cls(**{**fields, **tuples})


def prepare_volume(
    volume: Volume,
    rule: VolumeRule,
    labels: NDArray[np.uint8] | None = None,
    class_values: tuple[int, ...] | None = None,
    case_id: str = "",
) -> PreparedCase:
    """What a store holds of a volume.

    Args:
        volume: as read from a file.
        rule: the store's settings.
        labels: `x y z`, indices into `class_values`; the crop keeps all that are not background.
        class_values: values of the classes.
        case_id: keys the draw of body voxels.

    Returns:
        Voxels on the cropped and resampled grid; `affine` says where they lie.

    Raises:
        VolumeError: the body is empty or constant, or resampling loses a class.
    """
    modalities = _modalities(volume, rule)
    if rule.distance_mm is not None:
        volume = signed_distances(volume, rule.distance_mm)
    measurable = volume.measurable()
    airs = _airs(measurable, modalities, rule)
    body = body_mask(measurable, airs)
    share = float(body.mean())
    # A shape may be as thin as a vessel; a scan with so little body is none.
    if share < LEAST_BODY and (_range(rule) is None or not share):
        raise VolumeError(
            f"the body fills {share:.2%} of the volume, less than one voxel in a thousand",
            remedy="check the file, and the modality (`--prepare.modality`)",
            code="empty-body",
        )
    normalisation = _measured(measurable, airs, modalities, rule)
    del measurable
    notes = [*volume.notes, *_odd_ct(volume, modalities)]
    box, widened = _crop_box(volume, airs, labels, rule)
    notes += widened
    affine = volume.affine.copy()
    affine[:3, 3] += volume.affine[:3, :3] @ np.array([side.start for side in box], np.float64)
    voxels = volume.voxels[(slice(None), *box)]
    labels = None if labels is None else labels[box]
    if rule.spacing_mm is not None:
        before = labels
        voxels, labels, affine = _resampled(voxels, labels, affine, rule)
        notes += _class_changes(before, labels, spacing_of(volume.affine), spacing_of(affine),
                                class_values or ())  # fmt: skip
    stored, scale, offset, errors, clipped = _quantised(voxels, normalisation)
    notes += clipped
    labels = None if labels is None else _put(labels, np.empty(labels.shape, np.uint8))
    return PreparedCase(
        case_id=case_id,
        voxels=stored,
        scale=scale,
        offset=offset,
        affine=affine,
        normalisation=normalisation,
        labels=labels,
        class_values=class_values,
        body_voxels=draw_voxels(_body(stored, scale, offset, airs), case_id, "body"),
        notes=tuple(notes),
        facts={
            "original_shape": list(volume.voxels.shape),
            "original_spacing_mm": list(volume.spacing_mm),
            "thick_axis": thick_axis(volume.spacing_mm),
            "modalities": list(modalities),
            "body_share": share,
            "quantisation_error": errors,
            "class_voxels": _class_voxels(labels, class_values),
            "normalisation": [channel.as_json() for channel in normalisation],
        },
    )


def thick_axis(spacing_mm: tuple[float, float, float]) -> str | None:
    """The axis with the longest voxels, `x`, `y` or `z`; None where they are about cubes."""
    longest = int(np.argmax(spacing_mm))
    return "xyz"[longest] if spacing_mm[longest] > THICK * min(spacing_mm) else None


def _modalities(volume: Volume, rule: VolumeRule) -> tuple[Modality, ...]:
    given = rule.modalities or (None,) * volume.channels
    if len(given) != volume.channels:
        raise VolumeError(
            f"it has {volume.channels} channel(s), and the cohort has {len(given)}",
            remedy="prepare such cases as a cohort of their own",
            code="channels",
        )
    pairs = zip(given, volume.voxels, strict=True)
    return tuple(word or infer_modality(channel) for word, channel in pairs)


def _airs(
    voxels: NDArray[Any], modalities: tuple[Modality, ...], rule: VolumeRule
) -> tuple[Air, ...]:
    if rule.distance_mm is not None:
        return (SURFACE,) * len(modalities)
    return tuple(map(find_air, voxels, modalities))


def _range(rule: VolumeRule) -> tuple[float, float] | None:
    """What becomes 0 and 1 in every volume, distances of old included; None is measured in each."""
    if rule.distance_mm is not None:
        return (-rule.distance_mm, rule.distance_mm)
    return rule.intensity_range


def _measured(
    voxels: NDArray[Any], airs: tuple[Air, ...], modalities: tuple[Modality, ...], rule: VolumeRule
) -> tuple[Normalisation, ...]:
    measured = []
    for number, (channel, air, modality) in enumerate(zip(voxels, airs, modalities, strict=True)):
        scale = _range(rule)
        if rule.distance_mm is not None and rule.distance_scale == "signed":
            found: Normalisation | None = signed(rule.distance_mm, air)
        elif scale is not None:
            found = ranged(channel, air, scale)
        else:
            found = measure(channel, air, modality, rule.window_hu, rule.clip_percentiles)
        if found is None:
            which = f"channel {number} is" if len(voxels) > 1 else "it is"
            raise VolumeError(
                f"{which} constant over the body",
                remedy="check the file; there is nothing in it to learn from",
                code="constant",
            )
        measured.append(found)
    return tuple(measured)


def _odd_ct(volume: Volume, modalities: tuple[Modality, ...]) -> list[Note]:
    """CT without a voxel of air is a tight crop, or no Hounsfield units at all."""
    lowest = [float(c.min()) for c, m in zip(volume.voxels, modalities, strict=True) if m == "ct"]
    if not lowest or min(lowest) <= -500:
        return []
    text = f"no voxel lies below {min(lowest):g} HU: a tight crop, or values that are not HU"
    return [Note("ct-values", text)]


def _crop_box(
    volume: Volume, airs: tuple[Air, ...], labels: NDArray[np.uint8] | None, rule: VolumeRule
) -> tuple[Box, list[Note]]:
    """The body with its margin, widened to what is labelled; a note says if that was needed."""
    whole = tuple(slice(0, size) for size in volume.shape)
    if not rule.crop_to_body:
        return (whole[0], whole[1], whole[2]), []
    sides = []
    for axis, side in enumerate(body_box(volume.voxels, airs)):
        margin = min(round(rule.body_margin_mm / volume.spacing_mm[axis]), MOST_MARGIN)
        start, stop = max(0, side.start - margin), min(volume.shape[axis], side.stop + margin)
        sides.append(slice(start, stop))
    body: Box = (sides[0], sides[1], sides[2])
    foreground = labels > 0 if labels is not None else np.zeros((0, 0, 0), np.bool_)
    outside = int(foreground.sum()) - int(foreground[body].sum())
    if not outside:
        return body, []
    for axis in range(3):
        labelled = extent(foreground, axis)
        start, stop = min(body[axis].start, labelled.start), max(body[axis].stop, labelled.stop)
        sides[axis] = slice(start, stop)
    text = (
        f"{outside:,} labelled voxel(s) lie away from the body: the crop was widened to hold them"
    )
    return (sides[0], sides[1], sides[2]), [Note("labels-outside-body", text)]


def _resampled(
    voxels: NDArray[Any],
    labels: NDArray[np.uint8] | None,
    affine: NDArray[np.float64],
    rule: VolumeRule,
) -> tuple[NDArray[Any], NDArray[np.uint8] | None, NDArray[np.float64]]:
    assert rule.spacing_mm is not None
    spacing_mm = spacing_of(affine)
    x, y, z = voxels.shape[1:]
    pairs = zip(rule.spacing_mm, spacing_mm, (x, y, z), strict=True)
    if all(abs(new / old - 1) * size < UNCHANGED for new, old, size in pairs):
        return voxels, labels, affine
    new = resample(voxels, spacing_mm, rule.spacing_mm, rule.interpolation)
    if labels is not None:
        labels = resample_labels(labels, spacing_mm, rule.spacing_mm)
    nx, ny, nz = new.shape[1:]
    return new, labels, resampled_affine(affine, (x, y, z), (nx, ny, nz), rule.spacing_mm)


def _class_changes(
    before: NDArray[np.uint8] | None,
    after: NDArray[np.uint8] | None,
    spacing_mm: tuple[float, float, float],
    new_spacing_mm: tuple[float, float, float],
    class_values: tuple[int, ...],
) -> list[Note]:
    """Notes on classes whose volume changed much; an error for one that is lost."""
    if before is None or after is None or before is after:
        return []
    unit = float(np.prod(new_spacing_mm) / np.prod(spacing_mm))
    old = np.bincount(before.ravel(order="K"), minlength=256)
    new = np.bincount(after.ravel(order="K"), minlength=256)
    notes = []
    for index, value in enumerate(class_values):
        if index == 0 or old[index] == 0:
            continue
        if new[index] == 0:
            raise VolumeError(
                f"label {value}, {old[index]:,} voxel(s), is lost by resampling",
                remedy="take a finer `--prepare.spacing_mm`, or none",
                code="lost-class",
            )
        change = new[index] * unit / old[index] - 1
        if abs(change) > CLASS_CHANGE:
            text = f"resampling changes the volume of label {value} by {change:+.0%}"
            notes.append(Note("class-change", text))
    return notes


def _quantised(
    voxels: NDArray[Any], normalisation: tuple[Normalisation, ...]
) -> tuple[NDArray[np.int16], tuple[float, ...], tuple[float, ...], list[float], list[Note]]:
    stored = np.empty(voxels.shape, np.int16)
    scales, offsets, errors, notes = [], [], [], []
    for number, (channel, own) in enumerate(zip(voxels, normalisation, strict=True)):
        integers, scale, offset, error = quantise(channel)
        if error > 0 and scale > own.width / FINEST:
            # A spike would leave the tissue few of the 65,536 steps.
            reach = own.high - own.low
            limited = channel.clip(own.low - reach, own.high + reach)
            beyond = int((limited != channel).sum())
            integers, scale, offset, error = quantise(limited)
            text = f"{beyond:,} voxel(s) far beyond the body's range were stored as its end"
            notes.append(Note("spikes", text))
        _put(integers, stored[number])
        scales.append(scale)
        offsets.append(offset)
        errors.append(error / own.width)
    return stored, tuple(scales), tuple(offsets), errors, notes


def _put(values: NDArray[Any], target: NDArray[Any]) -> NDArray[Any]:
    """Copies `x y z` in any order of memory; in slabs of z, which two orders share a cache for."""
    for start in range(0, values.shape[2], SLAB):
        target[..., start : start + SLAB] = values[..., start : start + SLAB]
    return target


def _body(
    stored: NDArray[np.int16],
    scale: tuple[float, ...],
    offset: tuple[float, ...],
    airs: tuple[Air, ...],
) -> NDArray[np.bool_]:
    """The body of what is stored, some planes at a time instead of all of it as float32."""
    mask = np.empty(stored.shape[1:], np.bool_)
    for start in range(0, len(mask), SLAB):
        part = stored[:, start : start + SLAB]
        mask[start : start + SLAB] = body_mask(intensities(part, scale, offset), airs)
    return mask


def _class_voxels(
    labels: NDArray[np.uint8] | None, class_values: tuple[int, ...] | None
) -> dict[str, int]:
    if labels is None or class_values is None:
        return {}
    counts = np.bincount(labels.ravel(order="K"), minlength=256)
    return {str(value): int(counts[index]) for index, value in enumerate(class_values)}


def with_notes(case: PreparedCase, notes: tuple[Note, ...]) -> PreparedCase:
    """The same case with further notes."""
    return replace(case, notes=(*case.notes, *notes))
