"""The encoder: a vision transformer for volumes of any size, spacing and number of channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mim3d.config.sections import EncoderConfig, Triple
from mim3d.foundation.errors import ShapeError, check_shape
from mim3d.models.attention import Attended
from mim3d.models.blocks import Block, initialise
from mim3d.models.presets import size_of
from mim3d.tokens.embed import PatchEmbedding
from mim3d.tokens.grid import TokenGrid, valid_box
from mim3d.tokens.masking import TokenSplit
from mim3d.tokens.patches import CutCrop, cut_crop
from mim3d.tokens.positions import Positions, Rotation

Spacing = Tensor | Sequence[float] | None


@dataclass(frozen=True)
class HiddenStates:
    """What the encoder knows of a crop.

    Args:
        tokens: `b n d` after the final norm, patch tokens only; of the visible ones with a split.
        taps: the residual stream after the blocks asked for, un-normalised, each `b n d`.
        grid: how all tokens of the crop lie.
        token_valid: `b n` bool, which of `tokens` are real; None where all are.
        prefix: `b k d` after the final norm, class token first, then registers; None without.
        coordinates: `b n 3` or `1 n 3`, where *all* tokens of the grid lie, in the unit of the
            encoder's positions; decoders with positions of their own go by it.
        attention: weights of the blocks asked for, each `b h (k n) (k n)`, prefix first.
        has_class_token: whether the first of `prefix` is one.
    """

    tokens: Tensor
    taps: tuple[Tensor, ...]
    grid: TokenGrid
    token_valid: Tensor | None
    prefix: Tensor | None
    coordinates: Tensor
    attention: tuple[Tensor, ...] = ()
    has_class_token: bool = False


class Replacement(NamedTuple):
    """Tokens that the encoder gets instead of embedded patches (SimMIM)."""

    masked: Tensor
    """`b n` bool, where."""
    token: Tensor
    """`d`, what."""


class VolumeViT(nn.Module):
    """A pre-norm vision transformer (Dosovitskiy et al. 2021) whose tokens are boxes of voxels.

    Stores `embedding`, `positions`, `class_token`, `registers`, `blocks` and `norm`. Weights are
    drawn from torch's generator, which the caller seeds.

    Args:
        config: the encoder's section; `channels` None is 1.
    """

    def __init__(self, config: EncoderConfig | None = None) -> None:
        super().__init__()
        config = config or EncoderConfig()
        self.config = config if config.channels is not None else replace(config, channels=1)
        self.channels: int = config.channels or 1
        self.patch: Triple = config.patch
        self.width, self.depth, self.heads = size_of(config)
        self.embedding = PatchEmbedding(self.channels, self.patch, self.width)
        self.positions = Positions(
            config.positions,
            self.width,
            self.heads,
            wavelengths_mm=config.wavelengths_mm,
            learned_grid=config.learned_grid,
        )
        self.class_token = _tokens(1 if config.class_token else 0, self.width)
        self.registers = _tokens(config.registers, self.width)
        self.blocks = nn.ModuleList(self._block(i) for i in range(self.depth))
        self.norm = nn.LayerNorm(self.width)
        initialise(self, config.initialisation)

    @classmethod
    def preset(cls, name: str, **fields: object) -> VolumeViT:
        """An encoder by its preset's name; `fields` are those of `EncoderConfig`."""
        return cls(replace(EncoderConfig(), preset=name, **fields))  # type: ignore[arg-type]

    @property
    def prefix(self) -> int:
        """Number of tokens without position: class token and registers."""
        return sum(len(part) for part in (self.class_token, self.registers) if part is not None)

    def forward(
        self,
        voxels: Tensor,
        spacing_mm: Spacing = None,
        *,
        valid: Tensor | None = None,
        split: TokenSplit | None = None,
        replaced: Replacement | None = None,
        taps: Sequence[int] = (),
        attention_maps: Sequence[int] = (),
        cut: CutCrop | None = None,
    ) -> HiddenStates:
        """Hidden states of all tokens, or of the visible ones.

        Args:
            voxels: `b c x y z`, normalised, any size; padded inside to whole patches.
            spacing_mm: `b 3` or three numbers; none takes the config's default.
            valid: `b x y z` bool, False at padding; none is all valid. What stands in padding does
                not matter, and positions are measured from the box of what is valid.
            split: only its visible tokens are embedded and encoded.
            replaced: tokens that are exchanged before positions are added.
            taps: numbers of blocks passed (1 = after the first block, depth = the last).
            attention_maps: likewise, the blocks whose attention weights are returned.
            cut: the same voxels as patches, where the caller has cut them already.

        Raises:
            ShapeError: voxels of another number of axes or channels, or taps out of range.
            UserError: positions are in millimetres and no spacing is known.
        """
        check_shape(voxels, "b c x y z", "VolumeViT")
        if voxels.shape[1] != self.channels:
            raise ShapeError(f"VolumeViT has {self.channels} channels, got {voxels.shape[1]}")
        self._check_blocks((*taps, *attention_maps))

        # From voxels to tokens.
        box = None if valid is None else valid_box(valid)
        crop, patches = cut or cut_crop(voxels, valid, self.patch)
        index = None if split is None else split.visible
        tokens = self.embedding(patches, index)
        if replaced is not None:
            masked = replaced.masked[..., None]
            tokens = torch.where(masked, replaced.token.to(tokens.dtype), tokens)

        # Where they lie.
        spacing = self._spacing(spacing_mm, voxels)
        coordinates = self.positions.coordinates(crop.grid, spacing, box, voxels.device)
        added = self.positions.added(coordinates, crop.grid, index)
        tokens = tokens if added is None else tokens + added
        rotation = self.positions.rotation(coordinates, index, self.prefix)

        # Through the blocks.
        token_valid = crop.token_valid if split is None else split.visible_valid
        token_valid = _unless_all(token_valid)
        tokens, tapped, maps = self._run(tokens, rotation, token_valid, taps, attention_maps)
        tokens = self.norm(tokens)
        k = self.prefix
        return HiddenStates(
            tokens[:, k:],
            tapped,
            crop.grid,
            token_valid,
            prefix=tokens[:, :k] if k else None,
            coordinates=coordinates,
            attention=maps,
            has_class_token=self.class_token is not None,
        )

    def _run(
        self,
        tokens: Tensor,
        rotation: Rotation | None,
        token_valid: Tensor | None,
        taps: Sequence[int],
        attention_maps: Sequence[int],
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        b, k = tokens.shape[0], self.prefix
        first = [part for part in (self.class_token, self.registers) if part is not None]
        # The residual stream has the weights' precision, also under autocast.
        tokens = tokens.to(self.norm.weight.dtype)
        tokens = torch.cat([part.expand(b, -1, -1) for part in first] + [tokens], dim=1)
        valid = token_valid
        if valid is not None and k:
            valid = torch.cat([valid.new_ones((b, k)), valid], dim=1)
        streams: dict[int, Tensor] = {}
        maps: dict[int, Tensor] = {}
        for passed, block in enumerate(self.blocks, start=1):
            state = self._through(block, tokens, rotation, valid, passed in attention_maps)
            tokens = state.tokens
            if passed in taps:
                streams[passed] = tokens[:, k:]
            if state.attention is not None:
                maps[passed] = state.attention
        return tokens, tuple(streams[i] for i in taps), tuple(maps[i] for i in attention_maps)

    def _through(
        self,
        block: nn.Module,
        tokens: Tensor,
        rotation: Rotation | None,
        valid: Tensor | None,
        wants_map: bool,
    ) -> Attended:
        if self.config.checkpointing and torch.is_grad_enabled():
            state = checkpoint(block, tokens, rotation, valid, wants_map, use_reentrant=False)
        else:
            state = block(tokens, rotation, valid, wants_map)
        return Attended(*state)

    def _block(self, i: int) -> Block:
        config = self.config
        return Block(
            self.width,
            self.heads,
            mlp_ratio=config.mlp_ratio,
            qkv_bias=config.qkv_bias,
            drop_path=config.drop_path * i / max(1, self.depth - 1),
            attention_dropout=config.attention_dropout,
            layer_scale=config.layer_scale,
        )

    def _spacing(self, spacing_mm: Spacing, voxels: Tensor) -> Tensor | None:
        given = self.config.default_spacing_mm if spacing_mm is None else spacing_mm
        if given is None:
            return None
        spacing = torch.as_tensor(given, dtype=torch.float32, device=voxels.device)
        spacing = spacing[None] if spacing.ndim == 1 else spacing
        if spacing.shape[0] not in (1, voxels.shape[0]) or spacing.shape[1:] != (3,):
            raise ShapeError(f"VolumeViT expects spacing `b 3` or `3`, got {tuple(spacing.shape)}")
        return spacing

    def _check_blocks(self, numbers: Sequence[int]) -> None:
        if any(not 1 <= number <= self.depth for number in numbers):
            raise ShapeError(f"taps lie between 1 and {self.depth}, got {tuple(numbers)}")


def _tokens(count: int, width: int) -> nn.Parameter | None:
    if not count:
        return None
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(count, width), std=0.02))


def _unless_all(valid: Tensor | None) -> Tensor | None:
    """None where looking is cheap and shows that every token is valid: then no mask is needed.

    On an accelerator looking would wait for the device, so the mask stays.
    """
    if valid is None or valid.device.type != "cpu" or torch.compiler.is_compiling():
        return valid
    return None if bool(valid.all()) else valid
