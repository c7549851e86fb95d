"""The convolutional parts of decoders, each equal to MONAI's of the same role, without MONAI.

Three rules hold everywhere: kernels of 3 cubed, instance norm without weights, LeakyReLU of 0.01.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim3d.tokens.grid import Triple

SLOPE = 0.01
"""Of LeakyReLU."""


def instance_norm(features: Tensor) -> Tensor:
    """Every channel of every sample to mean 0 and deviation 1, `b c x y z`.

    A map of a single voxel has no deviation; it is normalised over its channels instead, so that
    crops of one token do not lose what they carry.
    """
    # A program that is exported takes any grid but a single voxel.
    if not torch.compiler.is_exporting() and features.shape[2:].numel() == 1:
        return F.group_norm(features, 1)
    return F.instance_norm(features)


def leaky(features: Tensor) -> Tensor:
    """LeakyReLU, written over features that nobody else holds.

    No gradient needs them as they were: a norm's and a convolution's follow from their input. Fresh
    memory for a map at full resolution costs several times as much as the operation.
    """
    return F.leaky_relu(features, SLOPE, inplace=True)


def summed(own: Tensor, beside: Tensor) -> Tensor:
    """The sum of two maps, written over `own`, which nobody else holds."""
    return own.add_(beside) if own.dtype == beside.dtype else own + beside


THINNEST_GRID = 3
"""Voxels along the shortest side below which a convolution on the CPU runs in float32.

torch 2.13's bf16 kernel reads memory it was never given on grids such as 2 x 12 x 12, or with a
stride 12 x 1 x 12: the gradient of the weights is then wrong by orders, mostly without being NaN,
and once the process died. Sides of 3 and more were right in every shape tried, as were kernels of
1 and transposed convolutions. `tests/models/test_convolutions.py` holds the shapes.
"""


class Conv3(nn.Conv3d):
    """A convolution with a kernel of 3 cubed that keeps the grid, or halves it by its stride.

    Its kernel may be 1 along axes on which the grid never has a second voxel.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        stride: Triple = (1, 1, 1),
        *,
        bias: bool = False,
        kernel: Triple = (3, 3, 3),
    ) -> None:
        x, y, z = (side // 2 for side in kernel)
        super().__init__(channels_in, channels_out, kernel, stride, padding=(x, y, z), bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        """`b c x y z` to the same grid, divided by the stride."""
        if (
            features.device.type == "cpu"
            and not torch.compiler.is_exporting()
            and min(features.shape[2:]) < THINNEST_GRID
        ):
            with torch.autocast("cpu", enabled=False):
                return super().forward(features.float())
        return super().forward(features)


def upsample(channels_in: int, channels_out: int, stride: Triple) -> nn.Module:
    """A transposed convolution whose kernel is its stride; a linear map where that is 1."""
    return nn.ConvTranspose3d(channels_in, channels_out, stride, stride, bias=False)


class Interpolation(nn.Sequential):
    """Trilinear values between voxels, then a convolution, so that no box leaves its outline.

    Channels are changed by a linear map below, where it is cheap. With a stride of 1 that is all.
    Stores `linear` and `conv`.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: Triple) -> None:
        super().__init__()
        self.linear = nn.Conv3d(channels_in, channels_out, 1, bias=False)
        if max(stride) > 1:
            x, y, z = map(float, stride)
            self.between = nn.Upsample(scale_factor=(x, y, z), mode="trilinear")
            self.conv = Conv3(channels_out, channels_out)


Upsampling = Callable[[int, int, Triple], nn.Module]
"""From channels, to channels, and the stride: a map from one level to the next finer one."""


class ResidualBlock(nn.Module):
    """Two convolutions with a shortcut: MONAI's `UnetResBlock`; the first may stride."""

    def __init__(self, channels_in: int, channels_out: int, stride: Triple = (1, 1, 1)) -> None:
        super().__init__()
        self.conv1 = Conv3(channels_in, channels_out, stride)
        self.conv2 = Conv3(channels_out, channels_out)
        self.shortcut: nn.Module | None = None
        if channels_in != channels_out or stride != (1, 1, 1):
            self.shortcut = nn.Conv3d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """`b c x y z` to as many channels as were asked for."""
        inner = leaky(instance_norm(self.conv1(features)))
        inner = instance_norm(self.conv2(inner))
        beside = features if self.shortcut is None else instance_norm(self.shortcut(features))
        return leaky(summed(inner, beside))


class ConvBlock(nn.Module):
    """One convolution, norm and activation."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = Conv3(channels_in, channels_out)

    def forward(self, features: Tensor) -> Tensor:
        """`b c x y z` to as many channels as were asked for."""
        return leaky(instance_norm(self.conv(features)))


class TapPath(nn.Module):
    """From a tap on the token grid up to a finer level: MONAI's `UnetrPrUpBlock`.

    Args:
        width: channels of the tap.
        channels: channels all the way up.
        strides: of every step of upsampling; without any it is a linear map.
        up: how a step is made.
    """

    def __init__(
        self,
        width: int,
        channels: int,
        strides: Sequence[Triple],
        up: Upsampling = upsample,
    ) -> None:
        super().__init__()
        first, *further = strides or [(1, 1, 1)]
        self.first = up(width, channels, first)
        self.further = nn.ModuleList(
            nn.Sequential(up(channels, channels, stride), ResidualBlock(channels, channels))
            for stride in further
        )

    def forward(self, features: Tensor) -> Tensor:
        """A tap as a map `b d gx gy gz`, up through all strides."""
        features = self.first(features)
        for step in self.further:
            features = step(features)
        return features


class UpBlock(nn.Module):
    """One level up, joined with a skip: MONAI's `UnetrUpBlock`.

    Args:
        channels_in: channels below.
        channels_out: channels of this level and of its skip.
        stride: of the upsampling.
        has_skip: whether something is joined.
        up: how the upsampling is made.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        stride: Triple,
        *,
        has_skip: bool = True,
        up: Upsampling = upsample,
    ) -> None:
        super().__init__()
        self.up = up(channels_in, channels_out, stride)
        self.block = ResidualBlock(channels_out * (2 if has_skip else 1), channels_out)

    def forward(self, features: Tensor, skip: Tensor | None) -> Tensor:
        """The level below, upsampled and joined with this level's skip."""
        features = self.up(features)
        if skip is not None:
            features = torch.cat([features, skip], dim=1)
        joined: Tensor = self.block(features)
        return joined


def space_to_depth(voxels: Tensor, factor: Triple) -> Tensor:
    """Boxes of voxels as channels: `b c (x i) (y j) (z k) -> b (c i j k) x y z`."""
    b, c, x, y, z = voxels.shape
    i, j, k = factor
    split = voxels.reshape(b, c, x // i, i, y // j, j, z // k, k)
    deep = split.permute(0, 1, 3, 5, 7, 2, 4, 6)
    return deep.reshape(b, c * i * j * k, x // i, y // j, z // k)


def depth_to_space(features: Tensor, factor: Triple) -> Tensor:
    """The way back: `b (c i j k) x y z -> b c (x i) (y j) (z k)`, a pixel shuffle in 3D."""
    b, c, x, y, z = features.shape
    i, j, k = factor
    split = features.reshape(b, c // (i * j * k), i, j, k, x, y, z)
    return split.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, -1, x * i, y * j, z * k)
