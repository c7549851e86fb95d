"""Memory of the machine: what is left for this process, and a limit on what it takes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path


def limit_memory(spare: int, *, for_good: bool = False) -> None:
    """Limits the address space to what is in use now and `spare` bytes (Linux).

    Args:
        spare: bytes beyond what is in use.
        for_good: whether the process may not raise the limit again.
    """
    if not sys.platform.startswith("linux"):
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + spare
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit if for_good else hard))


def available_bytes(
    root: Path = Path("/"), environment: Mapping[str, str] | None = None
) -> int | None:
    """Memory that this process can take without swapping, or None where the system does not say.

    It is an equal part of what the machine and the control groups of a container or a batch job
    leave, for all processes of one training on a machine keep volumes, each its own.

    Args:
        root: where `proc` and `sys` lie.
        environment: variables to look at; none takes the process's own.
    """
    left = [*_machine_bytes(root), *_group_bytes(root), *_limit_bytes()]
    return max(min(left), 0) // local_processes(environment) if left else None


def local_processes(environment: Mapping[str, str] | None = None) -> int:
    """Processes of this training on this machine, by what `torchrun` or `srun` says.

    Args:
        environment: variables to look at; none takes the process's own.
    """
    env = os.environ if environment is None else environment
    if "TORCHELASTIC_RUN_ID" in env and "WORLD_SIZE" in env:
        return int(env["LOCAL_WORLD_SIZE"])
    if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env:
        return -(-int(env.get("SLURM_NTASKS", "1")) // int(env.get("SLURM_NNODES", "1")))
    return 1


def _machine_bytes(root: Path) -> Iterator[int]:
    found = _numbers(root / "proc" / "meminfo").get("MemAvailable:")
    if found is not None:
        yield found * 1024


def _limit_bytes() -> Iterator[int]:
    """What the limits of this process (`ulimit -v`, `ulimit -d`) leave."""
    try:
        import resource

        sizes = [int(word) for word in Path("/proc/self/statm").read_text().split()]
    except (ImportError, OSError, ValueError):
        return
    page = resource.getpagesize()
    for kind, pages in ((resource.RLIMIT_AS, sizes[0]), (resource.RLIMIT_DATA, sizes[5])):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            yield soft - pages * page


def _group_bytes(root: Path) -> Iterator[int]:
    """What each control group with a limit leaves, from the process's own up to the highest."""
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        folder, limit, use, cache = root / "sys" / "fs" / "cgroup", "max", "current", ""
        if "memory" in controllers.split(","):  # the first version has a tree for each controller
            folder, limit, use, cache = (
                folder / "memory",
                "limit_in_bytes",
                "usage_in_bytes",
                "total_",
            )
        elif controllers:
            continue
        # Of a path that lies outside of a container, the container sees its own part or the root.
        parts = Path(path.lstrip("/")).parts
        for depth in range(len(parts), -1, -1):
            group = folder.joinpath(*parts[:depth])
            most, used = _number(group / f"memory.{limit}"), _number(group / f"memory.{use}")
            if most is None or used is None:
                continue
            files = _numbers(group / "memory.stat")
            # Pages of files that were read count as use, and go where memory is needed.
            yield (
                most - used + sum(files.get(f"{cache}{k}_file", 0) for k in ("inactive", "active"))
            )


def _number(path: Path) -> int | None:
    """The number that a file holds; None where there is no file, or it says `max`."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _numbers(path: Path) -> dict[str, int]:
    """Names and numbers of a file with one of each a line; nothing where there is no file."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
