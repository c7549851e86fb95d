"""DICOM series, read by a process of its own that may crash, hang or run out of memory.

One such process lives as long as this one and answers one series after the other; when it dies or
overruns its time it is ended and the next series gets a fresh one.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mim3d.config.read import ReadConfig
from mim3d.data.files.dicom_paths import series_of
from mim3d.data.files.geometry import lps_grid
from mim3d.data.files.layout import Axes, Layout, positive_sizes
from mim3d.data.files.streams import Rest, Stream
from mim3d.data.volume import Note
from mim3d.foundation.child import child_command
from mim3d.foundation.errors import VolumeError

SECONDS = 30.0
START_SECONDS = 120.0
"""To start Python and load libraries, which on a busy machine takes longer than any series."""
SLOWEST = 16 << 20
"""Bytes of pixels a second below which a reader counts as hanging, beyond the first 30 s."""
HEAD_BYTES = 8
DTYPES = ("float32", "int8", "uint8", "int16", "uint16", "int32", "uint32")
LONGEST_ANSWER = 1 << 24


@dataclass(frozen=True)
class SeriesSummary:
    """One series of a folder, to choose from with `ReadConfig.series`."""

    uid: str
    slices: int
    rows: int
    columns: int
    modality: str


class DicomReader:
    """The reading process as seen from here.

    Args:
        command: what to start; the default is this package's own reader.
        seconds: how long an answer may take.
        start_seconds: how long it may take until the process is ready.
    """

    def __init__(
        self,
        command: Sequence[str] | None = None,
        seconds: float = SECONDS,
        start_seconds: float = START_SECONDS,
    ) -> None:
        self._command = command or child_command("mim3d.data.files.dicom_child")
        self._seconds = seconds
        self._start_seconds = start_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any], size: int = 0) -> dict[str, Any]:
        """Sends a request and gives the answer.

        Args:
            request: `do` and what belongs to it.
            size: bytes of pixels that must be decoded first; they lengthen the time allowed.

        Raises:
            VolumeError: the answer is a refusal, or the process died or took too long.
        """
        process = self._running()
        deadline = time.monotonic() + self._seconds + size / SLOWEST
        body = json.dumps(request).encode()
        try:
            assert process.stdin is not None
            process.stdin.write(len(body).to_bytes(HEAD_BYTES, "big") + body)
            process.stdin.flush()
        except OSError:
            raise self._died() from None
        answer = self._answer(deadline)
        if "error" in answer:
            error = answer["error"]
            raise VolumeError(error["what"], remedy=error["remedy"], code=error["code"])
        return answer

    def fill(self, target: memoryview) -> None:
        """Receives bytes that the last answer announced."""
        deadline = time.monotonic() + self._seconds + len(target) / SLOWEST
        self._receive(target, deadline)

    def close(self) -> None:
        """Ends the process."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def forget(self) -> None:
        """Lets go of the process without ending it: after a fork it belongs to the parent."""
        process, self._process = self._process, None
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            # It is no child of this process: nothing is left to wait for.
            process.returncode = 0

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # Ctrl-C is for the parent; it closes the pipe when it ends.
                start_new_session=True,
            )
            self._answer(time.monotonic() + self._start_seconds)
        return self._process

    def _answer(self, deadline: float) -> dict[str, Any]:
        length = int.from_bytes(self._read(HEAD_BYTES, deadline), "big")
        try:
            answer = json.loads(self._read(length, deadline)) if length < LONGEST_ANSWER else None
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            self.close()
            raise _no_sense()
        return answer

    def _read(self, count: int, deadline: float) -> bytes:
        buffer = bytearray(count)
        self._receive(memoryview(buffer), deadline)
        return bytes(buffer)

    def _receive(self, target: memoryview, deadline: float) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        done = 0
        while done < len(target):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                self.close()
                raise VolumeError(
                    "reading it took longer than it may and was ended",
                    remedy="convert it to NIfTI with a tool you trust",
                    code="reader-time",
                )
            part = os.read(pipe, min(len(target) - done, 1 << 20))
            if not part:
                raise self._died()
            target[done : done + len(part)] = part
            done += len(part)

    def _died(self) -> VolumeError:
        code: int | None = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(timeout=5)
        self.close()
        how = f"with exit code {code}"
        if code is not None and code < 0:
            how = f"by signal {-code} ({signal.Signals(-code).name})"
        return VolumeError(
            f"reader process ended {how}",
            remedy="convert the series to NIfTI with a tool you trust",
            code="reader-died",
        )


class _ChildStream:
    """The pixels of the series planned last, as a stream."""

    def __init__(self, reader: DicomReader, size: int, compressed: bool) -> None:
        self._reader = reader
        self._size = size
        self._extra = int(START_SECONDS * SLOWEST) if compressed else 0
        self._notes: tuple[Note, ...] = ()

    def fill(self, target: memoryview) -> int:
        """As `Stream.fill`."""
        answer = self._reader.ask({"do": "pixels"}, self._size + self._extra)
        if answer.get("bytes") != len(target):
            self._reader.close()
            raise _no_sense()
        self._notes = tuple(Note(*map(str, note)) for note in answer["notes"])
        self._reader.fill(target.cast("B"))
        return len(target)

    def finish(self, wanted: int) -> Rest:
        """As `Stream.finish`."""
        return Rest(more=self._notes)

    def most(self) -> int:
        """As `Stream.most`."""
        return self._size


@contextlib.contextmanager
def opened(path: Path, config: ReadConfig) -> Iterator[tuple[Layout, Stream]]:
    """Asks for a series by its tags; its pixels are decoded when the stream is read.

    Raises:
        VolumeError: the slices make no volume, or the reading process fails.
    """
    folder, number = series_of(path) or (path, None)
    series = config.series if number is None else str(number)
    request = {"do": "plan", "path": os.path.abspath(folder), "series": series}
    with _lock:
        plan = _reader.ask(request)
        try:
            layout = _layout(plan)
        except (KeyError, TypeError, ValueError):
            _reader.close()
            raise _no_sense() from None
        yield layout, _ChildStream(_reader, layout.stored_bytes, plan.get("compressed") is True)


def list_series(path: str | os.PathLike[str]) -> tuple[SeriesSummary, ...]:
    """The series of a folder of DICOM files, in the order of their numbers.

    Raises:
        VolumeError: there are none, or a file is damaged.
    """
    with _lock:
        answer = _reader.ask({"do": "list", "path": os.path.abspath(path)})
    return tuple(SeriesSummary(**each) for each in answer["series"])


def series_files(folder: Path, number: int) -> list[Path]:
    """The files of one series.

    Raises:
        VolumeError: the folder has no such series, or a file is damaged.
    """
    with _lock:
        request = {"do": "files", "path": os.path.abspath(folder), "series": str(number)}
        answer = _reader.ask(request)
    return [folder / str(name) for name in answer["files"]]


def _layout(plan: dict[str, Any]) -> Layout:
    """The child's answer, trusted no more than a header is."""
    columns, rows, slices = (int(size) for size in plan["shape"])
    positive_sizes([columns, rows, slices])
    if plan["dtype"] not in DTYPES:
        raise ValueError(plan["dtype"])
    notes = [Note(str(code), str(text)) for code, text in plan["notes"]]
    directions, origin = np.array(plan["directions"]), np.array(plan["origin"])
    grid = lps_grid(directions.reshape(3, 3), origin.reshape(3), (-1.0, -1.0, 1.0), notes)
    dims = (columns, rows, slices)
    stored = np.dtype(plan["dtype"])
    return Layout(stored, Axes(dims, None), dims, grid, modality=str(plan["modality"])[:16])


def _no_sense() -> VolumeError:
    return VolumeError("the reader process gave no sensible answer", code="reader-died")


_lock = threading.Lock()
_reader = DicomReader()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _reader.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_reader.close)
