"""Where a step makes the host wait for the device: found without a device.

On the meta device tensors have shapes and no numbers, so whatever reads one would wait on a GPU.
The reader gets a made-up number and the step goes on, so that one pass finds all places.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

READS = frozenset({aten._local_scalar_dense, aten.is_nonzero, aten.equal})
"""What brings one number to the host."""
OF_UNKNOWN_SIZE = frozenset({aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim})
"""Operations whose result's size the host must know."""
BY_INDEX = frozenset({aten.index, aten.index_put, aten.index_put_})
FROM_HOST = (torch.tensor, torch.as_tensor)
"""What copies numbers of Python to the device, and waits until they are there."""


def host_syncs(call: Callable[[], Any]) -> list[str]:
    """Every place at which a call would wait for a GPU, as `file:line: what`, in order.

    A copy from the host that does not say `non_blocking` waits as well, until everything that was
    launched before it is done.

    Args:
        call: works on meta tensors; what lies on the host is on the CPU.
    """
    places: list[str] = []
    with mock.patch.object(torch, "autocast", _autocast), _Functions(places), _Operations(places):
        call()
    return places


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what torch computes, in the backward pass too."""

    def __init__(self, places: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places = places

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket
        if name in READS and _is_far(args[0]):
            self.places.append(_place(f"`{func.__name__}` reads a number"))
            return args[0].new_ones((), device="cpu").item()
        if name in OF_UNKNOWN_SIZE and _is_far(args[0]):
            self.places.append(_place(f"`{func.__name__}` has a result of unknown size"))
        if name in BY_INDEX and any(_is_mask(index) for index in args[1]):
            self.places.append(_place("an index of truth values has a result of unknown size"))
        result = func(*args, **kwargs)
        if name is aten._to_copy and not kwargs.get("non_blocking"):
            self._look(args[0], result)
        if name is aten.copy_ and not (kwargs.get("non_blocking") or True in args[2:3]):
            self._look(args[1], args[0])
        return result

    def _look(self, source: Any, target: Any) -> None:
        if _is_far(source) != _is_far(target):
            ends = "the device to the host" if _is_far(source) else "the host to the device"
            self.places.append(_place(f"a copy from {ends} that waits"))


class _Functions(TorchFunctionMode):
    """Sees what Python asks of torch, which operations alone do not show."""

    def __init__(self, places: list[str]) -> None:
        super().__init__()
        self.places = places

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.tolist and _is_far(args[0]):
            self.places.append(_place("`tolist` reads all numbers"))
            return torch.ones(args[0].shape, dtype=args[0].dtype).tolist()
        result = func(*args, **kwargs)
        is_new = func in FROM_HOST and args and not isinstance(args[0], Tensor)
        if is_new and _is_far(result):
            self.places.append(_place(f"`torch.{func.__name__}` copies numbers from the host"))
        return result


def _autocast(device_type: str, *arguments: Any, **keywords: Any) -> torch.amp.autocast:
    """Torch has no autocast for the meta device."""
    kind = "cpu" if device_type == "meta" else device_type
    return torch.amp.autocast(kind, *arguments, **keywords)


def _is_far(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type != "cpu"


def _is_mask(index: Any) -> bool:
    return _is_far(index) and index.dtype in (torch.bool, torch.uint8)


def _place(what: str) -> str:
    """The line of mim3d's own code that is being run."""
    package = Path(__file__).resolve().parents[2]
    frames = traceback.extract_stack()
    ours = [
        frame
        for frame in frames
        if Path(frame.filename).is_relative_to(package) and frame.filename != __file__
    ]
    if not ours:
        return what
    last = ours[-1]
    return f"{Path(last.filename).relative_to(package.parent)}:{last.lineno}: {what}"
