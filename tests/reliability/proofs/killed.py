"""Rows 19 and 20: killed at any point, nothing acknowledged is lost, and going on ends the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mim3d.config.verbs import PredictConfig, PreparationConfig, PrepareConfig
from mim3d.data.files import read_label
from mim3d.data.prepare import prepare_store
from mim3d.data.store import Store
from mim3d.data.store.layout import MANIFEST, case_path
from mim3d.foundation.errors import UserError
from mim3d.foundation.randomness import generator
from mim3d.foundation.reporting import Silent
from mim3d.training.checkpoints import Checkpoints, Saved, read_state, read_weights
from mim3d.workflows.predict import predict
from mim3d.workflows.prediction_jobs import RECORD
from tests.reliability.killing import Life, Say, drawn_death, life
from tests.reliability.proof import Tally, proof
from tests.reliability.workbench import make_segmenter, make_source

WRITINGS = [(step, writing) for step in range(1, 8) for writing in range(2 if step % 3 else 1)]
"""Checkpoints of an undisturbed run: each third is the best, the others are written twice."""


@proof(rows=(19,), trials="kills while checkpoints are written", quick=10, full=200)
def killed_checkpoints(trials: range, seed: int, folder: Path) -> Tally:
    """Every acknowledged checkpoint loads after `kill -9`, and going on ends as undisturbed.

    Here and below the power stays on: what the system was handed is there, flushed or not.
    """
    tally = Tally()
    alone = folder / "alone"
    whole = life(partial(_write_checkpoints, alone))
    for trial in trials:
        random = generator(seed, trial, "killed-checkpoint")
        path = folder / f"checkpoints-{trial}"
        ended = life(partial(_write_checkpoints, path), drawn_death(random, whole))
        broken = ended.fault or _lost_checkpoint(path, ended.said)
        again = life(partial(_write_checkpoints, path))
        broken = broken or again.fault or _unlike(path, alone)
        tally.add(trial, _ending(ended), broken)
        shutil.rmtree(path)
    return tally


def _tensors(step: int) -> dict[str, Tensor]:
    values = generator(step, "tensor").standard_normal((41, 53, 29), dtype=np.float32)
    return {"encoder.a": torch.from_numpy(values), "encoder.b": torch.tensor(float(step))}


def _write_checkpoints(folder: Path, say: Say) -> None:
    """From where the folder stands to the last writing, as a run goes on."""
    checkpoints = Checkpoints(folder)
    checkpoints.sweep()
    last = checkpoints.find("last")
    numbers = {"step": 0, "writing": 0} if last is None else read_state(last).numbers
    for step, writing in WRITINGS:
        if (step, writing) <= (numbers["step"], numbers["writing"]):
            continue
        tensors = _tensors(step)
        saved = Saved({"weights/a": tensors["encoder.a"]}, {"step": step, "writing": writing})
        checkpoints.write(step, weights=tensors, header={}, saved=saved, is_best=step % 3 == 0)
        say(f"{step} {writing}")


def _lost_checkpoint(folder: Path, said: tuple[str, ...]) -> str | None:
    """What of the acknowledged is not there, or not as it was written."""
    checkpoints = Checkpoints(folder)
    checkpoints.sweep()
    acknowledged = [tuple(map(int, words.split())) for words in said]
    bests = [step for step, _ in acknowledged if step % 3 == 0]
    wanted = {"last": acknowledged[-1:], "best": [(step, 0) for step in bests[-1:]]}
    for which, least in wanted.items():
        found = checkpoints.find(which)
        if found is None:
            if least:
                return f"`{which}` is lost, {least[0]} was acknowledged"
            continue
        try:
            numbers, weights = read_state(found).numbers, read_weights(found)[0]
        except UserError as error:
            return f"`{which}` does not load: {error}"
        if least and (numbers["step"], numbers["writing"]) < least[0]:
            return f"`{which}` is step {numbers['step']}, {least[0]} was acknowledged"
        if not torch.equal(weights["encoder.a"], _tensors(numbers["step"])["encoder.a"]):
            return f"`{which}` holds other weights than were written"
    return None


@proof(rows=(20,), trials="kills while a store is written", quick=10, full=200, stretch=50)
def killed_stores(trials: range, seed: int, folder: Path) -> Tally:
    """No acknowledged case is lost or mixed, and going on gives the undisturbed store's bytes."""
    source = make_source(folder / "source")
    starts = {name: folder / name for name in ("nothing", "older", "part")}
    _prepare(source, starts["older"], 600.0)
    _prepare(source, starts["part"], 500.0)
    for path in list((starts["part"] / "cases").glob("*_00[01].*")):
        path.unlink()
    alone = folder / "alone"
    wholes = {}
    for name, start in starts.items():
        shutil.rmtree(alone, ignore_errors=True)
        _copy(start, alone)
        wholes[name] = life(partial(_prepare, source, alone, 500.0))
    tally = Tally()
    for trial in trials:
        random = generator(seed, trial, "killed-store")
        name = sorted(starts)[trial % 3]
        path = folder / f"store-{trial}"
        _copy(starts[name], path)
        ended = life(partial(_prepare, source, path, 500.0), drawn_death(random, wholes[name]))
        broken = ended.fault or _mixed_case(path, (alone, starts["older"]))
        again = life(partial(_prepare, source, path, 500.0))
        broken = broken or again.fault or _unlike(path, alone)
        tally.add(trial, _ending(ended), broken or _done_twice(ended, again))
        shutil.rmtree(path)
    return tally


def _copy(start: Path, path: Path) -> None:
    if start.is_dir():
        shutil.copytree(start, path)


class _Teller(Silent):
    """Says each case when it is acknowledged."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def progress(self, done: int, total: int, text: str) -> None:
        self._say(f"{done}")


def _prepare(source: Path, out: Path, high: float, say: Say = lambda word: None) -> None:
    settings = PreparationConfig(workers=0, modality="ct", window_hu=(-500.0, high))
    result = prepare_store(source, out, PrepareConfig(prepare=settings), _Teller(say))
    say(f"kept {len(result.kept)}")


def _mixed_case(path: Path, wholes: tuple[Path, ...]) -> str | None:
    """A file under its final name that is none of those that undisturbed preparations leave."""
    for file in sorted(path.glob("cases/[!.]*.h5")):
        if not any(_same(file, whole / "cases" / file.name) for whole in wholes):
            return f"`{file.name}` is neither the older nor the newer case"
    return _misread(path, wholes)


def _misread(path: Path, wholes: tuple[Path, ...]) -> str | None:
    """What a reader is told of a store that was left in the middle, if it is not what is written.

    Before there is a manifest it is no store; a case that is another than its manifest's is
    damaged. All other cases are read.
    """
    try:
        store = Store(path)
    except UserError as error:
        is_new = not (path / MANIFEST).exists()
        return None if is_new and error.code == "no-store" else f"it does not open: {error}"
    made = [whole for whole in wholes if _same(path / MANIFEST, whole / MANIFEST)]
    if not made:
        return "the manifest is neither the older nor the newer one"
    for case_id in store.cases:
        is_its_own = _same(case_path(path, case_id), case_path(made[0], case_id))
        try:
            with store.open(case_id) as case:
                case.read_intensities((0, 0, 0), case.shape[1:])
        except UserError as error:
            if is_its_own or error.code != "damaged-store":
                return f"`{case_id}` is not read: {error}"
        else:
            if not is_its_own:
                return f"`{case_id}` is read, but is another than the manifest's"
    return None


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def _done_twice(ended: Life, again: Life) -> str | None:
    """Acknowledged cases that were made anew."""
    acknowledged = max([int(word) for word in ended.said if word.isdigit()], default=0)
    kept = int(again.said[-1].removeprefix("kept "))
    return f"{kept} of {acknowledged} acknowledged cases kept" if kept < acknowledged else None


@proof(rows=(20,), trials="kills while predictions are written", quick=6, full=200, stretch=50)
def killed_predictions(trials: range, seed: int, folder: Path) -> Tally:
    """Nothing acknowledged is lost or made twice, and going on ends as undisturbed predicting."""
    source, run = make_segmenter(folder)
    alone, older = folder / "alone", folder / "older"
    work = partial(_predict, run, source / "imagesTr")
    _predict(run, source / "imagesTr", older, 0.0, lambda word: None)
    whole = life(partial(work, alone, 0.5))
    assert len(whole.said) == 4, whole  # each case is acknowledged
    tally = Tally()
    for trial in trials:
        random = generator(seed, trial, "killed-prediction")
        path = folder / f"predictions-{trial}"
        if trial % 2:
            shutil.copytree(older, path)
        ended = life(partial(work, path, 0.5), drawn_death(random, whole))
        broken = ended.fault or _half_prediction(path, (alone, older))
        made = _acknowledged(path, ended.said)
        broken = broken or next((f"`{f.name}` is lost" for f in made
                                 if not _same(f, alone / f.name)), None)  # fmt: skip
        again = life(partial(work, path, 0.5))
        broken = broken or again.fault or _unlike(path, alone)
        broken = broken or _made_twice(made, _acknowledged(path, ended.said))
        tally.add(trial, _ending(ended), broken)
        shutil.rmtree(path)
    return tally


def _predict(run: Path, images: Path, out: Path, overlap: float, say: Say) -> None:
    inference = replace(PredictConfig().inference, overlap=overlap, save_probabilities=True)
    config = PredictConfig(pictures=False, device="cpu", inference=inference)
    teller = _CaseTeller(say)
    predict(str(run), [str(images)], out=str(out), config=config, reporter=teller)
    teller.acknowledge()


class _CaseTeller(Silent):
    """Says the name of each prediction when the next case is begun, or all are done."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._case: str | None = None

    def progress(self, done: int, total: int, text: str) -> None:
        case, _, what = text.partition(": ")
        if not what.startswith("window"):
            self.acknowledge()
            self._case = case

    def acknowledge(self) -> None:
        """Of the case that was begun last."""
        if self._case is not None:
            self._say(self._case)
        self._case = None


def _acknowledged(path: Path, said: tuple[str, ...]) -> dict[Path, tuple[int, int]]:
    """The files of acknowledged cases, and what changes when one is written anew."""
    files = [path / f"{case}{end}" for case in said for end in (".nii.gz", "_probabilities.nii.gz")]
    stats = {file: file.stat() if file.exists() else None for file in files}
    return {
        file: (stat.st_ino, stat.st_mtime_ns) if stat else (0, 0) for file, stat in stats.items()
    }


def _made_twice(
    before: dict[Path, tuple[int, int]], after: dict[Path, tuple[int, int]]
) -> str | None:
    """Acknowledged files that were written again."""
    twice = [file.name for file, stamp in before.items() if after[file] != stamp]
    return f"made twice: {twice}" if twice else None


def _half_prediction(path: Path, wholes: tuple[Path, ...]) -> str | None:
    """A final name that stands for no whole file, or a record of what is not there."""
    for file in sorted(path.glob("[!.]*")):
        if file.suffix == ".gz" and not any(_same(file, whole / file.name) for whole in wholes):
            return f"`{file.name}` is neither the older nor the newer prediction"
        if file.suffix == ".gz" and "probabilities" not in file.name:
            read_label(file)
    record = path / RECORD
    entries = json.loads(record.read_text()) if record.is_file() else {}
    for name, key in entries.items():
        if key and not (path / name).is_file():
            return f"`{name}` is in the record and not there"
    return None


def _ending(ended: Life) -> str:
    return "killed, went on, equal" if ended.signal else "ended before its time, equal"


def _unlike(path: Path, alone: Path) -> str | None:
    """The first file or link that differs from those of undisturbed work."""
    contents: list[dict[str, object]] = [_contents(folder) for folder in (path, alone)]
    for name in sorted(contents[0].keys() | contents[1].keys()):
        if contents[0].get(name) != contents[1].get(name):
            return f"`{name}` differs from that of undisturbed work"
    return None


def _contents(folder: Path) -> dict[str, object]:
    read: Callable[[Path], object] = lambda item: (  # noqa: E731
        item.readlink() if item.is_symlink() else item.read_bytes() if item.is_file() else None
    )
    return {str(item.relative_to(folder)): read(item) for item in sorted(folder.rglob("*"))}
