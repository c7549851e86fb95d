"""What a run writes about itself: JSON lines as the truth, TensorBoard as a view, one live line."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mim3d.foundation.atomic import write_text
from mim3d.foundation.disk import explained
from mim3d.foundation.documents import parsed
from mim3d.foundation.reporting import duration

logger = logging.getLogger(__name__)


class Means:
    """Means of named scalars over calls; what is not finite is left out, not spread.

    Sums stay on the scalars' device until they are asked for.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Adds one value to each mean."""
        for name, scalar in scalars.items():
            value = scalar.detach().double()
            finite = value.isfinite()
            zero = torch.zeros_like(value)
            self._sums[name] = self._sums.get(name, zero) + torch.where(finite, value, zero)
            self._counts[name] = self._counts.get(name, zero) + finite

    def totals(self) -> dict[str, tuple[float, float]]:
        """Sum and count of each name."""
        if not self._sums:
            return {}
        sums = torch.stack(list(self._sums.values())).tolist()
        counts = torch.stack(list(self._counts.values())).tolist()
        return dict(zip(self._sums, zip(sums, counts, strict=True), strict=True))

    def values(self) -> dict[str, Tensor]:
        """The means; NaN where no value was finite."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}

    def restore(self, totals: Mapping[str, tuple[float, float]], device: torch.device) -> None:
        """Takes the sums and counts of an interrupted run."""
        for name, (total, count) in totals.items():
            self._sums[name] = torch.tensor(total, dtype=torch.float64, device=device)
            self._counts[name] = torch.tensor(count, dtype=torch.float64, device=device)

    def clear(self) -> None:
        """Begins anew."""
        self._sums.clear()
        self._counts.clear()


def mean_values(totals: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Means from sums and counts; NaN where no value was finite."""
    return {name: s / n if n else math.nan for name, (s, n) in totals.items()}


class Log:
    """`log.jsonl` and `tensorboard/` of a run.

    Lines later than the step a run goes on from belong to work that is done again: they are
    removed at the start, as is a line that a killed process left incomplete.

    Args:
        folder: the run's.
        step: updates made so far.
        is_closed: whether what is due after that step was done; if not, its looks come again.
    """

    def __init__(self, folder: Path, step: int, *, is_closed: bool = True) -> None:
        path = folder / "log.jsonl"
        if path.is_file():
            write_text(path, "".join(_lines_until(path, step, is_closed)))
        with explained(path):
            # Unbuffered: what a full disk refused must not come again when the file is closed.
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        self._path = path
        self._events = _open_events(folder / "tensorboard", step)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line, handed to the system before this returns; numbers go to TensorBoard too.

        Raises:
            DiskError: the line cannot be written.
        """
        line = {"kind": kind, "step": step, "time": round(time.time(), 3), **_plain(values)}
        left = memoryview(json.dumps(line, allow_nan=False).encode() + b"\n")
        with explained(self._path, need=len(left)):
            while left:
                left = left[self._file.write(left) or 0 :]
        if self._events is not None:
            numbers = {k: v for k, v in values.items() if isinstance(v, float) and math.isfinite(v)}
            self._view(self._events.scalars, kind, step, numbers)

    def close(self) -> None:
        """Closes both."""
        self._file.close()
        if self._events is not None:
            self._view(self._events.close)

    def _view(self, call: Callable[..., None], *values: Any) -> None:
        """A call of TensorBoard's writer, which is a view: training does not end with it."""
        try:
            call(*values)
        except OSError as error:
            self._events = None
            logger.warning("TensorBoard's file ends here (%s); `log.jsonl` goes on", error.strerror)


def _lines_until(path: Path, step: int, is_closed: bool) -> list[str]:
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            entry = parsed(line)
        except ValueError:
            continue
        if not (line.endswith("\n") and isinstance(entry, dict)) or entry.get("step", 0) > step:
            continue
        if is_closed or entry.get("kind") != "validation" or entry["step"] < step:
            kept.append(line)
    return kept


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def _open_events(folder: Path, step: int) -> _Events | None:
    if find_spec("tensorboard") is None:
        logger.info("tensorboard is not installed: the run is logged to `log.jsonl` only")
        return None
    try:
        return _Events(folder, step)
    except OSError as error:
        logger.warning("TensorBoard's file cannot be written: %s", error.strerror)
        return None


class _Events:
    """TensorBoard's event file. Its writer alone: `torch.utils.tensorboard` takes 2 s to import."""

    def __init__(self, folder: Path, step: int) -> None:
        writers: Any = import_module("tensorboard.summary.writer.event_file_writer")
        self._event: Any = import_module("tensorboard.compat.proto.event_pb2")
        self._summary: Any = import_module("tensorboard.compat.proto.summary_pb2").Summary
        self._writer = writers.EventFileWriter(str(folder))
        if step > 0:
            # Tells TensorBoard to forget what an interrupted run wrote after this step.
            start = self._event.SessionLog(status=self._event.SessionLog.START)
            self._add(step + 1, session_log=start)

    def scalars(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """One point on each curve `<kind>/<name>`."""
        value = self._summary.Value
        values = [value(tag=f"{kind}/{name}", simple_value=v) for name, v in numbers.items()]
        self._add(step, summary=self._summary(value=values))
        self._writer.flush()

    def _add(self, step: int, **content: Any) -> None:
        self._writer.add_event(self._event.Event(step=step, wall_time=time.time(), **content))

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


def progress_line(
    step: int, steps: int, *, loss: float, rate: float, crops_per_second: float, data_share: float,
    seconds_left: float,
) -> str:  # fmt: skip
    """The live line: `step 1,240/5,000  loss 0.412  lr 2.9e-4  41 crops/s  data 3 %  12 min left`.

    Args:
        step: updates made so far.
        steps: updates of the run.
        loss: mean since the last line of the log.
        rate: learning rate.
        crops_per_second: over all processes.
        data_share: share of the time spent waiting for crops, 0 to 1.
        seconds_left: estimate.
    """
    speed = f"{crops_per_second:.0f}" if crops_per_second >= 10 else f"{crops_per_second:.2g}"
    parts = (
        f"step {step:,}/{steps:,}",
        f"loss {loss:.3g}",
        f"lr {short_rate(rate)}",
        f"{speed} crops/s",
        f"data {100 * data_share:.0f} %",
        f"{short_duration(seconds_left)} left",
    )
    return "  ".join(parts)


def short_rate(rate: float) -> str:
    """A learning rate in two digits: `2.9e-4`."""
    digits, exponent = f"{rate:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def short_duration(seconds: float) -> str:
    """An estimate, hence without the smaller unit: `45 s`, `12 min`, `2 h 05 min`."""
    if 60 <= seconds < 3600:
        return f"{round(seconds / 60)} min"
    return duration(seconds)
