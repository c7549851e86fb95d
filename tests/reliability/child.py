"""Items judged one after the other in a forked child, each under limits of time and memory.

A child that an item kills, stalls or fills with memory ends with that item; the next child goes on
behind it, so that every item has its outcome. A fork costs milliseconds and keeps what is imported.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

Item = TypeVar("Item")

PATIENCE = 12
"""Seconds of the clock for one of the processor: the machine may be busy with others."""


@dataclass(frozen=True)
class Judged:
    """What became of one item.

    Args:
        outcome: what the judge said of it; empty where it did not get so far.
        fault: why it did not: an exception, a signal, time or memory; else None.
        seconds: of the processor.
    """

    outcome: str
    fault: str | None
    seconds: float


def judged(
    items: Sequence[Item],
    judge: Callable[[Item], str],
    *,
    seconds: float = 5.0,
    spare_bytes: int | None = 256 << 20,
) -> list[Judged]:
    """Judges every item in children of this process.

    Args:
        items: numbers of trials, most often; what they stand for is best made by the judge.
        judge: says in a few words what became of an item. What it raises is a fault.
        seconds: the most an item may take of the processor (twelve times as much by the clock).
        spare_bytes: address space beyond what this process has now; None leaves it unlimited.
            Only Linux keeps to it.
    """
    found: list[Judged] = []
    while len(found) < len(items):
        found += _one_child(items[len(found) :], judge, seconds, spare_bytes)
    return found


def _one_child(
    items: Sequence[Item], judge: Callable[[Item], str], seconds: float, spare_bytes: int | None
) -> Iterator[Judged]:
    """What one child says of the items up to the one it ended with."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of threads (torch has some): the child calls nothing that needs them.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(reader)
        _judge_all(items, judge, seconds, spare_bytes, writer)
    os.close(writer)
    count = 0
    with os.fdopen(reader) as lines:
        for line in lines:
            yield Judged(*json.loads(line))
            count += 1
    _, status = os.waitpid(child, 0)
    if count < len(items):
        yield Judged("", _ending(os.waitstatus_to_exitcode(status), seconds), seconds)


def _judge_all(
    items: Sequence[Item],
    judge: Callable[[Item], str],
    seconds: float,
    spare_bytes: int | None,
    writer: int,
) -> NoReturn:
    """The life of a child: it leaves by no other way, so nothing of the parent's runs twice."""
    try:
        faulthandler.disable()
        for number in (signal.SIGPROF, signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        warnings.simplefilter("ignore")
        # Else looking through the parent's garbage would be on the first item's bill.
        gc.freeze()
        if spare_bytes is not None:
            _limit_address_space(spare_bytes)
        for item in items:
            # Signals that nobody handles: the kernel ends a loop in C, too.
            signal.setitimer(signal.ITIMER_PROF, seconds)
            signal.setitimer(signal.ITIMER_REAL, seconds * PATIENCE)
            line = json.dumps(_judge_one(item, judge)) + "\n"
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.write(writer, line.encode())
        os._exit(0)
    finally:
        os._exit(1)


def _judge_one(item: Item, judge: Callable[[Item], str]) -> tuple[str, str | None, float]:
    start = time.process_time()
    outcome, fault = "", None
    try:
        outcome = judge(item)
    except MemoryError:
        fault = "more memory than it may have"
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"[:500]
    return outcome, fault, time.process_time() - start


def _limit_address_space(spare_bytes: int) -> None:
    if not sys.platform.startswith("linux"):
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + spare_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _ending(code: int, seconds: float) -> str:
    if code == -signal.SIGPROF:
        return f"over {seconds:g} s of the processor"
    if code == -signal.SIGALRM:
        return f"stood still for {seconds * PATIENCE:g} s"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
