"""The encoder: a vision transformer for volumes of any size, spacing and number of channels."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mim3d.config.data import Triple
from mim3d.config.encoder import EncoderConfig
from mim3d.foundation.errors import ConfigError, ShapeError, check_shape
from mim3d.models.blocks import initialise
from mim3d.models.contrasts import Placed, known_contrasts, place
from mim3d.models.encoder_input import Crops, Replacement, Spacing, spacing_of
from mim3d.models.hidden_states import HiddenStates
from mim3d.models.patch_embedding import embed, make_embedding
from mim3d.models.presets import check_numbers, size_of
from mim3d.models.residual_stream import ResidualStream, make_blocks, run_blocks
from mim3d.models.resize import resized_kernel
from mim3d.models.stem import ConvStem
from mim3d.tokens.contrasts import ContrastEmbedding, places_of
from mim3d.tokens.grid import TokenGrid, valid_box
from mim3d.tokens.masking import TokenSplit
from mim3d.tokens.packing import Packing
from mim3d.tokens.patches import CutCrop, cut_crop
from mim3d.tokens.positions import Positions, Rotation


class _Embedded(NamedTuple):
    """Crops at the door of the first block."""

    tokens: Tensor
    """`b (k n) d`, class token and registers first."""
    rotation: Rotation | None
    token_valid: Tensor | None
    """`b n`, of the tokens without the prefix."""
    grid: TokenGrid
    coordinates: Tensor


class VolumeViT(nn.Module):
    """A pre-norm vision transformer (Dosovitskiy et al. 2021) whose tokens are boxes of voxels.

    Stores `embedding`, `positions`, `class_token`, `registers`, `blocks` and `norm`. Weights are
    drawn from torch's generator, which the caller seeds.

    With `embedding: per_contrast` the channels of what it is given are `config.contrasts`, or those
    that `carry` named.

    Args:
        config: the encoder's section; `channels` None is 1, or the number of `contrasts`.
    """

    def __init__(self, config: EncoderConfig | None = None) -> None:
        super().__init__()
        config = config or EncoderConfig()
        check_numbers(config)
        self.channels: int = config.channels or max(1, len(config.contrasts))
        self.config = replace(config, channels=self.channels)
        self.contrasts = known_contrasts(self.config)
        self._carried: tuple[int, ...] | None = None
        self.patch: Triple = config.patch
        self.width, self.depth, self.heads = size_of(config)
        self.embedding = make_embedding(config, self.channels, self.width)
        self.positions = Positions(
            config.positions,
            self.width,
            self.heads,
            wavelengths_mm=config.wavelengths_mm,
            learned_grid=config.learned_grid,
        )
        self.class_token = _tokens(1 if config.class_token else 0, self.width)
        self.registers = _tokens(config.registers, self.width)
        self.blocks = make_blocks(config, self.width, self.depth, self.heads)
        self.norm = nn.LayerNorm(self.width, config.norm_epsilon)
        initialise(self, config.initialisation)
        if isinstance(self.embedding, ContrastEmbedding):
            self.embedding.initialise(config.initialisation)
        if isinstance(self.embedding, ConvStem):
            self.embedding.spread_biases()

    @classmethod
    def preset(cls, name: str, **fields: object) -> VolumeViT:
        """An encoder by its preset's name; `fields` are those of `EncoderConfig`."""
        return cls(replace(EncoderConfig(), preset=name, **fields))  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path, *, checkpoint: str = "last") -> VolumeViT:
        """The encoder of a run, a hub folder or a `.safetensors` file, in eval mode, on the CPU.

        Args:
            path: where it lies; nothing is looked up anywhere else.
            checkpoint: which of a run's, `last` or `best`.

        Raises:
            WeightsError: there are no weights, or not those of a whole encoder.
        """
        from mim3d.models.saved import load_encoder

        return load_encoder(path, checkpoint)

    def with_patch(self, patch: Triple) -> VolumeViT:
        """The same encoder for patches of another size; only the embedding is not shared.

        Raises:
            ConfigError: it has a convolutional stem, which only knows its own patch.
        """
        if patch == self.patch:
            return self
        if isinstance(self.embedding, ConvStem):
            raise ConfigError(
                "a convolutional stem only knows the patch it was made for",
                remedy="resample, or train with `--encoder.stem patches`",
                code="patch-of-stem",
            )
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other.config, other.patch = replace(self.config, patch=patch), patch
        other.embedding = copy.deepcopy(self.embedding)
        weight = self.embedding.projection.weight
        with torch.no_grad():
            resized = resized_kernel(weight, self.patch, patch, self.channels)
        other.embedding.projection.weight = nn.Parameter(resized, weight.requires_grad)
        return other

    @property
    def voxels_per_patch(self) -> int:
        """Numbers behind a token, over all channels: what is predicted of one."""
        return self.channels * math.prod(self.patch)

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
        patch: Triple | None = None,
        present: Tensor | None = None,
        shown: Tensor | None = None,
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
            patch: voxels of a patch along x, y, z, in place of the config's: the embedding's
                weights are resized to it (`resize.resized_kernel`). None is that of `cut`.
            present: `b c` bool, which channels are there; what stands in others does not matter.
                None is all. Only with `embedding: per_contrast`.
            shown: `b n c` or `b 1 c` bool, which contrasts of a token are looked at, beside voxels
                as `placed` gives them, in place of `present`.

        Raises:
            ShapeError: voxels of another number of axes or channels, taps out of range, or two
                sizes of a patch.
            ConfigError: patches of another size than a convolutional stem was made for.
            UserError: positions are in millimetres and no spacing is known.
        """
        self._check_blocks((*taps, *attention_maps))
        if shown is None:
            voxels, shown = self.placed(voxels, present)
        if patch is not None:
            cut = cut or cut_crop(voxels, valid, patch)
            if cut.crop.grid.patch != patch:
                raise ShapeError(f"VolumeViT expects patches {patch}, got {cut.crop.grid.patch}")
        given = self._embedded(Crops(voxels, spacing_mm, valid, split, replaced, cut, shown))
        seen = self._with_prefix(given.token_valid)
        stream = run_blocks(
            self.blocks,
            given.tokens,
            given.rotation,
            taps,
            attention_maps,
            valid=seen,
            checkpointing=self.config.checkpointing,
        )
        return self._states(given, stream._replace(tokens=self.norm(stream.tokens)))

    def forward_packed(
        self, crops: Sequence[Crops], *, taps: Sequence[int] = ()
    ) -> list[HiddenStates]:
        """What `forward` gives for each group of crops, all encoded as one sequence.

        Groups may differ in everything: size, spacing, split. Only tokens that are valid enter the
        sequence, and each sample's attend to its own alone (sequence packing; Dehghani et al.,
        arXiv:2307.06304). States of padding are 0.

        Args:
            crops: the groups, at least one.
            taps: as `forward`'s.

        Raises:
            ShapeError: as `forward`, or there is no group.
            UserError: as `forward`.
        """
        if not crops:
            raise ShapeError("VolumeViT.forward_packed expects at least one group of crops")
        self._check_blocks(taps)
        groups = [self._embedded(one) for one in crops]
        sizes = [(group.tokens.shape[0], group.tokens.shape[1]) for group in groups]
        packing = Packing(sizes, [self._with_prefix(group.token_valid) for group in groups])

        tokens = packing.pack([group.tokens for group in groups])
        rotation = packing.pack_rotations([group.rotation for group in groups])
        stream = run_blocks(
            self.blocks,
            tokens,
            rotation,
            taps,
            segments=packing.segments,
            checkpointing=self.config.checkpointing,
        )

        last = packing.unpack(self.norm(stream.tokens))
        tapped = [packing.unpack(tap) for tap in stream.taps]
        return [
            self._states(group, ResidualStream(last[i], tuple(tap[i] for tap in tapped)))
            for i, group in enumerate(groups)
        ]

    def carry(self, names: Sequence[str]) -> None:
        """From now on the channels of what is given are the contrasts of these names.

        An encoder that maps all channels jointly knows no names, and nothing changes.

        Raises:
            ConfigError: a name is not among `contrasts`, or occurs twice.
        """
        if self.contrasts:
            self._carried = places_of(names, self.contrasts, "the volume")

    @property
    def places(self) -> tuple[int, ...]:
        """Which of its contrasts each channel of what it is given is."""
        return self._carried or tuple(range(self.channels))

    def placed(self, voxels: Tensor, present: Tensor | None = None) -> Placed:
        """Volumes with their channels at the places of their contrasts; as they are if joint.

        Args:
            voxels: `b c x y z`, of the channels that `carry` named.
            present: `b c` bool, which of them are there; None is all.

        Raises:
            ShapeError: another number of channels.
            ConfigError: `present` is given and the encoder maps all channels jointly.
        """
        if self.contrasts:
            return place(voxels, present, self.places, self.channels)
        if present is not None:
            raise ConfigError(
                "an encoder with `embedding joint` needs every channel of a volume",
                remedy="train with `--encoder.embedding per_contrast`",
                code="contrasts",
            )
        return Placed(voxels, None)

    def _embedded(self, crops: Crops) -> _Embedded:
        """From voxels to the tokens that the first block gets."""
        if crops.shown is None:
            voxels, shown = self.placed(crops.voxels)
            crops = crops._replace(voxels=voxels, shown=shown)
        voxels, spacing_mm, valid, split, replaced, cut, shown = crops
        check_shape(voxels, "b c x y z", "VolumeViT")
        if voxels.shape[1] != self.channels:
            raise ShapeError(f"VolumeViT has {self.channels} channels, got {voxels.shape[1]}")

        # From voxels to tokens.
        box = None if valid is None else valid_box(valid)
        cut = cut or cut_crop(voxels, valid, self.patch)
        crop = cut.crop
        index = None if split is None else split.visible
        tokens = embed(
            self.embedding,
            cut,
            index,
            shown,
            patch=self.patch,
            channels=self.channels,
            is_masked=split is not None or replaced is not None,
        )
        if replaced is not None:
            masked = replaced.masked[..., None]
            tokens = torch.where(masked, replaced.token.to(tokens.dtype), tokens)

        # Where they lie.
        spacing = spacing_of(spacing_mm, self.config.default_spacing_mm, voxels)
        coordinates = self.positions.coordinates(crop.grid, spacing, box, voxels.device)
        added = self.positions.added(coordinates, crop.grid, index)
        tokens = tokens if added is None else tokens + added
        rotation = self.positions.rotation(coordinates, index, self.prefix)

        # The residual stream has the weights' precision, also under autocast.
        tokens = tokens.to(self.norm.weight.dtype)
        first = [part for part in (self.class_token, self.registers) if part is not None]
        # Not `len`: a program that is exported would be made for this batch alone.
        batch = tokens.shape[0]
        tokens = torch.cat([part.expand(batch, -1, -1) for part in first] + [tokens], dim=1)
        token_valid = crop.token_valid if split is None else split.visible_valid
        return _Embedded(tokens, rotation, _unless_all(token_valid), crop.grid, coordinates)

    def _with_prefix(self, token_valid: Tensor | None) -> Tensor | None:
        """Which of the sequence may be looked at, `b (k n)`: class token and registers always."""
        if token_valid is None or not self.prefix:
            return token_valid
        always = token_valid.new_ones((len(token_valid), self.prefix))
        return torch.cat([always, token_valid], dim=1)

    def _states(self, given: _Embedded, stream: ResidualStream) -> HiddenStates:
        """What is handed out, the prefix apart."""
        k = self.prefix
        return HiddenStates(
            stream.tokens[:, k:],
            tuple(tap[:, k:] for tap in stream.taps),
            given.grid,
            given.token_valid,
            prefix=stream.tokens[:, :k] if k else None,
            coordinates=given.coordinates,
            attention=stream.attention,
            has_class_token=self.class_token is not None,
        )

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
