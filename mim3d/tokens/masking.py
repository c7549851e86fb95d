"""Which tokens are visible, masked or dropped: noise, exact counts and partitions by score.

Strategies score tokens; `split_tokens` alone turns scores into a partition. All of it is tensor
code on the batch's device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from mim3d.foundation.errors import ConfigError, ShapeError, UserError, check_shape

# SplitMix64 (Steele, Lea and Flood 2014), its constants as signed 64-bit integers.
_STEP = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


@dataclass(frozen=True)
class Picked:
    """Some tokens of every sample.

    Args:
        index: `b k`, int64.
        real: `b k` bool, False where a shorter sample is filled up; None where none is.
    """

    index: Tensor
    real: Tensor | None = None


@dataclass(frozen=True)
class TokenSplit:
    """A partition of every sample's tokens.

    Args:
        visible: `b v`, int64: what the encoder sees, ascending.
        masked: `b m`: what must be predicted.
        dropped: `b d`: what takes no part; tokens of padding are always here.
        visible_valid: `b v` bool, False where a shorter sample is filled up with index 0; None
            where no sample is.
        masked_valid: the same for `masked`.
        dropped_valid: the same for `dropped`.
    """

    visible: Tensor
    masked: Tensor
    dropped: Tensor
    visible_valid: Tensor | None = None
    masked_valid: Tensor | None = None
    dropped_valid: Tensor | None = None

    @property
    def seen(self) -> Picked:
        """The visible tokens."""
        return Picked(self.visible, self.visible_valid)

    @property
    def hidden(self) -> Picked:
        """The masked tokens."""
        return Picked(self.masked, self.masked_valid)


def noise(keys: Tensor, counters: int | Tensor) -> Tensor:
    """Uniform numbers that depend on (key, counter) alone: not on device, batch or neighbours.

    Args:
        keys: `b`, int64, one a sample, all bits random.
        counters: n for the counters 0 to n - 1, or int64 `n` or `b n`.

    Returns:
        `b n`, float32, multiples of 2^-24 in [0, 1).
    """
    if isinstance(counters, int):
        counters = torch.arange(counters, device=keys.device)
    z = keys[:, None] + (counters + 1) * _STEP
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    z = z ^ _shifted(z, 31)
    return _shifted(z, 40).to(torch.float32) * 2.0**-24


def _shifted(z: Tensor, bits: int) -> Tensor:
    # int64 shifts arithmetically; the mask takes away the copies of the sign.
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def count(ratio: float | str | Fraction, n: int, rounding: str = "half_up") -> int:
    """Exactly `ratio` x `n` tokens, rounded as asked; never through a float product.

    Args:
        ratio: 0 to 1; a float is taken as the decimal it prints as, so 0.7 is 7/10.
        n: number of valid tokens.
        rounding: `half_up`, `ceil` or `floor`.

    Raises:
        ConfigError: a ratio outside of 0 to 1, or an unknown rounding.
    """
    exact = Fraction(str(ratio)) * n
    if not 0 <= exact <= n:
        raise ConfigError(f"a mask ratio lies between 0 and 1, not at {ratio}", code="bad-ratio")
    match rounding:
        case "half_up":
            return math.floor(exact + Fraction(1, 2))
        case "ceil":
            return math.ceil(exact)
        case "floor":
            return math.floor(exact)
    raise ConfigError(f"`{rounding}` is no rounding", remedy="half_up, ceil or floor")


def split_tokens(
    scores: Tensor,
    masked: int | Sequence[int],
    dropped: int | Sequence[int] = 0,
    valid: Tensor | None = None,
) -> TokenSplit:
    """Splits every sequence into visible, masked and dropped tokens by score.

    The `masked` highest scores are masked, the next `dropped` leave the sequence, the rest is
    visible. Uniform scores give MAE's random masking; scores from attention give MSMAE's.

    Args:
        scores: `b n`, finite; of equal scores the earlier token is taken first.
        masked: exact number of masked tokens, one for all samples or one each.
        dropped: exact number of further valid tokens that neither encoder nor decoder sees.
        valid: `b n` bool; tokens of padding are dropped whatever their score.

    Returns:
        A partition of range(n), each part ascending.

    Raises:
        ShapeError: scores is not two-dimensional.
        UserError: a sample with valid tokens would keep none of them visible.
    """
    check_shape(scores, "b n", "split_tokens")
    batch, n = scores.shape
    there = [n] * batch if valid is None else valid.sum(dim=1).tolist()
    to_mask, to_drop = _each(masked, batch), _each(dropped, batch)
    for have, mask, drop in zip(there, to_mask, to_drop, strict=True):
        if have and not (mask >= 0 and drop >= 0 and mask + drop < have):
            raise UserError(
                f"{mask} masked and {drop} dropped of {have} tokens leave none visible",
                remedy="take larger crops, smaller patches or a lower mask ratio",
                code="none-visible",
            )

    if valid is not None:
        scores = scores.masked_fill(~valid, -torch.inf)
    order = scores.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(n, device=scores.device).expand(batch, -1))

    # Rank alone decides: masked first, then dropped, then visible, and padding at the end.
    ends = [[m, m + d, have] for m, d, have in zip(to_mask, to_drop, there, strict=True)]
    # Not `device=`: that would wait for all that the device still has to do.
    end = torch.tensor(ends).to(scores.device, non_blocking=True)[:, :, None]
    is_masked = rank < end[:, 0]
    is_visible = (rank >= end[:, 1]) & (rank < end[:, 2])
    counts_visible = [stop - start for _, start, stop in ends]
    counts_dropped = [n - m - v for m, v in zip(to_mask, counts_visible, strict=True)]
    visible, visible_valid = _indices_of(is_visible, counts_visible)
    hidden, hidden_valid = _indices_of(is_masked, to_mask)
    gone, gone_valid = _indices_of(~(is_visible | is_masked), counts_dropped)
    return TokenSplit(visible, hidden, gone, visible_valid, hidden_valid, gone_valid)


def is_masked(split: TokenSplit, n: int) -> Tensor:
    """Whether each token is masked, `b n` bool."""
    counts = split.masked.new_zeros((split.masked.shape[0], n))
    real = torch.ones_like(split.masked)
    if split.masked_valid is not None:
        real = split.masked_valid.long()  # the filling with index 0 must not mask token 0
    return counts.scatter_add_(1, split.masked, real) > 0


def joined(first: Picked, second: Picked) -> Picked:
    """Tokens of both, one behind the other."""
    index = torch.cat([first.index, second.index], dim=1)
    if first.real is None and second.real is None:
        return Picked(index)
    every = [
        torch.ones_like(part.index, dtype=torch.bool) if part.real is None else part.real
        for part in (first, second)
    ]
    return Picked(index, torch.cat(every, dim=1))


def unmasked(split: TokenSplit) -> TokenSplit:
    """The same partition with nothing hidden: the masked tokens stand behind the visible."""
    every = joined(split.seen, split.hidden)
    return replace(
        split,
        visible=every.index,
        masked=split.masked[:, :0],
        visible_valid=every.real,
        masked_valid=None,
    )


def sampled(tokens: Picked, chance: Tensor, fraction: float) -> Picked:
    """A share of every sample's tokens, rounded half up and at least one.

    Args:
        tokens: `b k` of them.
        chance: `b k`, different numbers; the tokens with the highest are taken.
        fraction: above 0, at most 1.
    """
    index, real = tokens.index, tokens.real
    if real is None:
        take = max(count(fraction, index.shape[1]), min(index.shape[1], 1))
        return Picked(index.gather(1, chance.topk(take, dim=1).indices))
    wanted = [max(count(fraction, n), min(n, 1)) for n in real.sum(dim=1).tolist()]
    order = chance.masked_fill(~real, -1.0).topk(max(wanted), dim=1).indices
    places = torch.arange(order.shape[1], device=order.device)
    kept = places < torch.tensor(wanted).to(order.device, non_blocking=True)[:, None]
    return Picked(torch.where(kept, index.gather(1, order), 0), kept)


def _each(number: int | Sequence[int], batch: int) -> list[int]:
    if isinstance(number, int):
        return [number] * batch
    numbers = [int(one) for one in number]
    if len(numbers) != batch:
        raise ShapeError(f"split_tokens expects one count or {batch}, got {len(numbers)}")
    return numbers


def _indices_of(chosen: Tensor, counts: list[int]) -> tuple[Tensor, Tensor | None]:
    """Ascending indices of the chosen tokens, filled up with 0, and which of them are real."""
    n = chosen.shape[1]
    longest = max(counts)
    index = torch.arange(n, device=chosen.device)
    places = torch.where(chosen, index, n).sort(dim=1).values[:, :longest]
    if min(counts) == longest:
        return places, None
    real = places < n
    return torch.where(real, places, 0), real
