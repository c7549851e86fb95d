"""An encoder's weights for an encoder of another patch, other channels or other positions.

Nothing is adapted that was not asked for, and every tensor that is changed is listed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.foundation.errors import WeightsError
from mim3d.models.resize import resized_kernel, resized_table

KERNEL = "embedding.projection.weight"
CONTRAST_TOKENS = "embedding.contrast_tokens"
"""Of an embedding with a map for each contrast; its kernel has the same name as a joint one's."""
FIRST_MERGE = "embedding.stages.0.merge.weight"
"""Of a convolutional stem: the only one of its tensors that knows the channels."""
TABLE = "positions.table"
LEARNED, JOINT = "learned", "joint"
PARTS: Mapping[str, tuple[str, ...]] = {
    "patch": ("patch",),
    "channels": ("channels", "embedding", "contrasts"),
    "positions": ("positions", "wavelengths_mm", "learned_grid"),
}
"""The words of `init_adapt`, and the settings of the encoder that each lets differ."""


def part_of(field: str) -> str | None:
    """The word of `init_adapt` that lets a setting of the encoder differ; None if none does."""
    return next((part for part, fields in PARTS.items() if field in fields), None)


@dataclass(frozen=True)
class Adapted:
    """One tensor that is not what the source has.

    Args:
        key: the encoder's.
        found: its shape in the source; None where it was not there.
        made: its shape now; None where it was left out.
        reason: the settings behind it, with their old and new values.
    """

    key: str
    found: tuple[int, ...] | None
    made: tuple[int, ...] | None
    reason: str

    def __str__(self) -> str:
        was = "absent" if self.found is None else _sides(self.found)
        made = "left out" if self.made is None else f"now {_sides(self.made)}"
        return f"`{self.key}` was {was}, {made} ({self.reason})"


def check_adaptable(found: EncoderConfig, asked: EncoderConfig, *, source: str) -> None:
    """Refuses what no weights can be adapted to.

    Args:
        found: the encoder that the weights belong to.
        asked: the encoder that they are for, channels filled in.
        source: whose weights they are, in messages.

    Raises:
        WeightsError: another patch for a convolutional stem, channels of several to several
            others, or learned positions where the source has none.
    """
    if found.patch != asked.patch and "convolutional" in (found.stem, asked.stem):
        raise WeightsError(
            f"`encoder.patch` is {_sides(asked.patch)}, but `{source}` has {_sides(found.patch)} "
            "and a convolutional stem, whose stages belong to their patch",
            remedy=f"use `--encoder.patch {_typed(found.patch)}`, or weights of a run with "
            "`--encoder.stem patches`",
            code="not-adaptable",
        )
    one, other = found.channels or 1, asked.channels or 1
    if one != other and 1 not in (one, other):
        raise WeightsError(
            f"weights of {one} channels cannot be adapted to {other}: `{source}` does not say "
            "which belong together",
            remedy="1 channel can become many, and many can become 1; prepare a store of so many",
            code="not-adaptable",
        )
    before, after = (found.embedding, found.contrasts), (asked.embedding, asked.contrasts)
    if before != after and (found.embedding != JOINT or one > 1):
        raise WeightsError(
            f"an encoder of `{source}` with {_contrasts_of(found)} cannot become one with "
            f"{_contrasts_of(asked)}",
            remedy="only 1 channel can become contrasts, each with a copy of its map; a run that "
            "knows contrasts takes any of those it knows, by name",
            code="not-adaptable",
        )
    if asked.positions == LEARNED != found.positions:
        raise WeightsError(
            f"`encoder.positions` is {LEARNED}, but `{source}` has {found.positions} and no table",
            remedy=f"use `--encoder.positions {found.positions}`, or another kind without a table",
            code="not-adaptable",
        )


def adapted_tensors(
    tensors: Mapping[str, Tensor],
    found: EncoderConfig,
    asked: EncoderConfig,
    *,
    parts: Collection[str] = tuple(PARTS),
    source: str = "the weights",
) -> tuple[dict[str, Tensor], tuple[Adapted, ...]]:
    """An encoder's tensors as another encoder needs them, and what was changed.

    Another patch resizes the embedding's kernel (`resize.resized_kernel`). One channel becomes N
    by repeating its kernel and dividing by N, so that N equal channels give the tokens of one; N
    become one by the sum. Of one channel each contrast gets a copy, and a vector of zeros: any of
    them alone gives the tokens of that channel. A table of learned positions is interpolated to the
    new grid, or left out where the new positions have none. A tensor that is missing or not of the
    shape that `found` implies is handed through, for the transfer to list.

    Args:
        tensors: by the encoder's own keys.
        found: the encoder they belong to.
        asked: the encoder they are for, channels filled in.
        parts: what may be adapted; the rest is taken for equal.
        source: whose they are, in messages.

    Raises:
        WeightsError: as `check_adaptable`.
    """
    asked = _within(parts, found, asked)
    check_adaptable(found, asked, source=source)
    result, adapted = dict(tensors), list[Adapted]()

    def change(key: str, reason: str, make: Callable[[Tensor], Tensor | None]) -> None:
        if key not in tensors:
            return
        made = make(result.pop(key))
        if made is not None:
            result[key] = made
        shape = None if made is None else tuple(made.shape)
        adapted.append(Adapted(key, tuple(tensors[key].shape), shape, reason))

    reason = _changes(found, asked, "channels", "embedding", "patch")
    if reason and _is_kernel(tensors.get(KERNEL), found):
        change(KERNEL, reason, lambda weight: _kernel(weight, found, asked))
        if found.embedding == JOINT != asked.embedding:
            zeros = tensors[KERNEL].new_zeros((asked.channels or 1, len(tensors[KERNEL])))
            result[CONTRAST_TOKENS] = zeros
            adapted.append(Adapted(CONTRAST_TOKENS, None, tuple(zeros.shape), reason))
    if (found.channels or 1) != (asked.channels or 1) and found.stem == "convolutional":
        reason = _changes(found, asked, "channels")
        one, other = found.channels or 1, asked.channels or 1
        change(FIRST_MERGE, reason, lambda weight: _merge(weight, one, other))
    if found.positions == LEARNED != asked.positions:
        change(TABLE, _changes(found, asked, "positions"), lambda table: None)
    elif asked.positions == LEARNED and found.learned_grid != asked.learned_grid:
        old, new = found.learned_grid, asked.learned_grid
        if old is not None and new is not None and _is_table(tensors.get(TABLE), old):
            reason = _changes(found, asked, "learned_grid")
            change(TABLE, reason, lambda table: resized_table(table, old, new))
    return result, tuple(adapted)


def changed_channels(weight: Tensor, old: int, new: int) -> Tensor:
    """A linear map of `old` channels for `new` ones: repeated and divided, or summed.

    Args:
        weight: `d (c p)`, c slowest.
        old: c; 1 if `new` is not.
        new: as many channels as are wanted.
    """
    if old == new:
        return weight
    by_channel = weight.reshape(len(weight), old, -1)
    if new == 1:
        return by_channel.double().sum(dim=1).to(weight.dtype)
    return (by_channel / new).expand(-1, new, -1).flatten(1)


def _within(parts: Collection[str], found: EncoderConfig, asked: EncoderConfig) -> EncoderConfig:
    """What is asked in these parts, and in all else what was found."""
    fields = [field for part in parts for field in PARTS[part]]
    return replace(found, **{field: getattr(asked, field) for field in fields})


def _kernel(weight: Tensor, found: EncoderConfig, asked: EncoderConfig) -> Tensor:
    channels = asked.channels or 1
    if found.embedding == JOINT != asked.embedding:
        weight = weight.repeat(1, channels)  # not divided: a token is the mean over contrasts
    else:
        weight = changed_channels(weight, found.channels or 1, channels)
    return resized_kernel(weight, found.patch, asked.patch, channels)


def _merge(weight: Tensor, old: int, new: int) -> Tensor:
    """The first map of a convolutional stem, `d (i j k c)`: channels are fastest there."""
    boxes = weight.reshape(len(weight), -1, old).transpose(1, 2).flatten(1)
    made = changed_channels(boxes, old, new)
    return made.reshape(len(weight), new, -1).transpose(1, 2).flatten(1)


def _is_kernel(weight: Tensor | None, found: EncoderConfig) -> bool:
    """A stem's last map has the same name, and perhaps the same shape."""
    if found.stem != "patches":
        return False
    length = (found.channels or 1) * math.prod(found.patch)
    return weight is not None and weight.shape[1:] == torch.Size([length])


def _is_table(table: Tensor | None, grid: tuple[int, int, int]) -> bool:
    return table is not None and table.ndim == 3 and table.shape[:2] == (1, math.prod(grid))


def _changes(found: EncoderConfig, asked: EncoderConfig, *fields: str) -> str:
    """Old and new values of the settings that differ; empty where none does."""
    pairs = [(field, getattr(found, field), getattr(asked, field)) for field in fields]
    return "; ".join(
        f"`encoder.{field}` {_typed(was)} to {_typed(is_)}"
        for field, was, is_ in pairs
        if was != is_
    )


def _contrasts_of(config: EncoderConfig) -> str:
    if config.embedding == JOINT:
        return f"{config.channels or 1} joint channels"
    return f"the contrasts {', '.join(config.contrasts)}"


def _typed(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) if shape else "a number"
