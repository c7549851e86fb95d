"""Sequences of different lengths, one behind the other, without their padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from mim3d.foundation.errors import ShapeError, check_shape
from mim3d.tokens.positions import Rotation


class Run(NamedTuple):
    """Neighbouring segments of one length, which can be worked on as a batch."""

    start: int
    """First token."""
    samples: int
    """Number of segments."""
    length: int
    """Tokens of each."""

    @property
    def stop(self) -> int:
        """One past the last token."""
        return self.start + self.samples * self.length


@dataclass(frozen=True)
class Segments:
    """How a packed sequence `1 n d` divides into samples, which lie in it without a gap.

    Args:
        lengths: tokens of each sample, in order, all positive.
    """

    lengths: tuple[int, ...]

    @property
    def n(self) -> int:
        """Tokens of all samples."""
        return sum(self.lengths)

    @property
    def runs(self) -> Iterator[Run]:
        """Neighbours of one length together, in order."""
        return (run for run, _ in paired_runs(self, self))

    def offsets(self, device: torch.device) -> Tensor:
        """Where each sample begins, and behind the last where it ends, `s + 1`, int64."""
        ends = torch.tensor((0, *self.lengths)).cumsum(0)
        return ends.to(device, non_blocking=True)

    def spread(self, values: Tensor) -> Tensor:
        """A value a sample for each of its tokens: `s ... -> n ...`."""
        lengths = torch.tensor(self.lengths).to(values.device, non_blocking=True)
        # The size is told: asking the device for it would wait.
        return values.repeat_interleave(lengths, dim=0, output_size=self.n)


def paired_runs(first: Segments, second: Segments) -> Iterator[tuple[Run, Run]]:
    """Neighbours that have one length together in both of two sequences of the same samples."""
    starts = [0, 0]
    for lengths, alike in groupby(zip(first.lengths, second.lengths, strict=True)):
        samples = len(tuple(alike))
        one, other = (Run(s, samples, n) for s, n in zip(starts, lengths, strict=True))
        yield one, other
        starts = [one.stop, other.stop]


@dataclass(frozen=True)
class _Group:
    """Samples that were padded to one length.

    Args:
        batch: b.
        length: n, padding included.
        places: where tokens that are not padding lie in `(b n)`; None where all are.
        lengths: tokens of each sample that are not padding.
    """

    batch: int
    length: int
    places: Tensor | None
    lengths: tuple[int, ...]


class Packing:
    """The way from groups of padded sequences to one packed sequence, and back.

    Padding never enters the packed sequence and is 0 on the way back. A sample without any token
    that is not padding has no segment.

    Args:
        sizes: batch and length of every group, `(b, n)`.
        valid: `b n` bool for every group, False at padding; None is all valid.

    Raises:
        ShapeError: `valid` does not fit the sizes.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], valid: Sequence[Tensor | None]) -> None:
        if len(sizes) != len(valid):
            raise ShapeError(f"Packing has {len(sizes)} sizes beside {len(valid)} of `valid`")
        self._groups = [_group(*size, real) for size, real in zip(sizes, valid, strict=True)]
        lengths = (length for group in self._groups for length in group.lengths)
        self.segments = Segments(tuple(length for length in lengths if length))

    def pack(self, groups: Sequence[Tensor]) -> Tensor:
        """One packed sequence `1 n d` of what the groups hold, each `b n d`, or `1 n d` shared.

        Raises:
            ShapeError: another number of groups, or one of another length.
        """
        parts = []
        for group, tokens in zip(self._groups, groups, strict=True):
            check_shape(tokens, "b n d", "Packing.pack")
            if tokens.shape[0] not in (1, group.batch) or tokens.shape[1] != group.length:
                raise ShapeError(
                    f"Packing.pack expects {group.batch} x {group.length} tokens, "
                    f"got {tokens.shape[0]} x {tokens.shape[1]}"
                )
            flat = tokens.expand(group.batch, -1, -1).flatten(0, 1)
            parts.append(flat if group.places is None else flat.index_select(0, group.places))
        return torch.cat(parts)[None]

    def pack_rotations(self, groups: Sequence[Rotation | None]) -> Rotation | None:
        """Rotary positions of the packed sequence; None where the groups have none."""
        known = [rotation for rotation in groups if rotation is not None]
        if not known:
            return None
        cosines, sines = zip(*known, strict=True)
        return Rotation(self.pack(cosines), self.pack(sines))

    def unpack(self, packed: Tensor) -> list[Tensor]:
        """The groups again, each `b n d`, 0 at padding.

        Raises:
            ShapeError: the packed sequence has another length.
        """
        if packed.shape[:2] != (1, self.segments.n):
            raise ShapeError(
                f"Packing.unpack expects 1 x {self.segments.n} tokens, "
                f"got {packed.shape[0]} x {packed.shape[1]}"
            )
        found = []
        parts = torch.split(packed[0], [sum(group.lengths) for group in self._groups])
        for group, part in zip(self._groups, parts, strict=True):
            flat = part
            if group.places is not None:
                blank = part.new_zeros((group.batch * group.length, part.shape[-1]))
                flat = blank.index_copy(0, group.places, part)
            found.append(flat.reshape(group.batch, group.length, part.shape[-1]))
        return found


def _group(batch: int, length: int, valid: Tensor | None) -> _Group:
    if valid is None:
        return _Group(batch, length, None, (length,) * batch)
    if valid.shape != (batch, length):
        raise ShapeError(f"`valid` is {tuple(valid.shape)} beside tokens {(batch, length)}")
    lengths = tuple(valid.sum(dim=1).tolist())
    if all(one == length for one in lengths):
        return _Group(batch, length, None, lengths)
    return _Group(batch, length, valid.flatten().nonzero()[:, 0], lengths)
