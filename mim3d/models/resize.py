"""Weights trained with one patch at work with another: kernels, heads and learned positions.

A patch of another size is looked at as if it were the old one resized by linear interpolation,
which is a matrix B for each axis; over three axes and channels the matrices multiply (Kronecker),
so that every axis is done by itself. Everything is differentiable in the weights.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mim3d.foundation.errors import ShapeError
from mim3d.tokens.grid import Triple


def resized_kernel(weight: Tensor, old: Triple, new: Triple, channels: int) -> Tensor:
    """A patch embedding's kernel for patches of another size, by pseudo-inverse resize.

    The kernel w' whose products with resized patches, <w', B x>, are those of the old kernel with
    the patches themselves, <w, x>: w' = pinv(B^T) w (FlexiViT; Beyer et al., arXiv:2212.08013,
    section 3.4, equation 4). Where no axis shrinks that is exact for every x; else it is the least
    squares over white noise. With `old` equal to `new` it is the weight itself.

    Args:
        weight: `d (c px py pz)`, c slowest, of the old patch.
        old: voxels of the patch it was trained with, along x, y, z.
        new: voxels of the patch it is to be used with.
        channels: c.

    Returns:
        `d (c qx qy qz)` of the new patch, in the weight's type.

    Raises:
        ShapeError: the weight is not of that patch and so many channels.
    """
    if old == new:
        return weight
    _check_patches(weight.shape[-1:], old, channels, "resized_kernel")
    matrices = tuple(_kernel_matrix(i, j) for i, j in zip(old, new, strict=True))
    return _along_axes(weight, matrices, channels)


def resized_head(
    weight: Tensor, bias: Tensor, old: Triple, new: Triple, channels: int
) -> tuple[Tensor, Tensor]:
    """A head that predicts patches of another size: the old patch it predicts, resized.

    Args:
        weight: `(c px py pz) d`, c slowest, of the old patch.
        bias: `(c px py pz)`.
        old: voxels of the patch it was trained with, along x, y, z.
        new: voxels of the patch it is to predict.
        channels: c.

    Returns:
        Weight `(c qx qy qz) d` and bias `(c qx qy qz)`, in the types of the old ones.

    Raises:
        ShapeError: weight or bias are not of that patch and so many channels.
    """
    if old == new:
        return weight, bias
    _check_patches(weight.shape[:1], old, channels, "resized_head")
    _check_patches(bias.shape, old, channels, "resized_head")
    matrices = tuple(_image_matrix(i, j) for i, j in zip(old, new, strict=True))
    rows = _along_axes(weight.transpose(0, 1), matrices, channels).transpose(0, 1)
    return rows, _along_axes(bias[None], matrices, channels)[0]


def resized_table(table: Tensor, old: Triple, new: Triple) -> Tensor:
    """A table of learned positions on another token grid, trilinear between the cells' centres.

    It is what `Positions` takes from the old table for a crop of the new grid.

    Args:
        table: `1 (gx gy gz) d`.
        old: the grid it was trained on.
        new: the grid it is to be used on.

    Returns:
        `1 (hx hy hz) d`, in the table's type.

    Raises:
        ShapeError: the table is not of that grid.
    """
    if old == new:
        return table
    _check_patches(table.shape[1:2], old, 1, "resized_table")
    matrices = tuple(_linear_matrix(i, j) for i, j in zip(old, new, strict=True))
    return _along_axes(table[0].transpose(0, 1), matrices, 1).transpose(0, 1)[None]


# NumPy: a tensor would be one of the mode that happens to be on when it is first asked for (without
# content in a plan, on another device, in inference), and would be kept.
Matrix = NDArray[np.floating[Any]]


@cache
def _linear_matrix(old: int, new: int) -> Matrix:
    """Linear interpolation from `old` samples of a line to `new` ones, `new old`.

    Sample i lies at the middle of cell i, and outside the outer samples the line is constant:
    torch's `interpolate` with `align_corners=False`.
    """
    places = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
    below = np.floor(places).clip(max=max(old - 2, 0)).astype(int)
    share = places - below
    matrix = np.zeros((new, old))
    rows = np.arange(new)
    matrix[rows, below] = 1 - share
    if old > 1:
        matrix[rows, below + 1] = share
    return matrix


@cache
def _image_matrix(old: int, new: int) -> Matrix:
    """B, `new old`: linear interpolation, by halves at most, so that every voxel keeps counting.

    A step from 16 to 4 would read two voxels of every four, and a kernel would lose half of its
    weight with the others; by way of 8 it is their mean. Down to a half it is the plain matrix.
    """
    matrix: Matrix = np.eye(old)
    while new < old / 2:
        half = math.ceil(old / 2)
        matrix = _linear_matrix(old, half) @ matrix
        old = half
    return _linear_matrix(old, new) @ matrix


@cache
def _kernel_matrix(old: int, new: int) -> Matrix:
    """pinv(B^T), `new old`."""
    matrix: Matrix = np.linalg.pinv(_image_matrix(old, new).T)
    return matrix


def _along_axes(rows: Tensor, matrices: tuple[Matrix, ...], channels: int) -> Tensor:
    """Every row `(c x y z)` times the Kronecker product of three matrices, in float64 inside."""
    x, y, z = (matrix.shape[1] for matrix in matrices)
    boxes = rows.double().reshape(len(rows), channels, x, y, z)
    for axis, matrix in enumerate(matrices, start=2):
        if matrix.shape[0] != matrix.shape[1]:  # a square one is the identity
            there = torch.from_numpy(matrix).to(rows.device, non_blocking=True)
            boxes = (boxes.movedim(axis, -1) @ there.T).movedim(-1, axis)
    return boxes.flatten(1).to(rows.dtype)


def _check_patches(length: torch.Size, patch: Triple, channels: int, what: str) -> None:
    if list(length) != [channels * math.prod(patch)]:
        raise ShapeError(
            f"{what} expects {channels} x {patch} numbers, got {' x '.join(map(str, length))}"
        )
