"""Rows 17 and 18: prediction by slabs as planned, and training that runs out of memory."""

from __future__ import annotations

import contextlib
import hashlib
import io
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from mim3d.cli.main import main
from mim3d.config.encoder import EncoderConfig
from mim3d.config.inference import InferenceConfig
from mim3d.config.task import DecoderConfig
from mim3d.data.classes import ClassTable
from mim3d.data.phantom import PhantomRule, make_cohort
from mim3d.data.prepare.volume import VolumeRule
from mim3d.data.volume import Volume
from mim3d.foundation.errors import ExitCode
from mim3d.foundation.randomness import generator
from mim3d.inference.forecast import Forecast
from mim3d.inference.predict import predict
from mim3d.inference.segmenter import Segmenter
from mim3d.inference.sliding_window import slabs
from mim3d.inference.windows import plan_sweep, window_weights
from mim3d.models.presets import completed
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.training.checkpoints import WEIGHTS, Checkpoints, read_state, read_weights
from mim3d.training.signals import StopRequest
from mim3d.workflows import finetune, memory, pretrain
from tests.reliability.limited import Ended, in_child
from tests.reliability.proof import Tally, proof

SIZES = (((96, 88, 80), 4), ((150, 140, 120), 20), ((160, 150, 200), 60))
"""Voxels and classes of the volumes whose plan is checked against what is held."""
CLOSE = 0.15
ROOM = 1.2


@proof(
    rows=(17,),
    trials="volumes of random sizes, windows, overlaps, batches and numbers of classes",
    quick=50,
    full=500,
)
def slabs_equal_one_piece(trials: range, seed: int, folder: Path) -> Tally:
    """Labels by slabs are bit for bit those of sums over the whole volume in one piece."""
    tally = Tally()
    for trial in trials:
        random = generator(seed, trial, "slabs")
        shape = tuple(random.integers(3, 40, 3).tolist())
        window = tuple(random.integers(3, 13, 3).tolist())
        classes = int(random.integers(1, 7))
        config = InferenceConfig(
            overlap=float(random.choice((0.0, 0.25, 0.5, 0.7))),
            weights=str(random.choice(("gaussian", "constant"))),  # type: ignore[arg-type]
            windows_per_batch=int(random.integers(1, 7)),
        )
        voxels = torch.from_numpy(random.normal(size=(2, *shape))).float()
        network = _network(random, classes)
        sweep = plan_sweep(shape, window, config.overlap)
        found = torch.cat(
            [
                slab.sums.clone()
                for slab in slabs(voxels, network, config, sweep, spacing_mm=(0.8, 1.2, 2.5))
            ],
            dim=1 + sweep.axis,
        )
        whole = _one_piece(voxels, network, config, sweep)
        same = torch.equal(found, whole)
        tally.add(trial, "equal" if same else "differs", None if same else f"{shape}, {window}")
    return tally


def _network(random: np.random.Generator, classes: int) -> Any:
    """Different in every window and voxel, by products and sums alone.

    Those are the same in any batch; of a sine the last bit hangs on a voxel's place in memory.
    """
    mix = torch.from_numpy(random.normal(size=(classes, 2))).float()

    def network(voxels: Tensor, spacing_mm: Tensor, valid: Tensor | None) -> Tensor:
        place = torch.linspace(-1, 1, voxels.shape[-1]) * voxels[:, 0, -1, -1, :1]
        rows = [voxels[:, 0] * a * (voxels[:, 1] * b) + place[:, None, None] for a, b in mix]
        return torch.stack(rows, dim=1)

    return network


def _one_piece(voxels: Tensor, network: Any, config: InferenceConfig, sweep: Any) -> Tensor:
    """Sums of the whole padded volume, window by window."""
    padded = torch.zeros((len(voxels), *sweep.size))
    padded[(slice(None), *sweep.inside)] = voxels
    kind = "constant" if len(sweep.starts) == 1 else config.weights
    weights = window_weights(sweep.window, kind)
    total: Tensor | None = None
    for start in sweep.starts:
        box = (slice(None), *sweep.box(start))
        logits = network(padded[box][None], torch.ones(1, 3), None)[0]
        total = torch.zeros((len(logits), *sweep.size)) if total is None else total
        total[box].addcmul_(logits, weights)
    assert total is not None
    return total[(slice(None), *sweep.inside)]


@proof(
    rows=(17,),
    trials="predictions of three sizes, run once freely and once limited to 1.2 times their plan",
    quick=1,
    full=6,
    stretch=2,
)
def the_plan_of_a_prediction_holds(trials: range, seed: int, folder: Path) -> Tally:
    """The plan comes before the first window; what is held lies within 15 % of it.

    Under a limit of 1.2 times the plan the prediction finishes, with equal labels.
    """
    tally = Tally()
    for trial in trials:
        shape, classes = SIZES[trial % len(SIZES)]
        network = _unetr(classes, seed + trial)
        free = in_child(lambda n=network, s=shape: _predicted(n, s))  # type: ignore[misc]
        if free.answer is None:
            tally.add(trial, "failed", free.error[-300:])
            continue
        planned = free.answer["planned"]
        ratio = planned / free.peak_bytes
        spare = int(ROOM * planned - free.start_bytes)
        held = in_child(lambda n=network, s=shape: _predicted(n, s), spare)  # type: ignore[misc]
        broken = _plan_broken(free, held, ratio)
        tally.add(trial, "as planned" if broken is None else "not as planned", broken)
        tally.notes.append(f"{_shown(shape)}, {classes} classes: plan / held {ratio:.2f}")
    return tally


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _plan_broken(free: Ended, held: Ended, ratio: float) -> str | None:
    if not free.answer["was_first"]:
        return "a window ran before the plan was told"
    if abs(ratio - 1) > CLOSE:
        return f"planned {ratio:.2f} of what was held"
    if held.answer is None:
        return f"limited: signal {held.signal}, {held.error[-300:]}"
    same = held.answer["digest"] == free.answer["digest"]
    return None if same else "limited: other labels"


def _unetr(classes: int, seed: int) -> UNETR:
    encoder = EncoderConfig(preset="tiny", depth=4, width=48, heads=2, patch=(8, 8, 8))
    full = completed(encoder, channels=1, crop_size=(48, 48, 48), spacing_mm=(1.0, 1.0, 1.0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNETR(VolumeViT(full), classes, DecoderConfig(name="light"))


def _predicted(network: UNETR, shape: tuple[int, int, int]) -> dict[str, Any]:
    torch.set_num_threads(1)
    random = generator(0, "predicted", *shape)
    voxels = (random.standard_normal((1, *shape), np.float32) * 100).astype(np.int16)
    volume = Volume.from_array(voxels, np.eye(4))
    segmenter = Segmenter(
        network, (48, 48, 48), classes=ClassTable.from_values(range(network.classes)),
        rule=VolumeRule(modalities=("mr",)),
    )  # fmt: skip
    events: list[str] = []
    forecast = Forecast(lambda need: events.append("plan"))
    found = predict(
        segmenter, volume, InferenceConfig(overlap=0.0, skip_air=False), forecast=forecast,
        progress=lambda done, total: events.append("window"),
    )  # fmt: skip
    digest = hashlib.sha256(found.labels.voxels.tobytes()).hexdigest()
    (need,) = forecast.needs
    return {"planned": need.peak_bytes, "digest": digest, "was_first": events[0] == "plan"}


TRAININGS = (
    ["pretrain", "a.yaml", "--objective.name", "mae"],
    ["finetune", "b.yaml", "--init", "none", "--decoder.name", "light"],
    ["pretrain", "a.yaml", "--objective.name", "simmim"],
    ["finetune", "b.yaml", "--init", "none", "--decoder.name", "unetr"],
    ["pretrain", "a.yaml", "--objective.name", "simclr"],
)
SETTINGS = [
    "--encoder.preset", "tiny", "--encoder.depth", "3", "--encoder.patch", "4,4,4",
    "--data.crop_size", "32,32,32", "--training.precision", "fp32", "--training.device", "cpu",
    "--training.steps", "3", "--training.checkpoint_every", "1", "--data.store", "store",
    "--data.workers", "0",
]  # fmt: skip
PARTS = (0.5, 0.8)
LOADED = (finetune, pretrain)
"""Imported before any limit is set."""


@proof(
    rows=(18,),
    trials="unfinished trainings continued under a limit of 50 or 80 % of their need",
    quick=2,
    full=20,
    stretch=4,
)
def training_says_what_it_needs(trials: range, seed: int, folder: Path) -> Tally:
    """Too little memory ends a training with exit code 5, the estimate and a remedy.

    Half of the trials hide what is free, so that memory runs out while it trains. The last
    checkpoint's weights stay as they were, or a later one is whole.
    """
    rule = PhantomRule(shape=(44, 40, 36), organs=1)
    make_cohort(folder / "cohort", seed=seed, training=3, validation=1, rule=rule)
    (folder / "a.yaml").write_text("probes: {every: 0}\n")
    (folder / "b.yaml").write_text("inference: {overlap: 0}\n")
    prepare = ["prepare", "cohort", "--out", "store", "--workers", "0"]
    in_child(lambda: _command(folder, prepare))
    tally = Tally()
    begun: dict[int, Ended] = {}
    for trial in trials:
        kind, rest = divmod(trial, 4)
        part, hides = PARTS[rest % 2], rest >= 2
        command = [*TRAININGS[kind % 5], *SETTINGS, "--out", f"run{kind}",
                   "--training.batch_size", str(6 + 2 * kind)]  # fmt: skip
        if kind not in begun:
            begun[kind] = in_child(lambda c=command: _begun(folder, c))  # type: ignore[misc]
        answer = begun[kind].answer
        if answer is None or answer["code"] != ExitCode.RESUMABLE:
            tally.add(trial, "not begun", f"{answer} {begun[kind].error[-300:]}")
            continue
        before = _digests(folder / f"run{kind}" / "checkpoints")
        spare = int(part * answer["need"])
        found = in_child(lambda c=command, h=hides: _command(folder, c, h), spare)  # type: ignore[misc]
        broken = _broken(found, before, folder / f"run{kind}" / "checkpoints")
        outcome = "ran out, said" if hides else "refused, said"
        tally.add(trial, outcome if broken is None else "not said", broken)
    return tally


def _broken(found: Ended, before: dict[str, str], checkpoints: Path) -> str | None:
    if found.answer is None:
        return f"signal {found.signal}: {found.error[-300:]}"
    said = found.answer["said"]
    if found.answer["code"] != ExitCode.RESOURCES:
        return f"exit code {found.answer['code']}: {said[-300:]}"
    missing = [word for word in ("are needed", "hint:", "--training.accumulation")
               if word not in said]  # fmt: skip
    if missing or "Traceback" in said:
        return f"does not say {missing}: {said[-300:]}"
    return _last_broken(checkpoints, before)


def _last_broken(checkpoints: Path, before: dict[str, str]) -> str | None:
    """Whether `last` is what it was, or whole and later where some steps still fitted."""
    last = Checkpoints(checkpoints).find("last")
    if last is None or not before:
        return "there is no checkpoint"
    read_weights(last)  # compares checksums, as does the next
    read_state(last)
    if f"{last.name}/{WEIGHTS}" not in before:
        return None if last.name > max(before).split("/")[0] else "the checkpoint is older"
    # Its state may say by now that it was validated: a signal leaves that to who goes on.
    same = _digests(checkpoints)[f"{last.name}/{WEIGHTS}"] == before[f"{last.name}/{WEIGHTS}"]
    return None if same else "the checkpoint's weights changed"


def _command(folder: Path, command: list[str], hides: bool = False) -> dict[str, Any]:
    torch.set_num_threads(1)
    unknown = mock.patch.object(memory, "available_bytes", return_value=None)
    with (
        contextlib.chdir(folder),
        unknown if hides else contextlib.nullcontext(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as said,
    ):
        code = main(command)
    return {"code": int(code), "said": said.getvalue()}


def _begun(folder: Path, command: list[str]) -> dict[str, Any]:
    """Trains for a step, then is asked to stop as by a signal; also what it reckoned to need."""
    needs = []
    reckon = memory.training_need

    def noted(config: Any) -> Any:
        needs.append(reckon(config))
        return needs[-1]

    asked = mock.patch.object(StopRequest, "reason", property(lambda self: "the proof"))
    with mock.patch.object(memory, "training_need", noted), asked:
        answer = _command(folder, command)
    return {**answer, "need": needs[0].total}


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
