"""Attention in three implementations that agree, and the rule that chooses one.

Measured on a server CPU with torch 2.13: in bf16 the fused kernel is three times slower than two
matrix products below a thousand tokens; above, one matrix a head keeps the scores in the cache and
the backward pass free of them. In fp32 the fused kernel wins from 500 tokens. On a GPU it always
does.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mim3d.foundation.errors import ConfigError
from mim3d.models.packed_attention import attend_segments
from mim3d.tokens.packing import Segments
from mim3d.tokens.positions import Rotation, rotate

Implementation = Literal["plain", "per_head", "sdpa"]

BF16_CPU_PLAIN_BELOW = 1000
"""Tokens below which plain attention is fastest in bf16 on a CPU; per head from there on."""
FP32_CPU_PLAIN_BELOW = 500
"""Tokens below which plain attention is fastest in fp32 on a CPU; the fused kernel above."""
ACCELERATOR: Implementation = "sdpa"
"""Everywhere else."""


class Context(NamedTuple):
    """What tokens look at, where that is not themselves."""

    tokens: Tensor
    """`b k d`, normalised."""
    rotation: Rotation | None = None
    """Rotary positions of the k tokens."""
    segments: Segments | None = None
    """How the k tokens of a packed sequence divide: into as many samples as the tokens that look
    at them, in the same order."""


class Attended(NamedTuple):
    """What attention gives."""

    tokens: Tensor
    """`b n d`."""
    attention: Tensor | None
    """`b h n k`, rows sum to 1, detached; None unless asked for."""


def choose_attention(device: torch.device, dtype: torch.dtype, tokens: int) -> Implementation:
    """The implementation that is fastest for sequences of this length.

    Args:
        device: where queries lie.
        dtype: of queries, after autocast.
        tokens: length of the longer of the two sequences, prefix included.
    """
    # A program that is exported takes any number of tokens, on any device.
    if device.type != "cpu" or torch.compiler.is_exporting():
        return ACCELERATOR
    if dtype == torch.bfloat16:
        return "plain" if tokens < BF16_CPU_PLAIN_BELOW else "per_head"
    return "plain" if tokens < FP32_CPU_PLAIN_BELOW else "sdpa"


def padding_bias(valid: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores so that padding gets no weight, `b 1 1 n`.

    The lowest finite number, not minus infinity: a sample without any valid token then attends to
    all of its tokens alike instead of giving NaN.

    Args:
        valid: `b n`, bool.
        dtype: of the scores.
    """
    bias = torch.zeros(valid.shape, dtype=dtype, device=valid.device)
    return bias.masked_fill(~valid, torch.finfo(dtype).min)[:, None, None]


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) with optional rotary positions.

    Stores `qkv` (`(3 h e) d`, the three parts slowest) and `out` (`d d`).

    Args:
        width: channels of a token.
        heads: number of heads.
        qkv_bias: whether the query, key and value map has a bias.
        dropout: of attention weights, in training only.
    """

    def __init__(
        self, width: int, heads: int, *, qkv_bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"a width of {width} is no multiple of {heads} heads")
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        tokens: Tensor,
        *,
        rotation: Rotation | None = None,
        valid: Tensor | None = None,
        wants_map: bool = False,
        context: Context | None = None,
        segments: Segments | None = None,
    ) -> Attended:
        """Lets every token look at all valid ones, or at those of a context, or of its segment.

        Args:
            tokens: `b n d`.
            rotation: rotary positions of the n tokens.
            valid: `b k` bool, tokens that may be looked at; none is all.
            wants_map: whether the attention weights are returned.
            context: k tokens that are looked at; none is the tokens themselves.
            segments: how a packed sequence divides, b = 1; beside it there is neither `valid` nor
                map, and a context has segments of its own.
        """
        b, n, d = tokens.shape
        seen_rotation = rotation if context is None else context.rotation
        if context is None:
            queries, keys, values = self._parts(self.qkv(tokens), 3)
        else:
            to_query, to_rest, query_bias, rest_bias = self._maps()
            (queries,) = self._parts(F.linear(tokens, to_query, query_bias), 1)
            keys, values = self._parts(F.linear(context.tokens, to_rest, rest_bias), 2)
        if rotation is not None:
            queries = rotate(queries, rotation)
        if seen_rotation is not None:
            keys = rotate(keys, seen_rotation)
        bias = None if valid is None else padding_bias(valid, queries.dtype)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if segments is not None:
            attend = partial(self._attend, bias=None, dropout=dropout)
            seen = None if context is None else context.segments
            attended = attend_segments(
                queries, keys, values, segments, seen=seen, attend=attend, dropout=dropout
            )
        elif wants_map:
            weights = attention_weights(queries, keys, bias)
            attended = F.dropout(weights, dropout) @ values
        else:
            attended = self._attend(queries, keys, values, bias, dropout)
        joined = attended.transpose(1, 2).reshape(b, n, d)  # b h n e -> b n (h e)
        return Attended(self.out(joined), None if weights is None else weights.detach())

    def _parts(self, mapped: Tensor, count: int) -> tuple[Tensor, ...]:
        """`b n (count h e)` as `count` tensors `b h n e`."""
        b, n, width = mapped.shape
        split = mapped.reshape(b, n, count, self.heads, width // (count * self.heads))
        return split.permute(2, 0, 3, 1, 4).unbind(0)

    def _maps(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The map to queries and the one to keys and values, with their biases."""
        weight, bias, width = self.qkv.weight, self.qkv.bias, self.qkv.in_features
        if bias is None:
            return weight[:width], weight[width:], None, None
        return weight[:width], weight[width:], bias[:width], bias[width:]

    def _attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, dropout: float
    ) -> Tensor:
        longest = max(queries.shape[2], keys.shape[2])
        way = choose_attention(queries.device, queries.dtype, longest)
        if way == "per_head" and not dropout and not torch.compiler.is_compiling():
            return per_head(queries, keys, values, bias)
        if way == "sdpa":
            fused: Tensor = F.scaled_dot_product_attention(queries, keys, values, bias, dropout)
            return fused
        return F.dropout(attention_weights(queries, keys, bias), dropout) @ values


def attention_weights(queries: Tensor, keys: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax over keys of the scaled scores, `... n k`, in the queries' precision.

    Args:
        queries: `... n e`.
        keys: `... k e`.
        bias: broadcast to `... n k`.
    """
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    weights: Tensor = scores.softmax(dim=-1).to(queries.dtype)
    return weights


def per_head(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    """Plain attention, one matrix at a time, its weights computed again in the backward pass.

    Keeps queries, keys and values only: memory grows with n, not with its square.

    Args:
        queries: `b h n e`.
        keys: `b h k e`.
        values: `b h k e`.
        bias: `b 1 1 k` or None; gets no gradient.

    Returns:
        `b h n e`.
    """
    result: Tensor = _PerHead.apply(queries, keys, values, bias)  # type: ignore[no-untyped-call]
    return result


class _PerHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(queries, keys, values)
        ctx.bias = bias
        result = torch.empty_like(queries, memory_format=torch.contiguous_format)
        room = _Room(queries, keys)
        for i, j in _heads(queries):
            weights = room.weights(queries[i, j], keys[i, j], bias, i)
            torch.mm(weights, values[i, j], out=result[i, j])
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values = ctx.saved_tensors
        (gradient,) = gradients
        scale = queries.shape[-1] ** -0.5
        to_q, to_k, to_v = (
            torch.empty_like(part, memory_format=torch.contiguous_format)
            for part in (queries, keys, values)
        )
        room = _Room(queries, keys)
        for i, j in _heads(queries):
            q, k, v, g = queries[i, j], keys[i, j], values[i, j], gradient[i, j]
            weights = room.weights(q, k, ctx.bias, i)
            torch.mm(weights.T, g, out=to_v[i, j])
            # Softmax: dS = P (dP - rowsum(dP P)), in one pass over the scores' memory.
            scores = torch.mm(g, v.T, out=room.scores)
            torch.ops.aten._softmax_backward_data.out(
                scores, weights, -1, weights.dtype, grad_input=scores
            )
            torch.mm(scores, k, out=to_q[i, j])
            torch.mm(scores.T, q * scale, out=to_k[i, j])
        return to_q.mul_(scale), to_k, to_v, None


class _Room:
    """Memory for one head's scores and weights, used again for every head."""

    def __init__(self, queries: Tensor, keys: Tensor) -> None:
        shape = (queries.shape[2], keys.shape[2])
        self.scores = torch.empty(shape, dtype=queries.dtype, device=queries.device)
        self._weights = torch.empty_like(self.scores)

    def weights(self, queries: Tensor, keys: Tensor, bias: Tensor | None, sample: int) -> Tensor:
        """`attention_weights` of one head, `n k`."""
        torch.mm(queries * queries.shape[-1] ** -0.5, keys.T, out=self.scores)
        if bias is not None:
            self.scores += bias[sample, 0]
        return torch.softmax(self.scores, dim=-1, out=self._weights)


def _heads(queries: Tensor) -> list[tuple[int, int]]:
    batch, heads = queries.shape[:2]
    return [(i, j) for i in range(batch) for j in range(heads)]
