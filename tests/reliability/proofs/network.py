"""Row 35: mim3d asks nobody for anything, and works where there is no network."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
from pathlib import Path
from typing import Any

from mim3d.cli.main import main
from mim3d.data.phantom import PhantomRule, make_cohort
from tests.reliability.limited import in_child
from tests.reliability.proof import Tally, Unavailable, proof

NEW_NETWORK, NEW_USER = 0x40000000, 0x10000000
"""Flags of unshare(2)."""
ASKING = frozenset(
    {
        "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr",
        "socket.getnameinfo", "socket.sendto", "socket.sendmsg", "socket.bind",
        "urllib.Request", "http.client.connect", "ftplib.connect", "smtplib.connect",
    }
)  # fmt: skip
TINY = [
    "--data.crop_size", "16,16,8", "--training.batch_size", "2", "--training.precision", "fp32",
    "--training.device", "cpu", "--data.store", "store",
]  # fmt: skip
ENCODER = ["--encoder.preset", "tiny", "--encoder.depth", "4", "--encoder.width", "24",
           "--encoder.heads", "2", "--encoder.patch", "4,4,4"]  # fmt: skip
COMMANDS = (
    ["--version"],
    ["--help"],
    ["doctor"],
    ["prepare", "cohort", "--out", "store", "--workers", "0"],
    ["info", "store"],
    ["doctor", "store"],
    ["plan", "pretrain.yaml", "--verb", "pretrain", "--gpu", "h200", *TINY, *ENCODER],
    ["pretrain", "pretrain.yaml", "--out", "pretrained", "--training.steps", "2", *ENCODER, *TINY],
    ["finetune", "finetune.yaml", "--init", "pretrained", "--out", "tuned", "--training.steps",
     "2", "--decoder.name", "light", *TINY],
    ["doctor", "tuned"],
    ["predict", "tuned", "cohort/imagesVal", "--out", "predictions", "--device", "cpu",
     "--pictures"],
    ["evaluate", "predictions", "cohort/labelsVal", "--out", "results.json"],
)  # fmt: skip


@proof(
    rows=(35,),
    trials="commands of the main path in a network namespace without interfaces",
    quick=6,
    full=len(COMMANDS),
)
def nobody_is_asked(trials: range, seed: int, folder: Path) -> Tally:
    """No command connects anywhere or looks up a name, and all work without a network.

    Every audit event of Python's that speaks of sockets to other machines is counted; what
    libraries do below Python finds no interface.
    """
    rule = PhantomRule(shape=(26, 22, 14), organs=1)
    make_cohort(folder / "cohort", seed=seed, training=3, validation=2, rule=rule)
    (folder / "pretrain.yaml").write_text(
        "probes: {every: 0}\nobjective: {decoder_width: 24, decoder_depth: 1, decoder_heads: 2}\n"
    )
    (folder / "finetune.yaml").write_text("inference: {overlap: 0}\n")
    tally = Tally()
    for trial, (code, asked) in zip(trials, _alone(trials, folder), strict=True):
        verb = COMMANDS[trial][0]
        broken = f"`mim3d {verb}` asked: {asked[:3]}" if asked else None
        broken = broken or (f"`mim3d {verb}` ended with {code}" if code else None)
        tally.add(trial, "nobody asked" if broken is None else "asked or failed", broken)
    return tally


def _alone(trials: range, folder: Path) -> list[tuple[int, list[str]]]:
    """Exit code and what was asked for, of each command, from a child without a network."""
    ended = in_child(lambda: _without_network(trials, folder))
    assert ended.answer is not None, ended.error
    answer: dict[str, Any] = ended.answer
    if "lacking" in answer:
        raise Unavailable(answer["lacking"])
    return [(code, asked) for code, asked in answer["commands"]]


def _without_network(trials: range, folder: Path) -> dict[str, Any]:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_NETWORK) and libc.unshare(NEW_NETWORK | NEW_USER):
        return {"lacking": "a network namespace needs rights that this user has not"}
    asked: list[str] = []

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        # A path is a socket of this machine, by which processes of one command talk.
        is_local = event.startswith("socket.") and any(isinstance(a, str | bytes) and "/" in str(a)
                                                       for a in arguments)  # fmt: skip
        if event in ASKING and not is_local:
            asked.append(f"{event} {arguments!r}"[:200])

    sys.addaudithook(hear)
    os.chdir(folder)
    answers = []
    for number in range(trials.stop):
        asked.clear()
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()) as said,
        ):
            code = main([*COMMANDS[number]])
        if code:
            sys.stderr.write(said.getvalue()[-2000:])
        if number >= trials.start:
            answers.append([int(code), list(asked)])
    return {"commands": answers}
