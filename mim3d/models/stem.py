"""A convolutional tokenizer with two forms: over whole crops, and leak-free inside each patch.

Convolutions before the first block help vision transformers (Xiao et al., arXiv:2106.14881), but
over a crop in which some patches are masked they carry voxels of masked patches into visible
tokens, and the pretext task can be solved by looking. Hence the two forms of the same weights.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from mim3d.foundation.errors import ConfigError
from mim3d.models.convolutions import Conv3
from mim3d.models.levels import level_strides
from mim3d.tokens.gather import gather
from mim3d.tokens.grid import Triple
from mim3d.tokens.patches import CutCrop, PaddedCrop, patchify

WIDEST = 1024
"""Channels of the first stage: ten times what anyone would wait for."""
BIAS = 0.5
"""Deviation of a fresh bias in front of a norm, where voxels have about 1: of 0, 0.5, 1 and 2 the
best for a linear probe of random weights on one set (`benchmarks/classification`)."""


class ConvStem(nn.Module):
    """Residual stages of 3 cubed convolutions down to the token grid, then one linear map.

    *Isolated*: every patch by itself, with zeros around it, and only those that are asked for. A
    token follows from its own patch and from nothing else, so masked patches cannot leak into
    visible ones; pre-training with masks takes this form. *Dense*: the whole crop, so that a token
    knows its surroundings; fine-tuning and prediction take this one. Both agree on a crop that is
    valid in one patch alone, and wherever a patch has no valid neighbour: padding is blanked before
    every convolution, as masked patches are in SparK (Tian et al., arXiv:2301.03580).

    Grids are halved by linear maps of whole boxes, which never reach across a patch, and norms are
    over the channels of one position. So convolutions are the only thing that looks sideways, and
    since the last halving leads straight to tokens, each of their weights learns in both forms.

    Stores `stages` and `projection`; features inside lie as `b x y z c`.

    Args:
        channels: of the voxels.
        patch: voxels behind a token, each side a power of two.
        width: channels of a token.
        features: channels of the first stage, doubled with each further one.

    Raises:
        ConfigError: a side is no power of two, or none is long enough for a stage.
    """

    def __init__(self, channels: int, patch: Triple, width: int, features: int) -> None:
        super().__init__()
        if max(patch) < 4:
            raise ConfigError(
                f"`encoder.stem convolutional` has nothing to convolve in patches of {patch} "
                "voxels",
                remedy="use `--encoder.stem patches`, or a patch of 4 voxels or more on an axis",
                code="bad-patch",
            )
        if not 1 <= features <= WIDEST:
            raise ConfigError(
                f"`encoder.stem_width` is {features}, expected 1 to {WIDEST}", code="bad-stem"
            )
        self.channels = channels
        self.patch = patch
        *strides, self.last = level_strides(patch)[::-1]
        # Along an axis of one voxel the isolated form would never train the outer weights.
        x, y, z = (3 if edge > 1 else 1 for edge in patch)
        sizes = [channels, *(features * 2**level for level in range(len(strides)))]
        self.stages = nn.ModuleList(
            Stage(fine, coarse, stride, (x, y, z))
            for fine, coarse, stride in zip(sizes, sizes[1:], strides, strict=False)
        )
        self.projection = nn.Linear(sizes[-1] * math.prod(self.last), width)

    def spread_biases(self) -> None:
        """Draws the biases in front of the norms anew.

        A norm over channels takes the size of its input away: without biases a bright and a dim
        voxel are the same to the convolutions behind it, until training has moved them.
        """
        for stage in self.stages:
            assert isinstance(stage, Stage)
            nn.init.normal_(stage.merge.bias, std=BIAS)

    def forward(self, cut: CutCrop, index: Tensor | None = None, *, is_masked: bool) -> Tensor:
        """Tokens `b k d` in the isolated form where anything is masked, else `b n d` in the dense.

        Args:
            cut: the crops, whole and as patches.
            index: `b k`, int64, the tokens that are asked for; None is all of them.
            is_masked: whether some patches must not be seen by others.

        Raises:
            ConfigError: the patches have another size than the stages were made for.
        """
        if cut.crop.grid.patch != self.patch:
            raise ConfigError(
                f"`encoder.stem convolutional` was made for patches of {self.patch} voxels and "
                f"cannot take patches of {cut.crop.grid.patch}",
                remedy="use `--encoder.stem patches`, or one size of patch",
                code="bad-patch",
            )
        return self.isolated(*cut, index) if is_masked else self.dense(cut.crop)

    def dense(self, crop: PaddedCrop) -> Tensor:
        """Tokens of all patches, each of which knows its surroundings, `b n d`."""
        return self._tokens(crop.voxels, crop.valid).flatten(1, 3)

    def isolated(self, crop: PaddedCrop, patches: Tensor, index: Tensor | None = None) -> Tensor:
        """Tokens of the patches at `index`, each from its own voxels alone, `b k d`.

        Args:
            crop: whole patches, for its validity.
            patches: the same voxels, `b n p`.
            index: `b k`, int64; None is all patches.
        """
        valid = None
        if crop.valid is not None:
            valid = patchify(crop.valid[:, None], self.patch)
        if index is not None:
            patches = gather(patches, index)
            valid = None if valid is None else gather(valid, index)
        b, k, _ = patches.shape
        boxes = patches.reshape(b * k, self.channels, *self.patch)
        inside = None if valid is None else valid.reshape(b * k, *self.patch)
        return self._tokens(boxes, inside).reshape(b, k, -1)

    def _tokens(self, voxels: Tensor, valid: Tensor | None) -> Tensor:
        """Voxels `b c x y z` of whole patches and their validity to `b gx gy gz d`."""
        features = voxels.movedim(1, -1)
        inside = None if valid is None else valid[..., None]
        for stage in self.stages:
            features, inside = stage(features, inside)
        tokens: Tensor = self.projection(boxes_as_channels(features, self.last))
        return tokens


class Stage(nn.Module):
    """Boxes joined by a linear map, then two convolutions beside the residual stream.

    Stores `merge`, `norm1`, `conv1`, `norm2` and `conv2`.

    Args:
        channels_in: before.
        channels_out: behind.
        stride: of the boxes.
        kernel: of the convolutions.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: Triple, kernel: Triple) -> None:
        super().__init__()
        self.stride = stride
        self.merge = nn.Linear(channels_in * math.prod(stride), channels_out)
        self.norm1 = nn.LayerNorm(channels_out)
        self.conv1 = Conv3(channels_out, channels_out, bias=True, kernel=kernel)
        self.norm2 = nn.LayerNorm(channels_out)
        self.conv2 = Conv3(channels_out, channels_out, bias=True, kernel=kernel)

    def forward(self, features: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Features `b x y z c` and validity `b x y z 1` on the coarser grid, 0 at padding."""
        if valid is not None:
            valid = boxes_as_channels(valid, self.stride).any(dim=-1, keepdim=True)
        features = self.merge(boxes_as_channels(features, self.stride))
        inner = _convolved(self.conv1, F.gelu(self.norm1(features)), valid)
        inner = _convolved(self.conv2, F.gelu(self.norm2(inner)), valid)
        return _blanked(features + inner, valid), valid


def boxes_as_channels(features: Tensor, stride: Triple) -> Tensor:
    """Boxes of a grid as channels: `b (x i) (y j) (z k) c -> b x y z (i j k c)`."""
    b, x, y, z, c = features.shape
    i, j, k = stride
    split = features.reshape(b, x // i, i, y // j, j, z // k, k, c)
    deep = split.permute(0, 1, 3, 5, 2, 4, 6, 7)
    return deep.reshape(b, x // i, y // j, z // k, i * j * k * c)


def _convolved(convolution: Conv3, features: Tensor, valid: Tensor | None) -> Tensor:
    found: Tensor = convolution(_blanked(features, valid).movedim(-1, 1))
    return found.movedim(1, -1)


def _blanked(features: Tensor, valid: Tensor | None) -> Tensor:
    """0 wherever no voxel is valid."""
    return features if valid is None else features * valid
