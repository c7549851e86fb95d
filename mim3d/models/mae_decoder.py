"""MAE's decoder: a small transformer over visible and mask tokens, in the visible ones' context."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mim3d.foundation.errors import ConfigError
from mim3d.models.blocks import Block, initialise
from mim3d.models.vit import HiddenStates, VolumeViT
from mim3d.tokens.masking import TokenSplit, both_real
from mim3d.tokens.positions import Positions


class MaeDecoder(nn.Module):
    """Predicts patches from the hidden states of visible tokens (He et al., arXiv:2111.06377).

    Tokens stand as visible first, then masked: attention does not mind the order, since each
    carries its position. Dropped tokens have left. Positions are of the encoder's kind. Where the
    encoder has a class token, it takes part as in the paper; registers do not.

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
        self.head = nn.Linear(width, encoder.embedding.projection.in_features)
        initialise(self, config.initialisation)

    def forward(
        self,
        states: HiddenStates,
        visible: Tensor,
        split: TokenSplit,
        *,
        visible_too: bool = False,
    ) -> Tensor:
        """Predicted patches of the masked tokens, `b m p`; with the visible in front if asked for.

        Args:
            states: what the encoder gave for the visible tokens: class token and coordinates.
            visible: `b v d`, their hidden states, behind the final norm or before it.
            split: which tokens those are and which are masked.
            visible_too: whether visible patches are predicted as well, `b (v m) p`.
        """
        b, v = split.visible.shape
        seen = self.embed(visible)
        blank = self.mask_token.to(seen.dtype).expand(b, split.masked.shape[1], -1)
        tokens = torch.cat([seen, blank], dim=1)

        index = torch.cat([split.visible, split.masked], dim=1)
        added = self.positions.added(states.coordinates, states.grid, index)
        tokens = tokens if added is None else tokens + added
        tokens = tokens.to(self.norm.weight.dtype)  # as in the encoder, also under autocast
        valid = both_real(split)
        first = 0
        if self.has_class_token and states.prefix is not None:
            first = 1
            tokens = torch.cat([self.embed(states.prefix[:, :1]).to(tokens.dtype), tokens], dim=1)
            valid = None if valid is None else torch.cat([valid.new_ones((b, 1)), valid], dim=1)

        rotation = self.positions.rotation(states.coordinates, index, first)
        for block in self.blocks:
            tokens = block(tokens, rotation, valid).tokens
        asked_for = tokens[:, first if visible_too else first + v :]
        patches: Tensor = self.head(self.norm(asked_for))
        return patches
