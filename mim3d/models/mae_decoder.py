"""MAE's decoders: small transformers that tell what the encoder did not see.

Both share a face: `decoder(states, visible, split, asked) -> b q p`, patches at the tokens `asked`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mim3d.foundation.errors import ConfigError
from mim3d.models.attention import Context
from mim3d.models.blocks import Block, initialise
from mim3d.models.vit import HiddenStates, VolumeViT
from mim3d.tokens.masking import TokenSplit, joined
from mim3d.tokens.positions import Positions


class PatchDecoder(nn.Module):
    """What the decoders share: a token for the unknown, positions, blocks and a head for patches.

    Positions are of the encoder's kind. Where the encoder has a class token, it takes part as in
    the paper; registers do not.

    Stores `embed`, `mask_token`, `positions`, `blocks`, `norm` and `head`.

    Args:
        encoder: whose width, patch, channels and positions it fits.
        width: channels of a token in the decoder.
        depth: number of blocks.
        heads: attention heads.
    """

    def __init__(self, encoder: VolumeViT, *, width: int, depth: int, heads: int) -> None:
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
        self.head = nn.Linear(width, encoder.voxels_per_patch)
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

    def _patches(self, tokens: Tensor) -> Tensor:
        patches: Tensor = self.head(self.norm(tokens))
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
        b = len(visible)
        seen = self.embed(visible)
        blank = self.mask_token.to(seen.dtype).expand(b, split.masked.shape[1], -1)
        both = joined(split.seen, split.hidden)
        tokens = self._placed(torch.cat([seen, blank], dim=1), states, both.index)
        tokens, valid, first = self._with_class_token(tokens, both.real, states)
        rotation = self.positions.rotation(states.coordinates, both.index, first)
        *blocks, last = self.blocks
        for block in blocks:
            tokens = block(tokens, rotation, valid).tokens

        # Behind the last block only the tokens that are asked for are looked at.
        start = tokens.shape[1] - asked.shape[1]
        assert isinstance(last, Block)
        everything = Context(last.norm1(tokens), rotation)
        turned = None if rotation is None else rotation.since(start)
        return self._patches(last(tokens[:, start:], turned, valid, context=everything).tokens)


class CrossDecoder(PatchDecoder):
    """Mask tokens look at the visible ones, not at each other (CrossMAE, arXiv:2401.14391).

    So any part of the masked tokens can be predicted without the rest: the cost falls with their
    number, and no attention over all tokens is left.

    Stores `context_norm` as well.
    """

    def __init__(self, encoder: VolumeViT, *, width: int, depth: int, heads: int) -> None:
        super().__init__(encoder, width=width, depth=depth, heads=heads)
        self.context_norm = nn.LayerNorm(width)

    def forward(
        self, states: HiddenStates, visible: Tensor, split: TokenSplit, asked: Tensor
    ) -> Tensor:
        """Predicted patches, `b q p`; as `MaeDecoder`, but any tokens may be `asked` for."""
        seen = self._placed(self.embed(visible), states, split.visible)
        seen, valid, first = self._with_class_token(seen, split.visible_valid, states)
        place = self.positions.rotation(states.coordinates, split.visible, first)
        context = Context(self.context_norm(seen), place)

        blank = self.mask_token.to(seen.dtype).expand(*asked.shape, -1)
        tokens = self._placed(blank, states, asked)
        rotation = self.positions.rotation(states.coordinates, asked, 0)
        for block in self.blocks:
            tokens = block(tokens, rotation, valid, context=context).tokens
        return self._patches(tokens)


DECODERS: dict[str, type[MaeDecoder] | type[CrossDecoder]] = {
    "full": MaeDecoder,
    "cross": CrossDecoder,
}
"""By the config's word."""
