"""The process that reads DICOM: requests come in on stdin, answers go out on stdout.

A message is its length (8 bytes, big-endian) and JSON in UTF-8; an answer that announces pixels is
followed by their bytes. The first message says that the process is ready. It lives as long as its
parent's end of the pipe, and may die at any moment: the parent makes an error row of that and
starts another.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mim3d.data.files.dicom_pixels import read_slices
from mim3d.data.files.dicom_series import (
    Series,
    check_series,
    choose,
    describe,
    find_series,
    summaries,
)
from mim3d.foundation.errors import VolumeError
from mim3d.foundation.machine import limit_memory

HEAD = struct.Struct(">Q")
LONGEST_MESSAGE = 1 << 24
SPARE = 1 << 30
"""Address space beyond what a series needs: decoders and their threads' stacks."""


def main() -> None:
    """Answers requests until the parent closes its end."""
    answers = os.fdopen(os.dup(1), "wb")
    # Whatever a library prints must not come between the answers.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    requests = sys.stdin.buffer
    limit_memory(SPARE)
    planned: dict[str, Any] = {}
    send(answers, {"ready": True})
    while (request := receive(requests)) is not None:
        try:
            _answer(request, answers, planned)
        except VolumeError as error:
            refusal = {"what": error.what, "remedy": error.remedy, "code": error.code}
            send(answers, {"error": refusal})
        except MemoryError:
            what = "the series does not fit into the memory that reading it may take"
            send(answers, {"error": {"what": what, "remedy": None, "code": "memory"}})


def send(stream: BinaryIO, message: dict[str, Any], pixels: memoryview | None = None) -> None:
    """Writes a message, and bytes behind it."""
    body = json.dumps(message).encode()
    stream.write(HEAD.pack(len(body)) + body)
    if pixels is not None:
        stream.write(pixels)
    stream.flush()


def receive(stream: BinaryIO) -> dict[str, Any] | None:
    """The next message; None at the end of the stream."""
    head = stream.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    (length,) = HEAD.unpack(head)
    message: dict[str, Any] = json.loads(stream.read(min(length, LONGEST_MESSAGE)))
    return message


def _answer(request: dict[str, Any], answers: BinaryIO, planned: dict[str, Any]) -> None:
    if request["do"] == "pixels":
        series: Series = planned["series"]
        dtype = np.dtype(planned["description"]["dtype"])
        x, y, z = series.shape
        limit_memory(SPARE + 2 * x * y * z * dtype.itemsize)
        voxels, notes = read_slices(series, dtype)
        found = [[note.code, note.text] for note in notes]
        send(answers, {"bytes": voxels.nbytes, "notes": found}, voxels.data.cast("B"))
        return
    groups, notes = find_series(Path(request["path"]))
    if request["do"] == "list":
        send(answers, {"series": [asdict(each) for each in summaries(groups)]})
        return
    uid, slices = choose(groups, request["series"])
    if request["do"] == "files":
        send(answers, {"files": [tags.path.name for tags in slices]})
        return
    planned["series"] = check_series(uid, slices, notes)
    planned["description"] = describe(planned["series"])
    send(answers, planned["description"])


if __name__ == "__main__":
    main()
