"""Which tensors of another program's checkpoint are meant, and which are left out.

A checkpoint is a table of tables, lists and numbers, as `torch.load` gives it. One table of it is
taken: tensors that stand under names all the way, each plain, dense and with its own numbers. Where
further tensors stand is told, so that none is left out without a word.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEFT = "left_out"
"""Key of a result's header for the places whose tensors were not taken."""
MOST_TENSORS = 200_000
MOST_PLACES = 1000
DEEPEST = 12


class Refusal(Exception):
    """Why a checkpoint is not taken, in half a sentence."""


@dataclass(frozen=True)
class Found:
    """What was taken out of a checkpoint.

    Args:
        tensors: of the table that was meant, by dotted key.
        left: places that hold further tensors, and how many: in lists, under what is no name, in
            other tables.
    """

    tensors: dict[str, Any]
    left: dict[str, int]


def plain_tensors(content: Any, section: str) -> Found:
    """The tensors of one table of a checkpoint by key, each plain, dense and with its own numbers.

    Args:
        content: what `torch.load` gave.
        section: the table's keys with dots between them; empty: the only one, or the whole.

    Raises:
        Refusal: there is no such table, several, or a tensor that is not plain.
    """
    import torch

    names = _names_of_section(content, section)
    left = _others(content, names)
    found: dict[str, Any] = {}
    _walk(functools.reduce(operator.getitem, names, content), "", 0, found, left)
    if not found:
        raise Refusal("it holds no tensors under names")
    plain = {}
    for key, tensor in found.items():
        data = tensor.detach() if type(tensor) in (torch.Tensor, torch.nn.Parameter) else None
        if data is None or data.layout != torch.strided or data.device.type != "cpu":
            raise Refusal(f"`{key[:60]}` is no plain tensor")
        if data.is_quantized or data.is_complex() or data.dtype not in _types():
            raise Refusal(f"`{key[:60]}` has the type {data.dtype}")
        if data.numel() * data.element_size() > data.untyped_storage().nbytes():
            raise Refusal(f"`{key[:60]}` claims more numbers than it has")
        plain[key] = data.clone().contiguous()
    return Found(plain, left)


def _types() -> set[Any]:
    import torch

    return {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
            torch.int16, torch.int8, torch.uint8, torch.bool}  # fmt: skip


def _names_of_section(content: Any, section: str) -> list[str]:
    """The keys that lead to the table that is meant."""
    if not isinstance(content, Mapping):
        raise Refusal("it is no table of tensors")
    if section:
        names = section.split(".")
        for name in names:
            if not isinstance(content, Mapping) or name not in content:
                raise Refusal(f"it has no table `{section[:60]}`; {_tables(content)}")
            content = content[name]
        return names
    if _holds_tensors(content):
        return []
    known = [name for name in ("state_dict", "model_state_dict", "model", "network_weights")
             if isinstance(content.get(name), Mapping)]  # fmt: skip
    tables = known or [k for k, v in content.items() if isinstance(v, Mapping)]
    if len(tables) != 1:
        raise Refusal(f"it does not say which of its tables is meant; {_tables(content)}")
    return tables


def _holds_tensors(content: Mapping[Any, Any]) -> bool:
    import torch

    return any(isinstance(value, torch.Tensor) for value in content.values())


def _tables(content: Any) -> str:
    names = [str(k)[:40] for k, v in content.items() if isinstance(v, Mapping)] if isinstance(
        content, Mapping) else []  # fmt: skip
    return f"there are {', '.join(f'`{name}`' for name in names[:8])}" if names else "there is none"


def _walk(content: Any, head: str, depth: int, found: dict[str, Any], left: dict[str, int]) -> None:
    """Sorts the tensors below a table: under names all the way, by dotted key, or left out."""
    import torch

    if not isinstance(content, Mapping):
        raise Refusal("what was named is no table of tensors")
    if depth > DEEPEST:
        raise Refusal("its tables are nested too deep")
    for key, value in content.items():
        place = f"{head}{_word(key)}"
        if isinstance(key, str) and isinstance(value, torch.Tensor):
            if place in found:
                raise Refusal(f"two of its tensors are called `{place[:60]}`")
            found[place] = value
            if len(found) > MOST_TENSORS:
                raise Refusal(f"it holds more than {MOST_TENSORS:,} tensors")
        elif isinstance(key, str) and isinstance(value, Mapping):
            _walk(value, f"{place}.", depth + 1, found, left)
        else:
            _leave(place, value, left)


def _others(content: Any, names: Sequence[str]) -> dict[str, int]:
    """Places beside the table that was taken, and how many tensors each holds."""
    left: dict[str, int] = {}
    for depth, name in enumerate(names):
        head = "".join(f"{outer}." for outer in names[:depth])
        for key, value in content.items():
            if not (isinstance(key, str) and key == name):
                _leave(f"{head}{_word(key)}", value, left)
        content = content[name]
    return left


def _leave(place: str, value: Any, left: dict[str, int]) -> None:
    count = _count(value)
    if count:
        place = place if place in left or len(left) < MOST_PLACES else "elsewhere"
        left[place] = left.get(place, 0) + count


def _count(value: Any) -> int:
    """The tensors in a value; what stands in several places counts once."""
    import torch

    waiting, seen, count = [value], set[int](), 0
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            count += 1
        elif isinstance(one, Mapping):
            waiting.extend(one.values())
        elif isinstance(one, list | tuple | set | frozenset):
            waiting.extend(one)
    return count


def _word(key: Any) -> str:
    """A key of a table for people."""
    if isinstance(key, str):
        return key
    return f"[{key}]" if isinstance(key, int | float) else f"[a {type(key).__name__}]"
