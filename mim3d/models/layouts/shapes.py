"""What the shapes of a foreign encoder's tensors say of it: patch, channels, grid, width, depth."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mim3d.config.data import Triple
from mim3d.config.encoder import EncoderConfig
from mim3d.foundation.errors import WeightsError
from mim3d.models.adaptation import TABLE
from mim3d.models.layouts.layout import Layout
from mim3d.models.presets import PRESETS, Size

MOST_CHANNELS = 64
"""Beyond that a kernel's length is taken for one that says nothing."""


@dataclass(frozen=True)
class Said:
    """What a user says of a foreign encoder, where its shapes leave it open.

    Args:
        patch: voxels behind a token.
        channels: of a volume.
        heads: attention heads.
        grid: token grid of its position table.
        depth_voxels: how many slices a two-dimensional kernel is repeated over; None leaves it as
            thick as one voxel.
    """

    patch: Triple | None = None
    channels: int | None = None
    heads: int | None = None
    grid: Triple | None = None
    depth_voxels: int | None = None


@dataclass(frozen=True)
class Kernel:
    """A patch embedding's kernel in our order.

    Args:
        weight: `d (c px py pz)`, c slowest.
        patch: px, py, pz.
        channels: c.
        is_flat: whether it was trained on two-dimensional images.
    """

    weight: Tensor
    patch: Triple
    channels: int
    is_flat: bool


def kernel_of(weight: Tensor, said: Said, *, channels: int | None = None) -> Kernel:
    """A foreign kernel in our order: of a convolution, `d c px py [pz]`, or a linear map of patches
    whose channels are fastest, `d (px py pz c)`.

    A kernel of two-dimensional images is one voxel thick, or repeated over `said.depth_voxels`
    slices and divided by them: a volume that is the same in all slices then has the image's tokens.

    Args:
        weight: as the checkpoint has it.
        said: what the user says; needed where a linear map's length can be read in several ways.
        channels: of the volumes, where another tensor says it.

    Raises:
        WeightsError: the length of a linear map is no patch, or nothing is there to inflate.
    """
    if weight.ndim == 2:
        channels, patch = _linear_patch(weight.shape[1], said, channels)
        boxes = weight.reshape(len(weight), *patch, channels).movedim(-1, 1)
    elif weight.ndim in (4, 5):
        boxes = weight if weight.ndim == 5 else weight[..., None]
        channels, x, y, z = boxes.shape[1:]
        patch = (x, y, z)
    else:
        raise _unreadable(f"its kernel has the shape {tuple(weight.shape)}")
    is_flat = patch[2] == 1
    if said.depth_voxels is not None:
        if not is_flat:
            raise WeightsError(
                f"there is nothing to inflate: the kernel is {patch[2]} voxels deep already",
                remedy="leave `--convert.inflate` out; `--encoder.patch` resizes the kernel",
                code="inflate",
            )
        boxes = boxes.repeat(1, 1, 1, 1, said.depth_voxels) / said.depth_voxels
        patch = (patch[0], patch[1], said.depth_voxels)
    return Kernel(boxes.flatten(1).contiguous(), patch, channels, is_flat)


def grid_of(rows: int, said: Said, *, is_flat: bool) -> Triple:
    """The token grid of a position table: as said, else a cube, or a square one token thick.

    Args:
        rows: of the table, without the class token's.
        said: what the user says.
        is_flat: whether its images are two-dimensional.

    Raises:
        WeightsError: so many rows are neither, and nothing fitting is said.
    """
    if said.grid is not None and 0 < math.prod(said.grid) == rows:
        return said.grid
    cube, square = (_root(rows, power) if rows else None for power in (3, 2))
    if cube is not None and not is_flat:
        return cube, cube, cube
    if square is not None and is_flat:
        return square, square, 1
    shape = "square" if is_flat else "cube"
    raise WeightsError(
        f"its position table has {rows} rows, which are no {shape} of tokens",
        remedy="say how they lie with `--encoder.learned_grid`: the crop it was trained on, divided"
        " by the patch",
        code="learned-grid",
    )


def check_axes(tensors: Mapping[str, Tensor], axes: Mapping[str, int], layout: Layout) -> None:
    """Refuses a checkpoint that lacks a tensor, or has it with another number of axes, or empty.

    Args:
        tensors: by our encoder's own keys.
        axes: key to number of axes; 0 is two or more.
        layout: whose names were sought.

    Raises:
        WeightsError: naming the first.
    """
    for key, count in axes.items():
        tensor = tensors.get(key)
        if tensor is None:
            raise _unreadable(f"it has no `{key}` by any name of the layout `{layout.layout}`")
        if not tensor.numel() or tensor.ndim != (count or max(2, tensor.ndim)):
            raise _unreadable(f"its `{key}` has the shape {tuple(tensor.shape)}")


def encoder_of_shapes(
    tensors: Mapping[str, Tensor], layout: Layout, kernel: Kernel, grid: Triple, said: Said
) -> EncoderConfig:
    """The config of the encoder that the tensors are of.

    Args:
        tensors: by our encoder's own keys and in its shapes.
        layout: says what no shape does.
        kernel: of the patch embedding.
        grid: of the position table.
        said: what the user says.

    Raises:
        WeightsError: no norm or no block is there, or nobody knows the number of heads.
    """
    check_axes(tensors, {"norm.weight": 1, "blocks.0.mlp.widen.weight": 2}, layout)
    widen, width = tensors["blocks.0.mlp.widen.weight"], len(tensors["norm.weight"])
    numbers = [re.match(r"blocks\.(\d+)\.", key) for key in tensors]
    depth = 1 + max(int(found[1]) for found in numbers if found)
    heads = said.heads or layout.heads.get(str(width)) or (width // 64 if width % 64 == 0 else None)
    if heads is None:
        raise WeightsError(
            f"no tensor says how many attention heads a width of {width} is divided into",
            remedy="say it with `--encoder.heads`",
            code="heads",
        )
    size = Size(width, depth, heads)
    preset = next((name for name, known in PRESETS.items() if known == size), None)
    return EncoderConfig(
        preset=preset or "base",  # type: ignore[arg-type]
        width=None if preset else width,
        depth=None if preset else depth,
        heads=None if preset else heads,
        mlp_ratio=len(widen) / width,
        patch=kernel.patch,
        channels=kernel.channels,
        positions="learned" if TABLE in tensors else "sincos_mm",
        learned_grid=grid,
        class_token="class_token" in tensors,
        qkv_bias="blocks.0.attention.qkv.bias" in tensors,
        layer_scale=1.0 if "blocks.0.scale1.factor" in tensors else None,
        norm_epsilon=layout.norm_epsilon,
    )


def _linear_patch(length: int, said: Said, channels: int | None) -> tuple[int, Triple]:
    """Channels and patch of a linear map of so many numbers."""
    known = channels or said.channels
    for count in [known] if known else range(1, MOST_CHANNELS + 1):
        if length % count:
            continue
        if said.patch is not None and math.prod(said.patch) * count == length:
            return count, said.patch
        edge = _root(length // count, 3)
        if edge is not None and edge > 1:
            return count, (edge, edge, edge)
    raise _unreadable(
        f"its embedding is a linear map of {length} numbers"
        + (f", which {known} channels of a cube do not have" if known else ", which are no cube"),
        remedy="say `--encoder.patch` and `--encoder.channels` as it was trained with",
    )


def _root(number: int, power: int) -> int | None:
    root = round(number ** (1 / power))
    return root if root**power == number else None


def _unreadable(why: str, remedy: str | None = None) -> WeightsError:
    return WeightsError(
        f"the encoder cannot be read from its tensors: {why}", remedy=remedy, code="layout"
    )
