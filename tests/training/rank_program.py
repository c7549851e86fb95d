"""What each process of the two-process tests runs; started by `torchrun`, or forked."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

if __name__ == "__main__":
    sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]

from loop_fakes import FakeFeed, FakeTask, optim_config, training_config

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig, TeacherConfig
from mim3d.config.task import ClassificationConfig
from mim3d.config.training import OptimConfig
from mim3d.data.asked_target import AskedTarget
from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import UserError
from mim3d.foundation.randomness import generator
from mim3d.foundation.reporting import Silent
from mim3d.models.classifier import VolumeClassifier
from mim3d.models.low_rank import adapt
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment, Outcome, Task
from mim3d.objectives.classification import Classification
from mim3d.objectives.mae import MaskedAutoencoder
from mim3d.objectives.smit import SMIT
from mim3d.training.fabric import processes
from mim3d.training.loop import fit
from mim3d.training.run import Run
from mim3d.training.validation import Validator


def volume_task(kind: str) -> Task:
    """A small MAE whose blocks lie in lists, as FSDP cuts them, and are computed again.

    With adapters in its encoder where the kind is `lora`. Or a SMIT, whose teacher and centres have
    to be the same in every process; or a classifier, which standardises by the whole batch.
    """
    encoder = EncoderConfig(
        width=24,
        depth=2,
        heads=2,
        patch=(4, 4, 4),
        # A bias of keys has no gradient but rounding, which AdamW makes as large as any other.
        qkv_bias=False,
        checkpointing=True,
        default_spacing_mm=(1.0, 1.0, 1.5),
    )
    torch.manual_seed(5)
    if kind == "smit":
        teacher = TeacherConfig(views=1, prototypes=16, head_width=12, bottleneck=6, momentum=0.8)
        return SMIT(VolumeViT(encoder), PretextConfig(name="smit", teacher=teacher))
    if kind == "classifier":
        network = VolumeClassifier(VolumeViT(encoder), 2, pool="statistics", standardises=True)
        # Standardising takes away what all volumes share: again no gradient but rounding.
        network.encoder.norm.requires_grad_(False)
        return Classification(network, ClassificationConfig(norm="batch"), [BRIGHT])
    objective = PretextConfig(decoder_width=16, decoder_depth=2, decoder_heads=2)
    task = MaskedAutoencoder(VolumeViT(encoder), objective)
    if kind == "lora":
        adapt(task.encoder, OptimConfig(adapt="lora", lora_rank=3))
    return task


BRIGHT = AskedTarget("bright", (0.0, 1.0))


class VolumeFeed(FakeFeed):
    """The same for crops with three different sides, and whether each is bright."""

    def batch(self, step: int, indices: range) -> CropBatch:
        crops = super().batch(step, indices)
        return replace(crops, targets=(crops.voxels.mean(dim=(1, 2, 3, 4)) > 0).float()[:, None])

    def crop(self, step: int, index: int) -> Tensor:
        draw = generator(self.seed, step, index, "crop").normal(size=(1, 16, 12, 8))
        return torch.from_numpy(draw).float()


class TroubledTask(FakeTask):
    """Does what the test asks for, in the second process alone."""

    def __init__(self, trouble: str) -> None:
        super().__init__(dropout=0.0)
        self.trouble = trouble if os.environ.get("RANK") == "1" else "none"

    def forward(self, batch: CropBatch, moment: Moment) -> Outcome:
        if moment.step == 6 and self.trouble == "signal":
            signal.raise_signal(signal.SIGTERM)
        is_first_try = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if moment.step == 6 and self.trouble == "kill" and is_first_try:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(batch, moment)


def looking(feed: type[FakeFeed], trouble: str) -> Validator:
    def look(task: Task, moment: Moment) -> dict[str, float]:
        if moment.step == 4 and trouble == "signal in a look":
            signal.raise_signal(signal.SIGUSR1)
        return {"loss": float(task(feed(4, seed=9).batch(0, range(4)), moment).loss)}

    return Validator("look", 4, look, best=("loss", "min"))


def note_threads(folder: Path) -> None:
    """Writes which threads are left, by the names that the system has of them."""
    left = sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
    rank = os.environ.get("RANK", "0")
    (folder / f"threads_{rank}.json").write_text(json.dumps(left))


def main(folder: Path, trouble: str, strategy: str, kind: str, accumulation: int) -> None:
    rank = os.environ.get("RANK", "0")
    feed_class = FakeFeed if kind == "fake" else VolumeFeed
    feed = feed_class(8)
    if trouble == "nan":
        # Crop 7 belongs to the second process.
        feed.poison = {5: 7}
    facts: dict[str, object]
    try:
        with Run.create_or_continue(folder / "run", {"training": {"device": "cpu"}}) as run:
            result = fit(
                TroubledTask(trouble) if kind == "fake" else volume_task(kind),
                feed,
                optim_config(freeze_encoder_steps=2),
                training_config(
                    batch_size=8, steps=10, strategy=strategy, accumulation=accumulation
                ),
                run,
                validators=[looking(feed_class, trouble)],
                reporter=Silent(),
            )
        facts = {**result.as_json(), "writes": run.writes, "world": processes().world}
    except UserError as error:
        facts = {"error": type(error).__name__, "what": error.what}
    (folder / f"rank_{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    # Before the processes meet, so that it comes behind their parting.
    atexit.register(note_threads, Path(sys.argv[1]))
    main(Path(sys.argv[1]), *sys.argv[2:5], int(sys.argv[5]))
