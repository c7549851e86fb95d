"""The four things that mim3d writes, each in two versions: an older one, and the one to come."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mim3d.foundation.errors import UserError
from mim3d.foundation.randomness import generator
from mim3d.training.checkpoints import Checkpoints, Saved, read_state, read_weights
from mim3d.workflows.prediction_jobs import RECORD
from tests.reliability.workbench import attempt, make_segmenter

Write = Callable[[Path, int], tuple[int, str]]
"""Writes version 0 or 1 into a folder; the exit code, and what was said."""


@dataclass(frozen=True)
class Writer:
    """One of the four.

    Args:
        name: what it writes.
        write: writes it.
        versions: folders with what undisturbed writing of version 0, and of 1 over it, leaves.
    """

    name: str
    write: Write
    versions: tuple[Path, Path]

    def lost(self, folder: Path) -> str | None:
        """What of version 0 is neither there nor replaced whole by version 1."""
        if self.name == "checkpoint":
            return _lost_checkpoint(folder)
        older, newer = map(contents, self.versions)
        there = contents(folder)
        for name, content in older.items():
            if name not in there:
                return f"`{name}` is lost"
            if name == RECORD and _is_mixed(there[name], content, newer[name]):
                continue
            if there[name] not in (content, newer.get(name)):
                return f"`{name}` is neither the older nor the newer one"
        return None


def _is_mixed(there: bytes | Path, *versions: bytes | Path) -> bool:
    """Whether each entry of a record is that of a version, or says that its case was begun."""
    found, *known = (json.loads(one) for one in (there, *versions) if isinstance(one, bytes))
    return all(key in ({}, *(one.get(name) for one in known)) for name, key in found.items())


def make_writers(folder: Path) -> list[Writer]:
    """All four, with what they write undisturbed."""
    source, run = make_segmenter(folder / "bench")
    predictions = folder / "prediction-0"
    writers: dict[str, Write] = {
        "checkpoint": _write_checkpoint,
        "store": lambda out, version: attempt(_prepare(source, out, version)),
        "prediction": lambda out, version: attempt(_predict(source, run, out, version)),
        "report": lambda out, version: attempt(_evaluate(source, predictions, out, version)),
    }
    return [_with_versions(folder, name, write) for name, write in writers.items()]


def contents(folder: Path) -> dict[str, bytes | Path]:
    """What each file and link of a folder holds, without what is unfinished."""
    return {
        str(item.relative_to(folder)): item.readlink() if item.is_symlink() else item.read_bytes()
        for item in sorted(folder.rglob("[!.]*"))
        if item.is_symlink() or (item.is_file() and ".mim3d-" not in str(item))
    }


def _with_versions(folder: Path, name: str, write: Write) -> Writer:
    versions = (folder / f"{name}-0", folder / f"{name}-1")
    for version, path in enumerate(versions):
        if version:
            shutil.copytree(versions[0], path, symlinks=True)
        code, said = write(path, version)
        if code != 0:
            raise RuntimeError(f"{name} ended with {code}: {said}")
    return Writer(name, write, versions)


def _write_checkpoint(out: Path, version: int) -> tuple[int, str]:
    values = generator(version, "checkpoint").standard_normal((61, 53, 29), dtype="f4")
    tensors = {"encoder.a": torch.from_numpy(values)}
    saved = Saved({"weights/a": tensors["encoder.a"]}, {"step": version + 1})
    try:
        Checkpoints(out / "checkpoints").write(
            version + 1, weights=tensors, header={}, saved=saved, is_best=True
        )
    except UserError as error:
        return int(error.exit_code), f"error: {error}\n\nhint: {error.remedy}"
    return 0, ""


def _lost_checkpoint(folder: Path) -> str | None:
    for which in ("last", "best"):
        found = Checkpoints(folder / "checkpoints").find(which)
        if found is None:
            return f"`{which}` is lost"
        try:
            step = int(read_state(found).numbers["step"])
            weights = read_weights(found)[0]["encoder.a"]
        except UserError as error:
            return f"`{which}` does not load: {error}"
        values = generator(step - 1, "checkpoint").standard_normal((61, 53, 29), dtype="f4")
        if not torch.equal(weights, torch.from_numpy(values)):
            return f"`{which}` holds other weights than were written"
    return None


def _prepare(source: Path, out: Path, version: int) -> list[str]:
    window = f"-500,{500 + 100 * version}"
    return ["prepare", str(source), "--out", str(out), "--workers", "0", "--modality", "ct",
            "--prepare.window_hu", window]  # fmt: skip


def _predict(source: Path, run: Path, out: Path, version: int) -> list[str]:
    return ["predict", str(run), str(source / "imagesTr"), "--out", str(out), "--device", "cpu",
            "--inference.overlap", f"{version / 2}", "--inference.save_probabilities", "true",
            "--pictures", "false"]  # fmt: skip


def _evaluate(source: Path, predictions: Path, out: Path, version: int) -> list[str]:
    return ["evaluate", str(predictions), str(source / "labelsTr"), "--out",
            str(out / "results.json"),
            "--evaluation.nsd_tolerance_mm", f"{version + 1}"]  # fmt: skip
