"""MAE's decoders: small transformers that tell what the encoder did not see.

Both share a face: `decoder(states, visible, split, asked) -> b q p`, patches at the tokens `asked`;
and `decoder.forward_packed(groups)`, the same for groups of crops in one packed sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mim3d.foundation.errors import ConfigError
from mim3d.models.attention import Context
from mim3d.models.blocks import Block, initialise
from mim3d.models.hidden_states import HiddenStates
from mim3d.models.patch_head import Answer, head_for
from mim3d.models.vit import VolumeViT
from mim3d.tokens.grid import Triple
from mim3d.tokens.masking import Picked, TokenSplit, joined
from mim3d.tokens.packing import Packing
from mim3d.tokens.positions import Positions, Rotation


class Asking(NamedTuple):
    """Crops of one size and what is asked of them: a group of a packed sequence."""

    states: HiddenStates
    """What the encoder gave for the visible tokens: class token and coordinates."""
    visible: Tensor
    """`b v d`, their hidden states, behind the final norm or before it."""
    split: TokenSplit
    """Which tokens those are and which are masked."""
    asked: Picked
    """`b q`, the tokens that are predicted; they may be fewer in some samples."""


class _Sequence(NamedTuple):
    """Tokens at the door of the first block."""

    tokens: Tensor
    """`b n d`, the class token first."""
    rotation: Rotation | None
    valid: Tensor | None
    """`b n` bool."""


class PatchDecoder(nn.Module):
    """What the decoders share: a token for the unknown, positions, blocks and a head for patches.

    Positions are of the encoder's kind. Where the encoder has a class token, it takes part as in
    the paper; registers do not. Patches have the size of the grid that the states come from.

    Stores `embed`, `mask_token`, `positions`, `blocks`, `norm` and `head`.

    Args:
        encoder: whose width, patch, channels and positions it fits.
        width: channels of a token in the decoder.
        depth: number of blocks.
        heads: attention heads.
        answer: what is predicted of a token; None is its voxels.
    """

    def __init__(
        self,
        encoder: VolumeViT,
        *,
        width: int,
        depth: int,
        heads: int,
        answer: Answer | None = None,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ConfigError(
                f"`objective.decoder_depth {depth}` leaves mask tokens without anything to look at",
                remedy="take 1 or more blocks, or `objective.name simmim` for a linear head",
                code="no-decoder",
            )
        if width % heads:
            raise ConfigError(
                f"`objective.decoder_width` {width} is no multiple of "
                f"`objective.decoder_heads` {heads}",
                code="bad-heads",
            )
        config = encoder.config
        self.has_class_token = encoder.class_token is not None
        self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.positions = Positions(
            config.positions,
            width,
            heads,
            wavelengths_mm=config.wavelengths_mm,
            learned_grid=config.learned_grid,
        )
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio=config.mlp_ratio, qkv_bias=config.qkv_bias)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = head_for(width, answer or Answer(encoder.channels), encoder.patch)
        initialise(self, config.initialisation)

    def _placed(self, tokens: Tensor, states: HiddenStates, index: Tensor) -> Tensor:
        """Tokens with the positions of `index`, in the weights' precision as in the encoder."""
        added = self.positions.added(states.coordinates, states.grid, index)
        tokens = tokens if added is None else tokens + added
        return tokens.to(self.norm.weight.dtype)

    def _with_class_token(
        self, tokens: Tensor, valid: Tensor | None, states: HiddenStates
    ) -> tuple[Tensor, Tensor | None, int]:
        """The class token in front, if there is one; and how many tokens that is."""
        if not self.has_class_token or states.prefix is None:
            return tokens, valid, 0
        first = self.embed(states.prefix[:, :1]).to(tokens.dtype)
        if valid is not None:
            valid = torch.cat([valid.new_ones((len(valid), 1)), valid], dim=1)
        return torch.cat([first, tokens], dim=1), valid, 1

    def _patches(self, tokens: Tensor, patch: Triple) -> Tensor:
        patches: Tensor = self.head(self.norm(tokens), patch)
        return patches


class MaeDecoder(PatchDecoder):
    """Self-attention over visible and mask tokens (He et al., arXiv:2111.06377).

    Tokens stand as visible first, then masked: attention does not mind the order, since each
    carries its position. Dropped tokens have left.
    """

    def forward(
        self, states: HiddenStates, visible: Tensor, split: TokenSplit, asked: Tensor
    ) -> Tensor:
        """Predicted patches, `b q p`.

        Args:
            states: what the encoder gave for the visible tokens: class token and coordinates.
            visible: `b v d`, their hidden states, behind the final norm or before it.
            split: which tokens those are and which are masked.
            asked: `b q`, the masked tokens, or behind each other the visible and the masked.
        """
        tokens, rotation, valid = self._both(states, visible, split)
        *blocks, last = self.blocks
        for block in blocks:
            tokens = block(tokens, rotation, valid).tokens

        # Behind the last block only the tokens that are asked for are looked at.
        start = tokens.shape[1] - asked.shape[1]
        assert isinstance(last, Block)
        everything = Context(last.norm1(tokens), rotation)
        turned = _since(rotation, start)
        asked_for = last(tokens[:, start:], turned, valid, context=everything).tokens
        return self._patches(asked_for, states.grid.patch)

    def forward_packed(self, groups: Sequence[Asking]) -> list[Tensor]:
        """What `forward` gives for each group, `b q p`, all decoded as one sequence.

        Args:
            groups: of one patch, at least one; patches that are not asked for are 0.
        """
        padded = [self._both(group.states, group.visible, group.split) for group in groups]
        every, asked = _packings(padded, groups)
        tokens = every.pack([group.tokens for group in padded])
        rotation = every.pack_rotations([group.rotation for group in padded])
        *blocks, last = self.blocks
        for block in blocks:
            tokens = block(tokens, rotation, segments=every.segments).tokens

        # Behind the last block only the tokens that are asked for are looked at.
        starts = [
            group.tokens.shape[1] - one.asked.index.shape[1]
            for group, one in zip(padded, groups, strict=True)
        ]
        parts = zip(every.unpack(tokens), starts, strict=True)
        own = asked.pack([part[:, start:] for part, start in parts])
        turns = zip(padded, starts, strict=True)
        turned = asked.pack_rotations([_since(group.rotation, start) for group, start in turns])
        assert isinstance(last, Block)
        everything = Context(last.norm1(tokens), rotation, every.segments)
        own = last(own, turned, context=everything, segments=asked.segments).tokens
        return asked.unpack(self._patches(own, groups[0].states.grid.patch))

    def _both(self, states: HiddenStates, visible: Tensor, split: TokenSplit) -> _Sequence:
        """Class token, visible tokens and mask tokens, each at its place."""
        b = len(visible)
        seen = self.embed(visible)
        blank = self.mask_token.to(seen.dtype).expand(b, split.masked.shape[1], -1)
        both = joined(split.seen, split.hidden)
        tokens = self._placed(torch.cat([seen, blank], dim=1), states, both.index)
        tokens, valid, first = self._with_class_token(tokens, both.real, states)
        rotation = self.positions.rotation(states.coordinates, both.index, first)
        return _Sequence(tokens, rotation, valid)


class CrossDecoder(PatchDecoder):
    """Mask tokens look at the visible ones, not at each other (CrossMAE, arXiv:2401.14391).

    So any part of the masked tokens can be predicted without the rest: the cost falls with their
    number, and no attention over all tokens is left.

    Stores `context_norm` as well.
    """

    def __init__(
        self,
        encoder: VolumeViT,
        *,
        width: int,
        depth: int,
        heads: int,
        answer: Answer | None = None,
    ) -> None:
        super().__init__(encoder, width=width, depth=depth, heads=heads, answer=answer)
        self.context_norm = nn.LayerNorm(width)

    def forward(
        self, states: HiddenStates, visible: Tensor, split: TokenSplit, asked: Tensor
    ) -> Tensor:
        """Predicted patches, `b q p`; as `MaeDecoder`, but any tokens may be `asked` for."""
        seen, place, valid = self._known(states, visible, split)
        context = Context(self.context_norm(seen), place)
        tokens, rotation, _ = self._unknown(states, asked, seen)
        for block in self.blocks:
            tokens = block(tokens, rotation, valid, context=context).tokens
        return self._patches(tokens, states.grid.patch)

    def forward_packed(self, groups: Sequence[Asking]) -> list[Tensor]:
        """What `forward` gives for each group, `b q p`, all decoded as one sequence.

        Args:
            groups: of one patch, at least one; patches that are not asked for are 0.
        """
        padded = [self._known(group.states, group.visible, group.split) for group in groups]
        seen, asked = _packings(padded, groups)
        context = Context(
            self.context_norm(seen.pack([group.tokens for group in padded])),
            seen.pack_rotations([group.rotation for group in padded]),
            seen.segments,
        )
        blank = [
            self._unknown(group.states, group.asked.index, known.tokens)
            for group, known in zip(groups, padded, strict=True)
        ]
        tokens = asked.pack([group.tokens for group in blank])
        rotation = asked.pack_rotations([group.rotation for group in blank])
        for block in self.blocks:
            tokens = block(tokens, rotation, context=context, segments=asked.segments).tokens
        return asked.unpack(self._patches(tokens, groups[0].states.grid.patch))

    def _known(self, states: HiddenStates, visible: Tensor, split: TokenSplit) -> _Sequence:
        """The visible tokens at their places, the class token first."""
        seen = self._placed(self.embed(visible), states, split.visible)
        seen, valid, first = self._with_class_token(seen, split.visible_valid, states)
        rotation = self.positions.rotation(states.coordinates, split.visible, first)
        return _Sequence(seen, rotation, valid)

    def _unknown(self, states: HiddenStates, asked: Tensor, like: Tensor) -> _Sequence:
        """Mask tokens at the places `asked`."""
        blank = self.mask_token.to(like.dtype).expand(*asked.shape, -1)
        tokens = self._placed(blank, states, asked)
        return _Sequence(tokens, self.positions.rotation(states.coordinates, asked, 0), None)


def _packings(padded: Sequence[_Sequence], groups: Sequence[Asking]) -> tuple[Packing, Packing]:
    """How what is looked at is packed, and how what is asked for is; of the same samples."""
    tokens = [
        _of_asked(one.valid, group.asked, one.tokens.shape[1])
        for one, group in zip(padded, groups, strict=True)
    ]
    return (
        Packing([(len(one.tokens), one.tokens.shape[1]) for one in padded], tokens),
        Packing(
            [(len(group.asked.index), group.asked.index.shape[1]) for group in groups],
            [group.asked.real for group in groups],
        ),
    )


def _of_asked(valid: Tensor | None, asked: Picked, n: int) -> Tensor | None:
    """The valid tokens of samples of which anything is asked, `b n`; None is all of them."""
    index, real = asked.index, asked.real
    if real is None and index.shape[1]:
        return valid
    has_question = torch.ones_like(index, dtype=torch.bool) if real is None else real
    kept = has_question.any(dim=1, keepdim=True).expand(-1, n)
    return kept if valid is None else valid & kept


def _since(rotation: Rotation | None, start: int) -> Rotation | None:
    return None if rotation is None else rotation.since(start)


DECODERS: dict[str, type[MaeDecoder] | type[CrossDecoder]] = {
    "full": MaeDecoder,
    "cross": CrossDecoder,
}
"""By the config's word."""
