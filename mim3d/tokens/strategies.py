"""Masking strategies: scores of tokens, by what is masked together and by what weighs more.

A strategy scores tokens, `(grid, keys, valid, weights, temperature) -> scores b n`; `split_tokens`
alone turns scores into a partition, so that counts are exact whatever the strategy: within the last
unit that is begun, tokens are taken at random. All of it is tensor code on the batch's device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from mim3d.tokens.grid import TokenGrid, Triple
from mim3d.tokens.masking import noise

_SIDE = 1 << 16
"""More than the tokens along any axis, so that places pack into one counter without collision."""
_UNITS = 1 << 50
"""Sets the counters of units apart from those of tokens."""


class Strategy(Protocol):
    """Scores of tokens; the highest are masked."""

    def __call__(
        self,
        grid: TokenGrid,
        keys: Tensor,
        valid: Tensor | None = None,
        weights: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Scores `b n`, below 1 where there are no weights.

        Args:
            grid: the tokens.
            keys: `b`, int64.
            valid: `b n` bool; noise follows the first valid token, so that padding moves no mask.
            weights: `b n`, finite, not negative. A unit of tokens has the mean of its valid ones.
            temperature: units are a sample without replacement in proportion to
                weight ^ (1 / temperature); at 0 they come by weight, of equal ones any.
        """
        ...


def uniform(
    grid: TokenGrid,
    keys: Tensor,
    valid: Tensor | None = None,
    weights: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Every token by itself (He et al. 2022, arXiv:2111.06377, section 3).

    With weights, the highest scores are a weighted sample without replacement: Gumbel noise on
    log weights (Kool et al., arXiv:1903.06059).

    Returns:
        `b n`, float32.
    """
    chance = noise(keys, _packed(_places(grid, keys.device, valid)))
    if weights is None:
        return chance
    if temperature == 0:
        return _ranked(chance, weights)
    return _gumbel(chance, weights, temperature)


def blocks(unit: Triple) -> Strategy:
    """Blocks of `unit` tokens, their phase drawn for every sample (arXiv:2111.09886).

    Args:
        unit: tokens of a block along x, y, z.
    """

    def block_of(places: Tensor, keys: Tensor) -> Tensor:
        sides = torch.tensor(unit, device=keys.device)
        phase_counters = torch.arange(-3, 0, device=keys.device)
        phase = (noise(keys, phase_counters) * sides).long()[:, None]
        return (places + phase).div(sides, rounding_mode="floor")

    return _together(block_of)


def tubes(axis: str) -> Strategy:
    """Lines of tokens along an axis (VideoMAE's tubes along time, arXiv:2203.12602)."""
    return _together(_along([one for one in "xyz" if one != axis]))


def slabs(axis: str) -> Strategy:
    """Planes of tokens across an axis."""
    return _together(_along([axis]))


STRATEGIES: dict[str, Callable[[Triple, str], Strategy]] = {
    "uniform": lambda unit, axis: uniform,
    "block": lambda unit, axis: blocks(unit),
    "tube": lambda unit, axis: tubes(axis),
    "slab": lambda unit, axis: slabs(axis),
}
"""By the config's word; each takes `mask_unit` and `mask_axis`."""

_UnitOf = Callable[[Tensor, Tensor], Tensor]
"""`(places b n 3, keys b) -> units b n 3`: which unit each token is in."""


def _together(unit_of: _UnitOf) -> Strategy:
    """Scores, float64, by the unit's noise or weight above and by the token's noise below."""

    def scores(
        grid: TokenGrid,
        keys: Tensor,
        valid: Tensor | None = None,
        weights: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        places = _places(grid, keys.device, valid)
        units = unit_of(places, keys)
        between = noise(keys, _packed(units) + _UNITS)
        within = noise(keys, _packed(places))
        if weights is None:
            return between.double() + within.double() * 2.0**-24
        weights = _means(weights, units, grid, valid)
        if temperature == 0:
            return _ranked(within.expand_as(weights), between.expand_as(weights), weights)
        return _ranked(within.expand_as(weights), _gumbel(between, weights, temperature))

    return scores


def _along(axes: list[str]) -> _UnitOf:
    """Units that are told apart by their place along these axes alone."""

    def unit_of(places: Tensor, keys: Tensor) -> Tensor:
        counts = torch.tensor([axis in axes for axis in "xyz"])
        return places * counts.to(places.device, non_blocking=True)

    return unit_of


def _gumbel(chance: Tensor, weights: Tensor, temperature: float) -> Tensor:
    # Half a step of the noise up from 0, and no rounding up to 1: both logarithms stay finite.
    gumbel = -(-(chance + 2.0**-25).clamp_max(1 - 2.0**-24).log()).log()
    return weights.clamp_min(torch.finfo(weights.dtype).tiny).log() / temperature + gumbel


def _means(weights: Tensor, units: Tensor, grid: TokenGrid, valid: Tensor | None) -> Tensor:
    """The mean weight of the valid tokens of each token's unit, `b n`."""
    sides = [count + 1 for count in grid.counts]  # one more, for the phase
    x, y, z = (units - units.amin(dim=1, keepdim=True)).unbind(-1)
    number = ((x * sides[1] + y) * sides[2] + z).expand(weights.shape)
    counted = torch.ones_like(weights) if valid is None else valid.to(weights.dtype)
    sums = weights.new_zeros((2, len(weights), sides[0] * sides[1] * sides[2]))
    sums[0].scatter_add_(1, number, weights * counted)
    sums[1].scatter_add_(1, number, counted)
    return (sums[0] / sums[1].clamp_min(1)).gather(1, number)


def _ranked(*levels: Tensor) -> Tensor:
    """Ranks from 0 to below 1, float32, by the last level, of equal ones by the one before it."""
    order = levels[0].argsort(dim=1, stable=True)
    for level in levels[1:]:
        order = order.gather(1, level.gather(1, order).argsort(dim=1, stable=True))
    batch, n = order.shape
    steps = torch.arange(n, device=order.device, dtype=torch.float32) / n
    return torch.empty_like(steps.expand(batch, -1)).scatter_(1, order, steps.expand(batch, -1))


def _places(grid: TokenGrid, device: torch.device, valid: Tensor | None) -> Tensor:
    """Places in the grid from the first valid token along each axis, `1 n 3` or `b n 3`."""
    places = grid.indices(device)[None]
    if valid is None:
        return places
    beyond = max(grid.counts)
    first = torch.where(valid[..., None], places, beyond).amin(dim=1, keepdim=True)
    return places - first


def _packed(places: Tensor) -> Tensor:
    x, y, z = places.unbind(-1)
    return (x * _SIDE + y) * _SIDE + z
