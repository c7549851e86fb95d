"""A tiny task and a feed for tests of the loop: fast, and sensitive to everything that matters."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mim3d.config.training import OptimConfig, TrainingConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.randomness import generator
from mim3d.objectives.base import Moment, Outcome, Task

FEATURES = 11


class FakeTask(Task):
    """A regression with dropout and a buffer, so that random numbers and state both matter."""

    def __init__(self, *, dropout: float = 0.2, seed: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder = nn.Sequential(nn.Linear(FEATURES, 7), nn.GELU(), nn.Dropout(dropout))
            self.decoder = nn.Linear(7, 3)
            self.teacher = nn.Linear(7, 3)
        self.teacher.requires_grad_(False)
        self.teacher.load_state_dict(self.decoder.state_dict())
        self.register_buffer("seen", torch.zeros(3))
        self.calls: list[tuple[int, bool]] = []

    def forward(self, batch: CropBatch, moment: Moment) -> Outcome:
        self.calls.append((moment.step, self.training))
        features = batch.voxels.flatten(1)
        noise = moment.keys(batch, "mask").remainder(7).float().unsqueeze(1) / 70
        prediction = self.decoder(self.encoder(features + noise))
        target = torch.stack([features.sum(1), features[:, 0], features[:, -1]], 1)
        loss = (prediction - target).square().mean()
        drift = (self.teacher.weight - self.decoder.weight).abs().mean().detach()
        logs = {"drift": drift, "mean_predictor": target.square().mean()}
        pictures = {"original": features} if moment.wants_pictures else None
        return Outcome(loss, logs, pictures)

    def after_update(self, moment: Moment) -> None:
        """Follows the decoder, and counts."""
        with torch.no_grad():
            self.teacher.weight.lerp_(self.decoder.weight, 0.1)
            self.seen += torch.tensor([1.0, float(moment.step), 0.5])


class FakeFeed:
    """Crops that are functions of (seed, step, index); can be told to fail or to give NaN."""

    def __init__(self, batch_size: int, *, seed: int = 0) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self.poison: dict[int, int] = {}
        """Step to the index of the crop that holds a NaN."""
        self.is_closed = False

    def crop(self, step: int, index: int) -> Tensor:
        draw = generator(self.seed, step, index, "crop").normal(size=(1, FEATURES, 1, 1))
        voxels = torch.from_numpy(draw).float()
        if self.poison.get(step) == index:
            voxels[0, 4] = torch.nan
        return voxels

    def batch(self, step: int, indices: range) -> CropBatch:
        return CropBatch(
            voxels=torch.stack([self.crop(step, i) for i in indices]),
            affine=torch.eye(4, dtype=torch.float64).expand(len(indices), 4, 4),
            case_ids=tuple(f"case_{i}" for i in indices),
            crop_ids=torch.tensor(list(indices)),
        )

    def batches(
        self, start: int, stop: int, *, rank: int = 0, world: int = 1, accumulation: int = 1
    ) -> Iterator[tuple[int, list[CropBatch]]]:
        size = self.batch_size // (world * accumulation)
        try:
            for step in range(start, stop):
                first = rank * size * accumulation
                starts = range(first, first + size * accumulation, size)
                yield step, [self.batch(step, range(i, i + size)) for i in starts]
        finally:
            self.is_closed = True


def optim_config(**changes: object) -> OptimConfig:
    """Rates at which the fake task learns, every option on."""
    values = {"lr": 0.02, "warmup_steps": 3, "ema": 0.9, "clip": 1.0, "layer_decay": 0.9}
    return OptimConfig(**{**values, **changes})  # type: ignore[arg-type]


def training_config(**changes: object) -> TrainingConfig:
    """A dozen steps on one thread."""
    values = {
        "steps": 12,
        "batch_size": 4,
        "accumulation": 2,
        "precision": "fp32",
        "device": "cpu",
        "checkpoint_every": 5,
        "log_every": 4,
        "pictures_every": 0,
        "stop_on_nonfinite": 3,
    }
    return TrainingConfig(**{**values, **changes})  # type: ignore[arg-type]
