"""Where crops come from, and how they are changed before a network sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Triple = tuple[int, int, int]
Axis = Literal["x", "y", "z"]


@dataclass(frozen=True)
class DataConfig:
    """Which crops are drawn from which store."""

    store: str | None = None
    """Folder made by `mim3d prepare`."""
    stores: tuple[str, ...] = ()
    """Pre-training: several stores in place of `store`, with crops of all of them in one order.
    They have equally many channels; each keeps its own spacing and normalisation."""
    store_weights: Literal["equal"] | None = None
    """With `stores`, how often each is drawn from: `equal` as often as each other one; where it is
    not set, by its number of cases, so that every case is seen equally often."""
    crop_size: Triple = (96, 96, 96)
    """Voxels of a crop along x, y, z. Volumes that are smaller are padded."""
    crop_sizes: tuple[Triple, ...] = ()
    """Fine-tuning, and pre-training by `mae` and `simmim`: sizes that the crops of a step take in
    turn, in place of `crop_size`, which is left to what validation looks at and to windows. Packed,
    they cost what they hold."""
    placement: Literal["uniform", "body", "label"] = "uniform"
    """Where crops lie: anywhere; around a voxel of the body; or around a labelled voxel in
    `label_share` of the cases and anywhere in the rest."""
    label_share: float = 0.5
    """With `placement: label`, the share of crops around a labelled voxel, 0 to 1. The class is
    drawn first, so that small structures are seen as often as large ones."""
    overhang: Triple = (0, 0, 0)
    """Voxels by which a crop may reach beyond the volume; shifts volumes that fit in one crop. At
    least half of what could be seen stays."""
    labels: int | float | None = None
    """Labelled subjects to train on: a number (`5`) or a fraction (`0.1`, rounded up, at least 2);
    none is all. The draws of one seed are nested. In pre-training it limits whose class
    `objective.supervised` and whose labels the probes are told."""
    subjects: int | float | None = None
    """Subjects of the training list that pre-training sees, as `labels` counts them; none is all.
    The draws of one seed are nested."""
    fold: int | None = None
    """Validate on this fold of 5 (0 to 4) of all labelled subjects instead of the stored list."""
    inner_fold: int | None = None
    """Judge on this fifth (0 to 4) of the training subjects instead of the validation list, and
    train on the rest: for choosing rates and the like."""
    selection_fraction: float = 0.0
    """Share of the training subjects kept aside to choose the `best` checkpoint by. With 0 nothing
    is chosen and `best` is the last one: the validation list only reports."""
    origin_grid: int | Triple | None = None
    """Voxels between the places where crops may begin, with `placement: uniform`; besides them the
    faces of the volume. 32, the side of a store's chunk, halves the cost of reading; none is free.
    """
    feed: Literal["store", "resident"] = "store"
    """`store` reads each crop from disk; `resident` keeps whole decoded volumes in memory."""
    resident_on: Literal["auto", "host", "device"] = "auto"
    """Where `resident` keeps volumes: in the machine's memory, or in that of the training device,
    which then cuts and augments whole batches at once. `auto` is the device if it is a GPU."""
    window_cases: int | None = None
    """Cases that crops are drawn from at a time, so that few volumes must be in memory; none is
    all. A multiple of the batch size lets each of several devices hold its own share."""
    max_crops_per_visit: int | None = None
    """With `window_cases`: crops drawn from a case before another takes its place, each visit."""
    workers: int = 0
    """Processes that cut and augment crops, or draw their numbers where a device does that; 0 does
    it in the training process."""
    window_hu: tuple[float, float] | None = None
    """Intensity window for CT, in HU, in place of the one noted in the store."""
    ignore_label: int | None = None
    """Value in label files that is left out of loss and metrics."""


@dataclass(frozen=True)
class AugmentationConfig:
    """What happens to a crop. Everything is off by default; recipes name what they use."""

    flip_axes: tuple[Axis, ...] = ()
    """Axes that may be mirrored. Sided labels need `swap_on_flip`."""
    flip_probability: float = 0.5
    """Probability of a mirror image, for each axis by itself."""
    swap_on_flip: tuple[tuple[int, int], ...] = ()
    """Pairs of label values (left, right) that change places when x is mirrored."""
    turn_plane: tuple[Axis, Axis] | None = None
    """Plane of turns by 90, 180 or 270 degrees; the crop must be square in it."""
    turn_probability: float = 0.0
    """Probability of such a turn."""
    affine_probability: float = 0.0
    """Probability of rotation and zoom together, by one trilinear interpolation."""
    rotation_degrees: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Largest rotation around x, y and z."""
    zoom: float = 0.0
    """Largest relative change of size, the same along all axes: 0.1 is 0.9 to 1.1."""
    stretch: float = 0.0
    """Largest further change of size, for each axis by itself."""
    rescale: tuple[float, float] | None = None
    """Smallest and largest factor of the physical scale at which every crop is read, drawn evenly
    in its logarithm: at 2 the same number of voxels covers twice as many millimetres, smoothed as
    larger voxels are; the encoder is told by the spacing. None reads as stored."""
    rescale_axes: Literal["all", "each", "z"] = "all"
    """One factor for all axes, one for each by itself, or one along z alone, as thicker slices."""
    scale_intensity: float = 0.0
    """Largest relative change of contrast."""
    scale_intensity_probability: float = 1.0
    """Probability of a change of contrast."""
    shift_intensity: float = 0.0
    """Largest offset, in normalised units."""
    shift_intensity_probability: float = 1.0
    """Probability of an offset."""
    gamma: float = 0.0
    """Largest exponent of a gamma curve, as a natural logarithm: 0.3 is 0.74 to 1.35."""
    gamma_probability: float = 0.5
    """Probability of a gamma curve."""
    noise: float = 0.0
    """Largest standard deviation of Gaussian noise, in normalised units."""
    noise_probability: float = 0.3
    """Probability of noise."""
    blur: float = 0.0
    """Largest standard deviation of a Gaussian blur, in voxels."""
    blur_probability: float = 0.3
    """Probability of a blur."""
