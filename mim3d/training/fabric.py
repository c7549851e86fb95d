"""Processes, device and precision. The only module that imports Lightning Fabric.

One command serves a single process, `torchrun` and `srun`: what it was started by stands in the
environment. Fabric takes seconds to import, hence inside the functions that need it.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from mim3d.config.training import TrainingConfig
from mim3d.foundation.errors import ConfigError, ProcessLost, ResourceError
from mim3d.objectives.base import Task
from mim3d.training import waiting
from mim3d.training.signals import Abandoned
from mim3d.training.stepper import ShardedStepper, Stepper

Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """How many processes work together, and which one this is.

    Args:
        rank: number of this process among all.
        world: number of all processes.
        local_world: number of processes on this machine.
        launcher: what started them.
    """

    rank: int = 0
    world: int = 1
    local_world: int = 1
    launcher: Literal["none", "torchrun", "slurm"] = "none"


def processes(environment: Mapping[str, str] | None = None) -> Processes:
    """What the environment says of the other processes; imports nothing.

    A batch script that runs the command without `srun` is one process, however many tasks the job
    has: only `srun` sets a step number beside the number of tasks.

    Args:
        environment: variables to look at; none takes the process's own.
    """
    env = os.environ if environment is None else environment
    if "TORCHELASTIC_RUN_ID" in env and "WORLD_SIZE" in env:
        world = int(env["WORLD_SIZE"])
        return Processes(int(env["RANK"]), world, int(env["LOCAL_WORLD_SIZE"]), "torchrun")
    tasks = int(env.get("SLURM_NTASKS", "1"))
    if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env and tasks > 1:
        nodes = int(env.get("SLURM_NNODES", "1"))
        return Processes(int(env["SLURM_PROCID"]), tasks, tasks // nodes, "slurm")
    return Processes()


def choose_device(device: str) -> torch.device:
    """The device a word of the config stands for.

    Raises:
        ConfigError: the word is no device, or the machine has none of that kind.
    """
    has_cuda = torch.cuda.is_available()
    if device == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f"`{device}` is not a device; expected `auto`, `cpu`, `cuda` or `cuda:1`",
            where="`training.device`",
        ) from error
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"`{device}` is not supported, only `cpu` and `cuda` are")
    if chosen.type == "cuda" and (not has_cuda or (chosen.index or 0) >= torch.cuda.device_count()):
        count = torch.cuda.device_count() if has_cuda else 0
        raise ConfigError(
            f"`{device}` is asked for, but torch sees {count} CUDA devices here",
            remedy="use `--device auto`",
        )
    return chosen


def choose_precision(
    precision: Literal["auto", "fp32", "bf16"], device: torch.device
) -> Literal["fp32", "bf16"]:
    """`bf16` where the device multiplies bf16 in hardware and nothing else is asked for."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = _cpu_multiplies_bf16()
    return "bf16" if native else "fp32"


def _cpu_multiplies_bf16() -> bool:
    # Linux lists the instruction sets; elsewhere bf16 on a CPU was never seen to be faster.
    listing = Path("/proc/cpuinfo")
    if not listing.is_file():
        return False
    flags = next((x for x in listing.read_text().splitlines() if x.startswith("flags")), "")
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags.split())


class Machine:
    """The device, the precision and the other processes of one training.

    Args:
        fabric: a launched `Fabric`.
        precision: what the forward pass computes in.
        launcher: what started the processes.
        shards: whether each process keeps a part of the weights only.
    """

    def __init__(self, fabric: Any, precision: str, launcher: str, *, shards: bool = False) -> None:
        self._fabric = fabric
        self._shards = shards
        self.precision = precision
        self.launcher = launcher
        self.device: torch.device = fabric.device
        self.rank: int = fabric.global_rank
        self.world: int = fabric.world_size
        self._patience = waiting.Patience(self.rank, self.world)

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The precision of the forward pass, for callers that go around `Stepper`."""
        return self._fabric.autocast()  # type: ignore[no-any-return]

    def stepper(self, task: Task) -> Stepper:
        """Moves the task to the device and ties the processes' gradients together.

        With FSDP the task's parameters are others afterwards, each a part.
        """
        if self._shards:
            return ShardedStepper(self._fabric, task)
        return Stepper(self._fabric, task, shares_gradients=self.world > 1)

    def largest(self, values: list[float]) -> list[float]:
        """Each value's maximum over all processes."""
        return self._reduced(values, "max")

    def summed(self, values: list[float]) -> list[float]:
        """Each value's sum over all processes."""
        return self._reduced(values, "sum")

    def _reduced(self, values: list[float], how: str) -> list[float]:
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        return self._fabric.all_reduce(tensor, reduce_op=how).tolist()  # type: ignore[no-any-return]

    def gathered(self, item: Result) -> list[Result]:
        """What each process holds, in their order. For rare events: it is slow."""
        if self.world == 1:
            return [item]
        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, item)
        return found

    def first(self, function: Callable[[], Result]) -> Result:
        """Calls `function` in the first process; all get its result, or raise its error.

        The others wait as long as the first one lives.
        """
        if self.world == 1:
            return function()
        outcome: tuple[Any, BaseException | None] = (None, None)
        with self._patience.while_first_works():
            if self.is_first:
                try:
                    outcome = (function(), None)
                except (Exception, Abandoned) as error:
                    outcome = (None, error)
        result, failure = self._fabric.broadcast(outcome)
        if failure is not None:
            raise failure
        return result  # type: ignore[no-any-return]

    def hurry(self, seconds: float) -> None:
        """From now on a process that keeps the others waiting so long is taken for dead."""
        if self.world > 1:
            self._patience.shorten(seconds)

    def lost(self, error: BaseException) -> ProcessLost | None:
        """What to say where an error means that another process is gone or hangs; else None."""
        return self._patience.lost(error)


def start(training: TrainingConfig) -> Machine:
    """Finds the other processes and takes a device: the start of every training.

    Raises:
        ConfigError: the device is not there, or srun was called with `--ntasks` alone.
        ResourceError: Fabric is not installed.
    """
    found = processes()
    device = choose_device(training.device)
    precision = choose_precision(training.precision, device)

    if found.launcher == "slurm" and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise ConfigError(
            f"srun started {found.world} tasks without saying how many share a node",
            remedy="use `--ntasks-per-node` instead of `--ntasks`, in the script or with srun",
            code="slurm-tasks",
        )
    room = _fabric_room()
    room_environments = importlib.import_module(f"{room.__name__}.plugins.environments")
    environment = {
        "none": room_environments.LightningEnvironment,
        "torchrun": room_environments.TorchElasticEnvironment,
        "slurm": room_environments.SLURMEnvironment,
    }[found.launcher]
    meeting = environment()
    strategy: Any = "auto"
    if found.world > 1:
        strategies = importlib.import_module(f"{room.__name__}.strategies")
        # Unused parameters are normal here: frozen encoders, skips a decoder does not take.
        # Tasks keep their own buffers; sending the first process's would undo the others'.
        strategy = strategies.DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
        _join(found, meeting, device)
    devices: Any = found.local_world
    if found.world == 1 and device.type == "cuda":
        devices = [device.index or 0]
    fabric = room.Fabric(
        accelerator=device.type,
        devices=devices,
        num_nodes=found.world // found.local_world,
        strategy=strategy,
        precision={"fp32": "32-true", "bf16": "bf16-mixed"}[precision],
        plugins=[meeting],
    )
    fabric.launch()
    shards = training.strategy == "fsdp" and found.world > 1
    return Machine(fabric, precision, found.launcher, shards=shards)


def _join(found: Processes, meeting: Any, device: torch.device) -> None:
    """Brings the processes together before Fabric would: with times and names of our own."""
    os.environ["MASTER_ADDR"] = meeting.main_address
    os.environ["MASTER_PORT"] = str(meeting.main_port)
    if device.type == "cuda":
        torch.cuda.set_device(meeting.local_rank())
    if not torch.distributed.is_initialized():
        waiting.join(found.rank, found.world, waiting.backend_of(device))
        atexit.register(_leave)
    if not faulthandler.is_enabled():
        # NCCL ends a process that waited in vain by SIGABRT: this shows where it waited.
        faulthandler.enable()


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _fabric_room() -> Any:
    for name in ("lightning_fabric", "lightning"):
        if importlib.util.find_spec(name) is not None:
            room = "lightning.fabric" if name == "lightning" else name
            found = importlib.import_module(room)
            # Set by its own import: it tells of every choice we made ourselves.
            logging.getLogger(room).setLevel(logging.WARNING)
            return found
    raise ResourceError(
        "Lightning Fabric is not installed, which training needs",
        remedy="`pip install lightning-fabric`",
        code="missing-package",
    )


@contextlib.contextmanager
def own_random_numbers(device: torch.device) -> Iterator[None]:
    """Leaves torch's global generators as they were, whatever is drawn inside."""
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """So many threads for torch's operations on the CPU inside; None changes nothing."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def float32_matmul(precision: Literal["highest", "high", "medium"]) -> Iterator[None]:
    """This exactness for matrix products in fp32 inside, and the caller's afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
