"""Cases through several processes, none of which can take the others down.

A process that dies or does not answer in time costs its case one row of the quarantine; a new
process takes its place. Processes are started afresh, so that nothing of the caller (threads,
locks, a notebook's main module) comes along.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mim3d.data.cohort import Case
from mim3d.data.prepare.job import Work, case_as_json, peek, prepare_or_keep
from mim3d.data.prepare.keys import size
from mim3d.foundation.errors import ResourceError

START_SECONDS = 120.0
"""Patience with a process that starts, on a slow file system."""
LEAST_SECONDS = 600.0
"""Patience with one case."""
SECONDS_PER_MIB = 2.0
"""Further patience for each MiB of its files."""


class Died(Exception):
    """A process ended, or was ended, without an answer; the text says how."""


def run(
    do: str, cases: Sequence[Case], work: Work, processes: int
) -> Iterator[tuple[Case, dict[str, Any] | str]]:
    """Answers in the order in which they come.

    Args:
        do: `prepare` or `peek`.
        cases: what to work on.
        work: what they share.
        processes: how many at once; 0 works in this process.

    Yields:
        The case and its answer, or a sentence on how its process died.

    Raises:
        ResourceError: the disk is full.
    """
    if processes == 0:
        for case in cases:
            yield case, (peek if do == "peek" else prepare_or_keep)(case, work)
        return
    waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
    for case in cases:
        waiting.put(case)
    answers: queue.SimpleQueue[tuple[Case, dict[str, Any] | str]] = queue.SimpleQueue()
    stop = threading.Event()
    threads = [
        threading.Thread(target=_serve, args=(do, work, waiting, answers, stop), daemon=True)
        for _ in range(min(processes, len(cases)))
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in cases:
            case, answer = answers.get()
            if isinstance(answer, dict) and answer.get("state") == "stop":
                raise ResourceError(answer["what"], remedy=answer["remedy"], code=answer["code"])
            yield case, answer
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _serve(
    do: str,
    work: Work,
    waiting: queue.SimpleQueue[Case],
    answers: queue.SimpleQueue[tuple[Case, dict[str, Any] | str]],
    stop: threading.Event,
) -> None:
    """One thread of the caller: keeps one process busy, and replaces it when it dies."""
    process: _Process | None = None
    try:
        while not stop.is_set():
            try:
                case = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                process = process or _Process(work)
                answers.put((case, process.ask(do, case, stop)))
            except (Died, OSError) as error:
                answers.put((case, str(error)))
                if process is not None:
                    process.end()
                process = None
    finally:
        if process is not None:
            process.end()


class _Process:
    """One worker and the pipes to it."""

    def __init__(self, work: Work) -> None:
        root = str(Path(__file__).resolve().parents[3])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        # One thread each: the processes share the cores.
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mim3d.data.prepare.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self._patience = START_SECONDS
        self._buffer = b""
        self._send(work.as_json())

    def ask(self, do: str, case: Case, stop: threading.Event) -> dict[str, Any]:
        """The answer for one case.

        Raises:
            Died: there will be none.
        """
        mib = sum(map(size, (*case.images, *([] if case.label is None else [case.label])))) / 2**20
        limit = LEAST_SECONDS + SECONDS_PER_MIB * mib + self._patience
        self._patience = 0.0
        self._send({"do": do, "case": case_as_json(case)})
        return dict(json.loads(self._line(limit, stop)))

    def end(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process.wait()

    def _send(self, content: dict[str, Any]) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        try:
            pipe.write(json.dumps(content).encode() + b"\n")
            pipe.flush()
        except OSError:
            raise Died(self._how_it_ended()) from None

    def _line(self, limit: float, stop: threading.Event) -> bytes:
        pipe = self._process.stdout
        assert pipe is not None
        until = time.monotonic() + limit
        while b"\n" not in self._buffer:
            if stop.is_set():
                raise Died("the preparation was stopped")
            if time.monotonic() > until:
                raise Died(f"reading did not end within {limit:.0f} s")
            ready, _, _ = select.select([pipe], [], [], 0.2)
            if ready:
                part = os.read(pipe.fileno(), 65536)
                if not part:
                    raise Died(self._how_it_ended())
                self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"the process that read it was ended by {signal.Signals(-code).name}"
        return f"the process that read it ended with code {code}"
