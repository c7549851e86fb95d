"""A training of a dozen milliseconds a step that is like a real one: store, feed, encoder, loop."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import ContrastConfig, PretextConfig, TeacherConfig
from mim3d.config.training import OptimConfig, TrainingConfig
from mim3d.data.batch import CropBatch
from mim3d.data.feed import make_feed
from mim3d.data.store import Store
from mim3d.foundation.digests import file_digest
from mim3d.foundation.reporting import Silent
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment, Task
from mim3d.objectives.registry import PRETEXT_TASKS
from mim3d.training.loop import Feed, fit
from mim3d.training.run import Run
from mim3d.training.standing import FitResult
from mim3d.training.validation import Validator
from tests.positions import make_store

SHAPES = [(25, 21, 16), (19, 24, 13), (17, 18, 22)]
BATCH_SIZE = 4
ACCUMULATION = 2
CLOCKS = ("time", "crops_per_second", "seconds_a_step", "data_share", "seconds", "checksum")
"""What differs between equal runs; the checksum is over the clocks beside it."""
WARM = (
    "lightning_fabric", "lightning_fabric.strategies", "lightning_fabric.plugins.environments",
    "tensorboard.summary.writer.event_file_writer", "tensorboard.compat.proto.event_pb2",
)  # fmt: skip


@dataclass(frozen=True)
class Small:
    """What differs between trainings.

    Args:
        store: where the crops come from.
        objective: a word of the registry.
        workers: of the feed.
        steps: of the run.
        initial: names the first weights.
        changes: further fields of the training's config.
        optim: further fields of the optimiser's config.
    """

    store: Path
    objective: str = "mae"
    workers: int = 0
    steps: int = 8
    initial: int = 5
    changes: tuple[tuple[str, Any], ...] = ()
    optim: tuple[tuple[str, Any], ...] = ()

    def task(self) -> Task:
        """The objective around a transformer of two blocks."""
        torch.manual_seed(self.initial)
        encoder = EncoderConfig(width=24, depth=2, heads=2, patch=(4, 4, 4), channels=2,
                                qkv_bias=False, default_spacing_mm=(1.0, 1.5, 3.0))  # fmt: skip
        teacher = TeacherConfig(prototypes=16, head_width=12, bottleneck=6, momentum=0.8)
        contrast = ContrastConfig(projector_width=16, projector_out=8, windows=2)
        config = PretextConfig(name=self.objective, decoder_width=16, decoder_depth=1,  # type: ignore[arg-type]
                               decoder_heads=2, teacher=teacher, contrast=contrast)  # fmt: skip
        return PRETEXT_TASKS[self.objective](VolumeViT(encoder), config)

    def feed(self, task: Task) -> Feed:
        """Crops of the store, turned and with noise, as the task needs them."""
        store = Store(self.store)
        data = DataConfig(crop_size=(16, 12, 8), workers=self.workers)
        augmentation = AugmentationConfig(flip_axes=("x",), noise=0.1, noise_probability=0.5)
        return make_feed(store, store.cases, data=data, augmentation=augmentation,
                         needs=task.needs, batch_size=BATCH_SIZE, seed=0)  # fmt: skip

    def training(self) -> TrainingConfig:
        """Two micro-batches a step, a checkpoint every fourth."""
        return TrainingConfig(**{  # type: ignore[arg-type]
            "steps": self.steps, "batch_size": BATCH_SIZE, "accumulation": ACCUMULATION,
            "precision": "fp32", "device": "cpu", "checkpoint_every": 4, "log_every": 3,
            "pictures_every": 0, **dict(self.changes),
        })  # fmt: skip


def small_store(folder: Path) -> Path:
    """A store of three cases; made once, with all imported that a forked training needs."""
    for name in WARM:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    if not folder.exists():
        (folder / "cases").mkdir(parents=True)
        make_store(folder, SHAPES)
    return folder


def train(
    small: Small,
    folder: Path,
    *,
    feed: Callable[[Feed], Feed] = lambda feed: feed,
    touch: Callable[[Task], None] = lambda task: None,
    validators: Sequence[Validator] | None = None,
) -> FitResult:
    """Begins a run or goes on with it, to its end.

    Args:
        small: what to train.
        folder: the run's.
        feed: takes the feed and gives one in its place.
        touch: does something to the task before it is trained.
        validators: none is one that looks after every third step.
    """
    task = small.task()
    touch(task)
    crops = small.feed(task)
    with Run.create_or_continue(folder, {"objective": small.objective}) as run:
        return fit(
            task,
            feed(crops),
            OptimConfig(**{"lr": 0.01, "ema": 0.9, "warmup_steps": 2, **dict(small.optim)}),
            small.training(),
            run,
            validators=[looking(small)] if validators is None else validators,
            reporter=Silent(),
        )


def looking(small: Small) -> Validator:
    """Calls the task on crops that never change; draws too, which must leave no trace."""

    def look(task: Task, moment: Moment) -> dict[str, float]:
        batch = next(iter(small_fixed(small, task)))
        return {"loss": float(task(batch, moment).loss), "drawn": torch.rand(()).item()}

    return Validator("look", 3, look, best=("loss", "min"))


def small_fixed(small: Small, task: Task) -> list[CropBatch]:
    """Four crops that are not augmented."""
    feed: Any = small.feed(task)
    return list(feed.fixed(BATCH_SIZE))


@dataclass
class LeavingOut:
    """A feed without one step: what a run is that never had it.

    Args:
        feed: the whole one.
        step: the one that is not given.
    """

    feed: Feed
    step: int

    def batches(
        self, start: int, stop: int, *, rank: int = 0, world: int = 1, accumulation: int = 1
    ) -> Iterator[tuple[int, list[CropBatch]]]:
        """As `Feed.batches`."""
        for step, batches in self.feed.batches(
            start, stop, rank=rank, world=world, accumulation=accumulation
        ):
            if step != self.step:
                yield step, batches


def tensors_digest(folder: Path) -> str:
    """Of all tensors of the last checkpoint: weights, teachers, centres, moments, running means."""
    last = folder / "checkpoints" / "last"
    return file_digest(last / "state.safetensors") + file_digest(last / "weights.safetensors")


def run_digest(folder: Path) -> str:
    """Of all a run tells of itself but clocks: tensors, counters, where `best` points, the log."""
    last = folder / "checkpoints" / "last"
    state = json.loads((last / "state.json").read_text())
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    best = (folder / "checkpoints" / "best").resolve().name
    told = json.dumps([_timeless(state), [_timeless(line) for line in lines], best])
    return hashlib.sha256((tensors_digest(folder) + told).encode()).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(inner) for name, inner in value.items() if name not in CLOCKS}
    return value


def at_call(number: int, action: Callable[[], None]) -> Callable[[Task], None]:
    """For `touch`: does something before the task's n-th call, validations included."""

    def touch(task: Task) -> None:
        count = iter(range(1 << 30))

        def hook(module: torch.nn.Module, arguments: object) -> None:
            if next(count) == number:
                action()

        task.register_forward_pre_hook(hook)

    return touch
