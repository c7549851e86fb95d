"""Kills a process at its n-th file operation while it writes checkpoints, for every n.

Started by a test, since it forks: `kill_program.py FOLDER`. Prints how many kills it made.
"""

from __future__ import annotations

import os
import signal
import sys
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from mim3d.training.checkpoints import Checkpoints, Saved, read_state, read_weights

EVENTS = ("open", "os.mkdir", "os.rename", "os.symlink", "os.remove", "os.rmdir", "shutil.rmtree")


def write(checkpoints: Checkpoints, step: int) -> None:
    tensors = {"encoder.a": torch.full((11, 13), float(step))}
    saved = Saved({"weights/encoder.a": tensors["encoder.a"]}, {"step": step})
    checkpoints.write(step, weights=tensors, header={}, saved=saved, is_best=step % 3 == 0)


def die_at(number: int) -> None:
    """From now on, the n-th file operation of this process is its last."""
    seen = count()

    def hook(event: str, arguments: object) -> None:
        if event in EVENTS and next(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def attempt(checkpoints: Checkpoints, first: int, number: int) -> tuple[bool, int]:
    """Lets a child write two checkpoints; whether it was killed, and the last it acknowledged."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        die_at(number)
        checkpoints.sweep()
        for step in (first, first + 1):
            write(checkpoints, step)
            os.write(writing, b"%d\n" % step)
        os._exit(0)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        acknowledged = pipe.read().split()
    return os.WIFSIGNALED(status), int(acknowledged[-1]) if acknowledged else first - 1


def main(folder: Path) -> None:
    checkpoints = Checkpoints(folder)
    write(checkpoints, 0)
    for number in count():
        last = checkpoints.find("last")
        assert last is not None
        was_killed, acknowledged = attempt(checkpoints, int(last.name) + 1, number)
        for which in ("last", "best"):
            found = checkpoints.find(which)
            assert found is not None
            step = read_state(found).numbers["step"]
            weights, _ = read_weights(found)
            assert step == int(found.name) == weights["encoder.a"].unique().item()
            assert which == "best" or step >= acknowledged
        if not was_killed:
            print(number)
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
