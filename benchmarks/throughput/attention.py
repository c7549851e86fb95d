"""Which attention is fastest on this machine, by length and precision.

    OMP_NUM_THREADS=1 THP_MEM_ALLOC_ENABLE=1 python benchmarks/throughput/attention.py
    python benchmarks/throughput/attention.py --device cuda --lengths 216 1728 5184

Forward and backward of the three implementations of `mim3d.models.attention`, compared with each
other first. What it prints at the end are the constants that `choose_attention` should have here.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from script import RESULTS, parser_of, word_for
from torch import Tensor

from mim3d.foundation.atomic import write_json
from mim3d.foundation.versions import versions
from mim3d.models.attention import attention_weights, per_head
from mim3d.workflows.throughput.machine import machine
from mim3d.workflows.throughput.race import Contestant, Job, race, require
from mim3d.workflows.throughput.table import digits

LENGTHS = (54, 108, 216, 433, 648, 1000, 1297, 1729)
"""Of a quarter and of all tokens of 96³ at patch 16 and 8, with a class token; and between them."""
TOKENS = 1729
"""About so many in a batch, whatever the length."""
HEADS, WIDTH = 6, 64
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
FARTHEST = {"bf16": 2e-2, "fp32": 1e-5}
"""Norm of a difference from float64 over the norm of the result."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Two products and a softmax over all heads at once."""
    return attention_weights(queries, keys) @ values


WAYS: dict[str, Attend] = {
    "plain": plain, "per_head": per_head, "sdpa": F.scaled_dot_product_attention,
}  # fmt: skip


def jobs(device: torch.device, lengths: Sequence[int] = LENGTHS) -> Iterator[Job]:
    """One job a length and precision, all ways compared with float64."""
    for word, dtype in PRECISIONS.items():
        for length in lengths:
            given = inputs(length, device)
            equality = compared(given, word, dtype)
            cast = [tensor.to(dtype).requires_grad_() for tensor in given]
            contestants = [
                Contestant(name, partial(update, way, cast), equality[name])
                for name, way in WAYS.items()
            ]
            yield Job(word, str(length), contestants)


def inputs(length: int, device: torch.device) -> list[Tensor]:
    """Queries, keys, values and a gradient, each `b h n e` float32."""
    source = torch.Generator(device).manual_seed(length)
    size = (max(1, TOKENS // length), HEADS, length, WIDTH)
    return [torch.randn(size, generator=source, device=device) for _ in range(4)]


def update(way: Attend, given: Sequence[Tensor], _: int = 0) -> list[Tensor]:
    """The result and the gradients of queries, keys and values."""
    *inner, gradient = given
    for tensor in inner:
        tensor.grad = None
    result = way(*inner)
    result.backward(gradient.detach())
    return [result.detach(), *(tensor.grad for tensor in inner if tensor.grad is not None)]


def compared(given: Sequence[Tensor], word: str, dtype: torch.dtype) -> dict[str, str]:
    """How far each way lies from plain attention in float64."""
    exact = update(plain, [tensor.double().requires_grad_() for tensor in given])
    found = {}
    for name, way in WAYS.items():
        values = update(way, [tensor.to(dtype).requires_grad_() for tensor in given])
        apart = max(float((one.double() - true).norm() / true.norm())
                    for one, true in zip(values, exact, strict=True))  # fmt: skip
        require(apart < FARTHEST[word], f"{name} attention in {word}, off by {apart:.1e}")
        found[name] = f"within {apart:.0e} of float64"
    return found


def plain_below(times: Mapping[int, Mapping[str, float]]) -> tuple[int | None, str]:
    """The length from which another way is fastest and stays it, and which; None for never.

    Args:
        times: length to way to milliseconds.
    """
    other, since = "plain", None
    for length in sorted(times, reverse=True):
        fastest = min(times[length], key=times[length].__getitem__)
        if fastest == "plain":
            break
        other = fastest if since is None else other  # which one counts where it matters most
        since = length
    return since, other


def main() -> None:
    """Reads the command line, races, and prints what follows."""
    parser = parser_of(__doc__)
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    path: Path = options.out or RESULTS / f"attention_{word_for(device)}.json"
    times: dict[str, dict[int, dict[str, float]]] = {word: {} for word in PRECISIONS}
    content: dict[str, Any] = {"machine": machine(device), "versions": versions(), "times": times}
    print(
        "| precision | tokens | " + " | ".join(WAYS) + " | fastest |\n|---|---:|---:|---:|---:|---|"
    )
    for job in jobs(device, options.lengths):
        rows = race(job, options.repeats, device)
        medians = {row.contestant: statistics.median(row.ms) for row in rows}
        times[job.stage][int(job.what)] = medians
        cells = (digits(medians[name]) for name in WAYS)
        fastest = min(medians, key=medians.__getitem__)
        print(f"| {job.stage} | {job.what} | {' | '.join(cells)} | {fastest} |", flush=True)
        write_json(path, content)
    for word, found in times.items():
        since, other = plain_below(found)
        content[f"{word}_plain_below"] = since
        said = "plain at every length measured" if since is None else f"`{other}` from {since}"
        print(f"{word.upper()}_{device.type.upper()}_PLAIN_BELOW: {said}")
    write_json(path, content)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
