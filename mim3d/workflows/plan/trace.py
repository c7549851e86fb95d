"""One training step without numbers: its work op by op, and the memory it holds at most.

The real task takes a real step on fake tensors, which have shapes and no content. So what is
counted is what the code does: no formula has to know of a decoder, a precision or a recomputation.
FLOP of an op are torch's own (`torch.utils.flop_counter`).
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from mim3d.config.data import Triple
from mim3d.data.batch import CropBatch
from mim3d.foundation.randomness import RandomStream
from mim3d.models import attention
from mim3d.objectives.base import Moment, Task

Kind = Literal["product", "attention", "convolution", "other"]


@dataclass(frozen=True)
class Op:
    """One kernel.

    Args:
        kind: by which rate its FLOP are done.
        flop: two for a multiply-add; 0 where torch counts none.
        bytes: read and written, each operand once.
        is_forward: whether it belongs to the forward pass.
    """

    kind: Kind
    flop: int
    bytes: int
    is_forward: bool


@dataclass(frozen=True)
class Trace:
    """What one micro-batch costs.

    Args:
        crops: of the micro-batch.
        ops: every kernel of forward and backward pass, in order.
        peak_bytes: most that is held at a time beside the weights: activations, gradients, casts,
            and the crops themselves.
        saved_bytes: held between forward and backward pass, crops included.
        kinds: micro-batches whose ops these are, one of each kind; what is told of them is of one
            on average.
    """

    crops: int
    ops: list[Op] = field(repr=False)
    peak_bytes: int
    saved_bytes: int
    kinds: int = 1

    @property
    def flop(self) -> float:
        """Of all ops of forward and backward pass."""
        return sum(op.flop for op in self.ops) / self.kinds

    @property
    def forward_flop(self) -> float:
        """Of one forward pass, without what is computed again in the backward pass."""
        return sum(op.flop for op in self.ops if op.is_forward) / self.kinds

    @property
    def model_flop(self) -> float:
        """Of a step: three times the forward pass (Chowdhery et al., arXiv:2204.02311)."""
        return 3 * self.forward_flop


def averaged(traces: Sequence[Trace]) -> Trace:
    """Micro-batches of several kinds that come equally often: the mean work, the most memory."""
    if len(traces) == 1:
        return traces[0]
    return Trace(
        traces[0].crops,
        [op for one in traces for op in one.ops],
        max(one.peak_bytes for one in traces),
        max(one.saved_bytes for one in traces),
        kinds=len(traces),
    )


def trace_step(
    build: Callable[[], Task],
    *,
    crops: int,
    channels: int,
    crop_size: Triple,
    precision: Literal["fp32", "bf16"],
    on_gpu: bool,
) -> Trace:
    """Takes a step on fake tensors.

    Args:
        build: makes the task; called where tensors have no content.
        crops: of the micro-batch, each with as many views as the task needs.
        channels: of a crop.
        crop_size: voxels of a crop.
        precision: of autocast.
        on_gpu: attention as a GPU does it. All else is traced as on a CPU, whose autocast differs
            from a GPU's in nothing that the networks use much.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    task = without_content(build).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        task.to_empty(device="cpu")
        batch = _batch(task, crops, channels, crop_size)
        ledger = _Ledger([*task.parameters(), *task.buffers()], [batch.voxels, batch.labels])
        # On a CPU oneDNN convolves copies of the operands in a layout of its own.
        ledger.copies_for_convolution = not on_gpu
        with _attention_of(on_gpu=on_gpu), ledger:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = task(batch, _Moment(0, 1, RandomStream(0, 0))).loss
            ledger.is_forward, saved = False, ledger.held
            loss.backward()
    return Trace(crops, ledger.ops, ledger.peak, saved)


def without_content(build: Callable[[], Task]) -> Task:
    """A task on the meta device: shapes, and no memory."""
    with torch.device("meta"):
        return build()


class _Moment(Moment):
    """Keys without content: a crop's number cannot be read here."""

    def keys(self, batch: CropBatch, purpose: str) -> Tensor:
        return torch.empty(len(batch.voxels), dtype=torch.int64)


def _batch(task: Task, crops: int, channels: int, size: Triple) -> CropBatch:
    rows = crops * task.needs.views
    labels = torch.empty((rows, *size), dtype=torch.uint8) if task.needs.labels else None
    return CropBatch(
        voxels=torch.empty((rows, channels, *size)),
        affine=torch.empty((rows, 4, 4), dtype=torch.float64),
        case_ids=("",) * rows,
        crop_ids=torch.empty(rows, dtype=torch.int64),
        labels=labels,
        targets=torch.empty((rows, len(task.needs.targets))) if task.needs.targets else None,
    )


_ONE_RULE = threading.Lock()


@contextlib.contextmanager
def _attention_of(*, on_gpu: bool) -> Iterator[None]:
    # Tensors say `cpu` here whatever is planned for, and the rule goes by that. It is asked deep in
    # the network, where nothing can be handed through: for a moment another one stands in its
    # place, which answers all other threads as before. The lock keeps two plans from putting back
    # each other's.
    if not on_gpu:
        yield
        return
    with _ONE_RULE:
        before, here = attention.choose_attention, threading.get_ident()

        def choose(
            device: torch.device, dtype: torch.dtype, tokens: int
        ) -> attention.Implementation:
            is_traced = threading.get_ident() == here
            return attention.ACCELERATOR if is_traced else before(device, dtype, tokens)

        attention.choose_attention = choose
        try:
            yield
        finally:
            attention.choose_attention = before


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every op, and which storages live."""

    def __init__(self, free: list[Tensor], given: list[Tensor | None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[Op] = []
        self.is_forward = True
        self.copies_for_convolution = False
        self.held = self.peak = 0
        # Storages by identity; those of weights are known and cost nothing here.
        self._known: dict[int, Any] = {}
        for tensor in free:
            self._know(tensor, 0)
        for each in given:
            if each is not None:
                self._know(each, each.untyped_storage().nbytes())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            return True  # what code asks of all voxels is so: crops are whole and labelled
        result = func(*args, **kwargs)
        outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        for tensor in outputs:
            self._know(tensor, tensor.untyped_storage().nbytes())
        if self._works(func, inputs, outputs):
            flop = _flop(func, args, kwargs, result)
            moved = sum(map(_touched, (*inputs, *outputs)))
            self.ops.append(Op(_kind(func, flop), flop, moved, self.is_forward))
            if self.copies_for_convolution and self.ops[-1].kind == "convolution":
                self.peak = max(self.peak, self.held + moved)
        return result

    @staticmethod
    def _works(func: Any, inputs: list[Tensor], outputs: list[Tensor]) -> bool:
        """Whether anything is computed: not in views, and not where memory is only taken."""
        name = func._schema.name
        if not outputs or "empty" in name:
            return False
        if func._schema.is_mutable:
            return True
        given = {x.untyped_storage()._cdata for x in inputs}
        return any(x.untyped_storage()._cdata not in given for x in outputs)

    def _know(self, tensor: Tensor, count: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self.held += count
        self.peak = max(self.peak, self.held)

        def gone(_: Any) -> None:
            self.held -= count
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)


def _flop(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    # torch 2.13 counts nothing for the fused kernel of a CPU.
    name = func._schema.name.removeprefix("aten::")
    if name == "_scaled_dot_product_flash_attention_for_cpu":
        return int(sdpa_flop_count(*(x.shape for x in args[:3])))  # type: ignore[no-untyped-call]
    if name == "_scaled_dot_product_flash_attention_for_cpu_backward":
        shapes = (x.shape for x in args[:4])
        return int(sdpa_backward_flop_count(*shapes))  # type: ignore[no-untyped-call]
    formula = flop_registry.get(func._overloadpacket)
    return int(formula(*args, **kwargs, out_val=result)) if formula else 0


def _touched(tensor: Tensor) -> int:
    """Bytes of memory behind a tensor; an expanded one has fewer than its shape says."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _kind(func: Any, flop: int) -> Kind:
    name = func._schema.name
    if "attention" in name:
        return "attention"
    if "convolution" in name:
        return "convolution"
    return "product" if flop else "other"
