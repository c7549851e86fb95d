"""What an encoder has attended to, and the tokens that it looks at next."""

from __future__ import annotations

import torch
from torch import Tensor

from mim3d.models.hidden_states import HiddenStates
from mim3d.tokens.grid import TokenGrid
from mim3d.tokens.masking import Picked, TokenSplit, count, split_tokens
from mim3d.tokens.patches import CutCrop
from mim3d.tokens.strategies import uniform

FLOOR = 1e-4
"""Least weight of a token, as a share of the mean: a weight of 0 would never be drawn again."""


def received(states: HiddenStates, queries: str | None = None) -> Tensor:
    """The attention that each patch token gets from the class token or from all patch tokens.

    The mean over heads. Each head's row sums to 1, so heads count alike without the published
    minimum and maximum, which divide by 0 where a head attends to all alike.

    Args:
        states: with the attention of one block, `b h (k n) (k n)`.
        queries: `class_token` or `patches`; None is the class token where there is one.

    Returns:
        `b n`, float32.
    """
    (attention,) = states.attention
    rows = attention.float().mean(dim=1)
    prefix = 0 if states.prefix is None else states.prefix.shape[1]
    if queries == "class_token" or (queries is None and states.has_class_token):
        return rows[:, 0, prefix:]
    rows = rows[:, prefix:, prefix:]
    if states.token_valid is None:
        return rows.mean(dim=1)
    asking = states.token_valid[..., None].to(rows.dtype)
    return (rows * asking).sum(dim=1) / asking.sum(dim=1).clamp_min(1)


def spread(weights: Tensor, seen: Picked, grid: TokenGrid) -> Tensor:
    """Each token's weight is that of the nearest seen one, counted in tokens; of several, of any.

    Args:
        weights: `b v`, of the tokens that were seen.
        seen: which they are.
        grid: of all tokens.

    Returns:
        `b n`, at least `FLOOR` times the mean over the seen.
    """
    places = grid.indices(weights.device).float()
    away = torch.cdist(
        places.expand(len(weights), -1, -1),
        places[seen.index],
        compute_mode="donot_use_mm_for_euclid_dist",  # which rounds: ties would fall by device
    )
    if seen.real is None:
        mean = weights.mean(dim=1, keepdim=True)
    else:
        away = away.masked_fill(~seen.real[:, None], torch.inf)
        weights = weights * seen.real
        mean = weights.sum(dim=1, keepdim=True) / seen.real.sum(dim=1, keepdim=True).clamp_min(1)
    return weights.gather(1, away.argmin(dim=2)).maximum(FLOOR * mean)


def kept_tokens(
    cut: CutCrop,
    keys: Tensor,
    keep: float,
    weights: Tensor | None = None,
    *,
    polarity: str = "high",
) -> TokenSplit:
    """A draw of the tokens that are seen: `keep` of the valid ones, and one at least; none masked.

    Args:
        cut: the crops.
        keys: `b` int64.
        keep: share, above 0 to 1.
        weights: `b n`, not negative; None draws evenly.
        polarity: `high` sees a weighted sample without replacement; `low` leaves one out.
    """
    grid, token_valid = cut.crop.grid, cut.crop.token_valid
    batch = len(keys)
    there = [grid.n] * batch if token_valid is None else token_valid.sum(dim=1).tolist()
    dropped = [have - max(count(keep, have), min(have, 1)) for have in there]
    scores = uniform(grid, keys, token_valid, weights)
    if weights is not None and polarity == "high":
        scores = -scores  # those that score highest leave
    return split_tokens(scores, 0, dropped, token_valid)
