"""Volumes of several contrasts: which are there, which a token shows, and one map for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim3d.foundation.errors import ConfigError
from mim3d.tokens.gather import gather
from mim3d.tokens.grid import Triple


class Pairs(NamedTuple):
    """What happens to each contrast of each token; what is in neither takes no part."""

    shown: Tensor
    """`b n c` bool, what the encoder sees."""
    masked: Tensor
    """`b n c` bool, what is to be predicted."""


class ContrastEmbedding(nn.Module):
    """One linear map a contrast and a learned vector for it, averaged over what a token shows.

    A token that shows the contrasts S is `bias + mean over c in S of (W_c patch_c + e_c)`, so that
    its size does not grow with their number. Of a token that shows none it is the bias.

    Stores `projection.weight` `d (c px py pz)`, the maps W_c side by side as in `PatchEmbedding`,
    `projection.bias` `d` and `contrast_tokens` `c d`, the vectors e_c.

    Args:
        contrasts: how many are known.
        patch: voxels of a patch along x, y, z.
        width: channels of a token.
    """

    def __init__(self, contrasts: int, patch: Triple, width: int) -> None:
        super().__init__()
        self.contrasts = contrasts
        self.projection = nn.Linear(contrasts * math.prod(patch), width)
        self.contrast_tokens = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(contrasts, width), std=0.02)
        )

    @torch.no_grad()
    def initialise(self, how: str) -> None:
        """Draws each contrast's map as the map of a volume of that contrast alone.

        Args:
            how: as `models.blocks.initialise`, which has done its own before.
        """
        if how != "xavier":
            return  # its deviation does not depend on the number of inputs
        for weight in self.projection.weight.chunk(self.contrasts, dim=1):
            nn.init.xavier_uniform_(weight)

    def forward(
        self,
        patches: Tensor,
        shown: Tensor,
        index: Tensor | None = None,
        kernel: Tensor | None = None,
    ) -> Tensor:
        """Tokens of the patches at `index`, `b k d`; of all patches if it is None.

        Args:
            patches: `b n (c p)`; what is not shown does not matter, even if it is NaN.
            shown: `b n c` or `b 1 c` bool.
            index: `b k`, int64.
            kernel: `d (c p)`, in place of the stored weight where patches have another size.
        """
        chosen = patches if index is None else gather(patches, index)
        seen = shown if index is None or shown.shape[1] == 1 else gather(shown, index)
        b, k, _ = chosen.shape
        parts = chosen.reshape(b, k, self.contrasts, -1)
        # A NaN would pass a product with 0.
        kept = torch.where(seen[..., None], parts, parts.new_zeros(()))
        share = seen / seen.sum(dim=-1, keepdim=True).clamp_min(1)
        # The mean of the maps is one product: every part is divided before it is multiplied.
        mixed = (kept * share[..., None]).flatten(2)
        weight = self.projection.weight if kernel is None else kernel
        tokens = F.linear(mixed, weight, self.projection.bias)
        return tokens + share.to(self.contrast_tokens.dtype) @ self.contrast_tokens


def places_of(
    names: Sequence[str],
    known: Sequence[str],
    where: str,
    *,
    whose: str = "the encoder",
    remedy: str = "both must call a contrast the same",
) -> tuple[int, ...]:
    """Which of the known contrasts each channel is.

    Args:
        names: of the channels, in their order.
        known: names of the contrasts, all different.
        where: whose channels they are, for the message.
        whose: who knows the contrasts, likewise.
        remedy: what to do about a name that is not known, likewise.

    Raises:
        ConfigError: a name is not known, or occurs twice.
    """
    foreign = [name for name in names if name not in known]
    if foreign:
        raise ConfigError(
            f"{where} has the contrast {_listed(foreign[:1])}, which {whose} does not know",
            remedy=f"{where} has {_listed(names)}, {whose} knows {_listed(known)}: {remedy}",
            code="contrasts",
        )
    check_different(names, where)
    return tuple(list(known).index(name) for name in names)


def check_different(names: Sequence[str], where: str) -> None:
    """Refuses names of contrasts of which two are alike.

    Raises:
        ConfigError: as said.
    """
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ConfigError(
            f"{where} has more than one contrast called {_listed(twice[:1])}",
            remedy="give each channel a name of its own: `channel_names` of `dataset.json` before "
            "`mim3d prepare`, or a CSV with a column `image_<contrast>` for each",
            code="contrasts",
        )


def spread(channels: Tensor, places: Sequence[int], contrasts: int, fill: float = 0.0) -> Tensor:
    """Channels at the places of their contrasts, `fill` where there is none: `b c ... -> b k ...`.

    Args:
        channels: `b c ...`.
        places: which contrast each channel is.
        contrasts: how many are known, k.
        fill: what stands for those that are absent.
    """
    whole = channels.new_full((channels.shape[0], contrasts, *channels.shape[2:]), fill)
    return whole.index_copy(1, torch.tensor(places).to(channels.device), channels)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
