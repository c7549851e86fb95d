"""Attention inside the segments of a packed sequence: no token sees another sample's.

Tokens look at their own segment, or at the segment of the same number in another packed sequence.
Three ways that agree. Segments of one length that lie side by side are an ordinary batch, so
wherever there are few lengths each *run* of them goes through the implementation that is fastest
for it. Many lengths would mean many small calls, which keep a GPU waiting: there a *nested* tensor
makes one of them. While a graph is compiled a *masked* square stands for all of it, since lengths
that are written into the graph would have it compiled again for every batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mim3d.tokens.packing import Segments, paired_runs

Way = Literal["runs", "nested", "masked"]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values, each `b h n e`, to `b h n e`."""

RUNS_MOST = 8
"""Different lengths in a row up to which runs are taken on a GPU. Not measured: a step has as many
as it has crop sizes, unless crops reach beyond their volumes."""


NESTED_WIDTH = 8
"""The width of a head must be a multiple of it for torch's kernels for nested tensors."""


def choose_way(
    device: torch.device, head_width: int, segments: Segments, seen: Segments | None = None
) -> Way:
    """How the segments of a packed sequence are attended.

    Args:
        device: where queries lie.
        head_width: channels of a head.
        segments: the packed sequence.
        seen: the one that is looked at; none is the same.
    """
    if torch.compiler.is_compiling():
        return "masked"
    runs = len(list(paired_runs(segments, segments if seen is None else seen)))
    many = device.type == "cuda" and runs > RUNS_MOST
    return "nested" if many and head_width % NESTED_WIDTH == 0 else "runs"


def attend_segments(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    segments: Segments,
    *,
    attend: Attend,
    seen: Segments | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of every token to those of its own segment, `1 h n e`.

    Args:
        queries: `1 h n e`.
        keys: `1 h k e`.
        values: `1 h k e`.
        segments: how the n tokens divide.
        seen: how the k tokens divide, into as many samples; none is as the n.
        attend: dense attention with its dropout, for runs.
        dropout: of attention weights, for the other ways.
    """
    seen = segments if seen is None else seen
    if not segments.lengths:
        return queries
    match choose_way(queries.device, queries.shape[-1], segments, seen):
        case "runs":
            return in_runs(queries, keys, values, segments, seen, attend)
        case "nested":
            return in_nested(queries, keys, values, segments, seen, dropout)
        case "masked":
            return under_mask(queries, keys, values, segments, seen, dropout)


def in_runs(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    segments: Segments,
    seen: Segments,
    attend: Attend,
) -> Tensor:
    """One dense call for each run of samples of one length; arguments as `attend_segments`'s."""
    h, n, e = queries.shape[1:]
    parts = []
    for own, other in paired_runs(segments, seen):
        # 1 h (s m) e -> s h m e, without a copy
        batched = (
            part[0, :, run.start : run.stop].reshape(h, run.samples, run.length, e).transpose(0, 1)
            for part, run in ((queries, own), (keys, other), (values, other))
        )
        parts.append(attend(*batched).transpose(1, 2).reshape(-1, h, e))
    return torch.cat(parts).reshape(1, n, h, e).transpose(1, 2)


def in_nested(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    segments: Segments,
    seen: Segments,
    dropout: float = 0.0,
) -> Tensor:
    """One call over a nested tensor of segments; arguments as `attend_segments`'s."""

    def nested(part: Tensor, segments: Segments) -> Tensor:
        # 1 h n e -> n h e -> s m h e -> s h m e; torch wants the first contiguous
        jagged = torch.nested.nested_tensor_from_jagged(
            part[0].transpose(0, 1).contiguous(),
            segments.offsets(part.device),
            min_seqlen=min(segments.lengths),
            max_seqlen=max(segments.lengths),
        )
        return jagged.transpose(1, 2)

    attended = F.scaled_dot_product_attention(
        nested(queries, segments), nested(keys, seen), nested(values, seen), dropout_p=dropout
    )
    joined: Tensor = attended.transpose(1, 2).values()
    return joined.transpose(0, 1)[None]


def under_mask(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    segments: Segments,
    seen: Segments,
    dropout: float = 0.0,
) -> Tensor:
    """One dense call over all tokens, blocked outside of segments; work grows with n times k."""
    numbers = torch.arange(len(segments.lengths), device=queries.device)
    mask = segments.spread(numbers)[:, None] == seen.spread(numbers)
    return F.scaled_dot_product_attention(queries, keys, values, mask, dropout)
