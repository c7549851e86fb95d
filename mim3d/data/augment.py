"""What happens to a crop: numbers are drawn first, then applied.

`draw` turns a config and a keyed generator into plain numbers; the warp among them is applied by
`crops.cut_crop` while it reads (so that corners hold voxels), everything else by `apply`. The
affine of a crop follows every change of its geometry.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mim3d.config.data import AugmentationConfig, Triple
from mim3d.data.blur import blur
from mim3d.data.crops import Crop
from mim3d.foundation.errors import ConfigError

AXES = ("x", "y", "z")
Rows = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class AugmentationPlan:
    """The numbers of one crop's augmentation; the defaults change nothing.

    Args:
        flips: whether x, y, z are mirrored.
        turns: quarter turns in `plane`, 0 to 3.
        plane: the two axes of the turn.
        warp: rows of the `3 3` map from millimetres along the crop's axes to millimetres along
            the volume's, `rescale` included, or None.
        rescale: factor along x, y, z by which a crop's voxels are larger than the volume's.
        scale: factor of the intensities.
        shift: offset of the intensities, after the factor.
        gamma: exponent on the crop's range of intensities.
        noise: standard deviation of Gaussian noise.
        noise_key: 64 bits that name the noise.
        blur: standard deviation of a Gaussian blur, in voxels.
    """

    flips: tuple[bool, bool, bool] = (False, False, False)
    turns: int = 0
    plane: tuple[int, int] = (0, 1)
    warp: Rows | None = None
    rescale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    scale: float = 1.0
    shift: float = 0.0
    gamma: float = 1.0
    noise: float = 0.0
    noise_key: int = 0
    blur: float = 0.0

    @property
    def warp_matrix(self) -> NDArray[np.float64] | None:
        """The warp as `cut_crop` takes it."""
        return None if self.warp is None else np.array(self.warp)


def check(config: AugmentationConfig, crop_size: Triple) -> None:
    """Raises `ConfigError` for numbers that cannot be applied."""
    for name in (
        "flip", "turn", "affine", "scale_intensity", "shift_intensity", "gamma", "noise", "blur",
    ):  # fmt: skip
        key = f"{name}_probability"
        if not 0 <= getattr(config, key) <= 1:
            raise _refused(key, f"must lie between 0 and 1, not {getattr(config, key)}")
    for key in ("zoom", "stretch", "scale_intensity", "shift_intensity", "gamma", "noise", "blur"):
        if not 0 <= getattr(config, key) < math.inf:
            raise _refused(key, f"must not be negative, not {getattr(config, key)}")
    if min(config.rotation_degrees) < 0:
        raise _refused("rotation_degrees", "must not be negative: it is the largest angle")
    for key in ("zoom", "stretch", "scale_intensity"):
        if getattr(config, key) >= 1:
            raise _refused(key, f"must be below 1, not {getattr(config, key)}")
    if config.rescale is not None and not 0 < config.rescale[0] <= config.rescale[1] < math.inf:
        low, high = config.rescale
        raise _refused("rescale", f"must be two factors above 0, smaller first, not {low} {high}")
    if config.turn_plane is not None:
        a, b = (AXES.index(axis) for axis in config.turn_plane)
        if a == b or crop_size[a] != crop_size[b]:
            sides = " x ".join(str(n) for n in crop_size)
            raise _refused(
                "turn_plane",
                f"needs two axes along which the crop is equally large, not {AXES[a]} and "
                f"{AXES[b]} of {sides}",
            )
    elif config.turn_probability > 0:
        raise _refused("turn_probability", "needs `augmentation.turn_plane`")


def _refused(key: str, why: str) -> ConfigError:
    return ConfigError(f"`augmentation.{key}` {why}", code="augmentation")


def draw(config: AugmentationConfig, random: np.random.Generator) -> AugmentationPlan:
    """The numbers of one crop.

    Every number is drawn whether it is used or not: switching one augmentation on leaves all
    others of the same sample as they were.

    Args:
        config: what may happen, how strongly and how often.
        random: keyed by (seed, step, index, purpose).
    """
    flips = random.random(3) < config.flip_probability
    turned, turns = random.random() < config.turn_probability, int(random.integers(1, 4))
    warped, warp = random.random() < config.affine_probability, _draw_warp(config, random)
    chances, strengths = random.random(4), random.uniform(-1, 1, 4)
    noise_key = int(random.integers(1 << 63))
    # What came later is drawn last: the numbers above are those of earlier runs.
    is_blurred, blurring = random.random() < config.blur_probability, random.random()
    rescale = _draw_rescale(config, random)

    happens = chances < (
        config.scale_intensity_probability,
        config.shift_intensity_probability,
        config.gamma_probability,
        config.noise_probability,
    )
    scale, shift, gamma, noise = np.where(happens, strengths, 0.0).tolist()
    plane = config.turn_plane or ("x", "y")
    mirrored = [AXES[a] in config.flip_axes and bool(flips[a]) for a in range(3)]
    return AugmentationPlan(
        flips=(mirrored[0], mirrored[1], mirrored[2]),
        turns=turns if turned else 0,
        plane=(AXES.index(plane[0]), AXES.index(plane[1])),
        warp=_rescaled(warp if warped else None, rescale),
        rescale=rescale,
        scale=1.0 + config.scale_intensity * scale,
        shift=config.shift_intensity * shift,
        gamma=math.exp(config.gamma * gamma),
        noise=config.noise * abs(noise),
        noise_key=noise_key,
        blur=config.blur * blurring if is_blurred else 0.0,
    )


def _draw_rescale(
    config: AugmentationConfig, random: np.random.Generator
) -> tuple[float, float, float]:
    chances = random.random(3)
    if config.rescale is None:
        return 1.0, 1.0, 1.0
    low, high = np.log(config.rescale)
    x, y, z = np.exp(low + (high - low) * chances).tolist()
    if config.rescale_axes == "each":
        return x, y, z
    return (x, x, x) if config.rescale_axes == "all" else (1.0, 1.0, z)


def _rescaled(warp: Rows | None, rescale: tuple[float, float, float]) -> Rows | None:
    """A warp whose crop has voxels of another size."""
    if rescale == (1.0, 1.0, 1.0):
        return warp
    return _rows((np.eye(3) if warp is None else np.array(warp)) * rescale)


def _rows(matrix: NDArray[np.float64]) -> Rows:
    rows: list[list[float]] = matrix.tolist()
    return tuple((row[0], row[1], row[2]) for row in rows)


def _draw_warp(config: AugmentationConfig, random: np.random.Generator) -> Rows:
    angles = np.deg2rad(config.rotation_degrees) * random.uniform(-1, 1, 3)
    zoom = 1 + config.zoom * random.uniform(-1, 1)
    growth = zoom * (1 + config.stretch * random.uniform(-1, 1, 3))
    # What grows is seen at a smaller voxel size. The sizes belong to the crop's own axes, so its
    # columns stay at right angles and its spacing says all there is to know.
    return _rows(rotation(angles) / growth)


def rotation(angles: Iterable[float]) -> NDArray[np.float64]:
    """Rotation around x, then y, then z, in radians, `3 3`: Rz Ry Rx."""
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[[a, b], [a, b]] = math.cos(angle)
        sign = -1.0 if axis == 1 else 1.0  # x to z is against the right hand
        turn[a, b], turn[b, a] = -sign * math.sin(angle), sign * math.sin(angle)
        result = turn @ result
    return result


def swap_table(pairs: Iterable[tuple[int, int]]) -> Tensor | None:
    """What each class index becomes when x is mirrored, `256` uint8, or None without pairs."""
    table = torch.arange(256, dtype=torch.uint8)
    for left, right in pairs:
        table[left], table[right] = right, left
    return table if bool((table != torch.arange(256)).any()) else None


def apply(
    plan: AugmentationPlan, crop: Crop, swaps: Tensor | None = None, out: Tensor | None = None
) -> Crop:
    """The augmented crop: everything in the plan but its warp, which `cut_crop` has applied.

    Args:
        plan: the numbers.
        crop: is left as it was, except for its intensities, which may be changed in place.
        swaps: classes that change places when x is mirrored, from `swap_table`.
        out: `c x y z`, float32, where the voxels are wanted; other memory than the crop's unless
            the plan neither mirrors nor turns.
    """
    changed = _change_intensities(plan, _orient(plan, crop, swaps, out))
    if out is not None and changed.voxels.data_ptr() != out.data_ptr():
        changed = replace(changed, voxels=out.copy_(changed.voxels))
    return changed


def moves(plan: AugmentationPlan) -> bool:
    """Whether voxels change places, so that a crop needs other memory than its source."""
    return any(plan.flips) or plan.turns > 0


def mirror_matrix(plan: AugmentationPlan, size: Sequence[int]) -> NDArray[np.float64]:
    """Voxel after the mirroring to voxel before it, `4 4`, for a crop of some size."""
    matrix = np.eye(4)
    for axis in range(3):
        if plan.flips[axis]:
            matrix[axis, axis] = -1
            matrix[axis, 3] = size[axis] - 1
    return matrix


def turn_matrix(plan: AugmentationPlan, size: Sequence[int]) -> NDArray[np.float64]:
    """Voxel after the turn to voxel before it, `4 4`, for a crop that is square in its plane."""
    a, b = plan.plane
    # torch.rot90: voxel (i, j) of the result was (j, n - 1 - i).
    once = np.eye(4)
    once[[a, b], [a, b]] = 0
    once[a, b], once[b, a] = 1, -1
    once[b, 3] = size[b] - 1
    return np.linalg.matrix_power(once, plan.turns)


def _orient(plan: AugmentationPlan, crop: Crop, swaps: Tensor | None, out: Tensor | None) -> Crop:
    """Mirrors, then turns: one strided copy."""
    if not moves(plan):
        return crop
    size = crop.voxels.shape[1:]

    def moved(tensor: Tensor, into: Tensor | None = None) -> Tensor:
        first = tensor.ndim - 3
        axes = tuple(first + axis for axis in range(3) if plan.flips[axis])
        view = np.flip(tensor.numpy(), axes)
        view = np.rot90(view, plan.turns, (first + plan.plane[0], first + plan.plane[1]))
        if into is None:
            return torch.from_numpy(np.ascontiguousarray(view))
        np.copyto(into.numpy(), view)
        return into

    labels = None if crop.labels is None else moved(crop.labels)
    if labels is not None and swaps is not None and plan.flips[0]:
        labels = swaps[labels.int()]
    return replace(
        crop,
        voxels=moved(crop.voxels, out),
        affine=crop.affine @ mirror_matrix(plan, size) @ turn_matrix(plan, size),
        labels=labels,
        valid=None if crop.valid is None else moved(crop.valid),
    )


def _change_intensities(plan: AugmentationPlan, crop: Crop) -> Crop:
    voxels, air = crop.voxels, crop.air
    if plan.blur > 0:
        valid = None if crop.valid is None else crop.valid[None]
        voxels = blur(voxels[None], valid, [plan.blur])[0]
    if plan.gamma != 1:
        voxels, air = _curve(voxels, air, crop.valid, plan.gamma)
    if plan.scale != 1 or plan.shift != 0:
        voxels = voxels.mul_(plan.scale).add_(plan.shift)
        air = None if air is None else air * plan.scale + plan.shift
    if plan.noise > 0:
        noise = gaussian(plan.noise_key, voxels.numel()).view_as(voxels)
        voxels = voxels.add_(noise, alpha=plan.noise)
    if crop.valid is not None:
        voxels = voxels.masked_fill_(~crop.valid, 0.0)
    return replace(crop, voxels=voxels, air=air)


def _curve(
    voxels: Tensor, air: Tensor | None, valid: Tensor | None, gamma: float
) -> tuple[Tensor, Tensor | None]:
    """Each channel's range, to 0 to 1, to a power, and back; the threshold of air goes along."""
    curved = torch.empty_like(voxels)
    threshold = None if air is None else air.clone()
    for channel, values in enumerate(voxels):
        inside = values if valid is None else values[valid]
        low, high = inside.aminmax()
        width = (high - low).clamp_min(1e-6)
        curved[channel] = ((values - low) / width).clamp_(0, 1).pow_(gamma) * width + low
        if threshold is not None and low < threshold[channel] < high:
            part = (threshold[channel] - low) / width
            threshold[channel] = part**gamma * width + low
    return curved, threshold


def gaussian(key: int, count: int) -> Tensor:
    """Standard normal numbers that follow from the key and their place alone, `count` float32."""
    return gaussians([key], count)[0]


def gaussians(keys: Sequence[int], count: int, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal numbers for each key, `b count` float32."""
    return normals(torch.tensor(keys, dtype=torch.int64).to(device, non_blocking=True), count)


def normals(keys: Tensor, count: int) -> Tensor:
    """Standard normal numbers for each key, where the keys are.

    Two hashed counters a pair, then Box and Muller's transform: the same on every device, which
    torch's own generators are not.

    Args:
        keys: `b`, int64.
        count: numbers of each.

    Returns:
        `b count`, float32.
    """
    pairs = (count + 1) // 2
    # The lower bits by a shift up and back, for a cast of what is too large is nowhere defined.
    low, high = ((keys << 32) >> 32).int()[:, None], (keys >> 32).int()[:, None]
    place = torch.arange(2 * pairs, dtype=torch.int32, device=keys.device).mul_(-1640531527)
    hashed = _mix(_mix(place + low).bitwise_xor_(high))
    # 23 bits and a half: inside (0, 1) and exact in float32
    uniform = hashed.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF).float().add_(0.5).mul_(2.0**-23)
    radius = uniform[:, :pairs].log_().mul_(-2).sqrt_()
    angle = uniform[:, pairs:].mul_(2 * math.pi)
    return torch.cat((radius * angle.cos(), radius * angle.sin()), dim=1)[:, :count]


def _mix(bits: Tensor) -> Tensor:
    """The `lowbias32` integer hash (C. Wellons, "Prospecting for Hash Functions", 2018)."""
    for shift, factor in ((16, 0x7FEB352D), (15, _as_int32(0x846CA68B))):
        bits = bits.bitwise_xor_((bits >> shift).bitwise_and_((1 << (32 - shift)) - 1)).mul_(factor)
    return bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF))


def _as_int32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value
