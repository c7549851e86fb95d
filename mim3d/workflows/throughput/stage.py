"""What a stage of the profile is, and the small cohort that its stages share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mim3d.config.verbs import PreparationConfig, PrepareConfig
from mim3d.data.phantom import PhantomRule, make_cohort
from mim3d.data.prepare import prepare_store
from mim3d.data.store import Store, open_store
from mim3d.workflows.throughput.inputs import Triple
from mim3d.workflows.throughput.race import SHIPPED, Contestant, Job
from mim3d.workflows.throughput.steps import Preset
from mim3d.workflows.throughput.work import Work

OURS = "mim3d"


@dataclass(frozen=True)
class Scale:
    """How large the things are that a profile times.

    Args:
        volume: voxels of the phantom volumes, 1 mm each.
        batch: crops of a pre-training step.
        segmenter: preset of the segmenter.
        segmenter_side: voxels of its crops and windows along each axis.
        repeats: of every measurement.
    """

    volume: Triple
    batch: int
    segmenter: Preset
    segmenter_side: int
    repeats: int


QUICK = Scale((128, 112, 96), 2, "small", 64, 2)
FULL = Scale((256, 224, 192), 8, "base", 96, 7)
SMALLEST = Scale((48, 40, 36), 2, "tiny", 32, 1)
"""For tests: nothing it says of speed is worth anything."""


@dataclass(frozen=True, eq=False)
class Stage:
    """One line of the profile, its results compared already.

    Args:
        name: the word for `--stages`.
        what: sizes and networks.
        ours: does it once; is told how many times it was called before.
        work: of one call; None where no ceiling bounds it.
        theirs: MONAI as shipped, the same; None where it is absent or has no counterpart.
        equality: how the results compare.
        calls: of ours between two looks at the clock.
        their_calls: of theirs.
        of_a_call: things in one call (crops of a batch); times are of one thing.
        a_step: how many of those things one pre-training step takes; 0 is no part of it.
    """

    name: str
    what: str
    ours: Callable[[int], Any]
    work: Work | None = None
    theirs: Callable[[int], Any] | None = None
    equality: str = "-"
    calls: int = 1
    their_calls: int = 1
    of_a_call: int = 1
    a_step: int = 0

    def job(self) -> Job:
        """For the race."""
        contestants = [Contestant(OURS, self.ours, self.equality, self.calls)]
        if self.theirs is not None:
            theirs = Contestant(SHIPPED, self.theirs, "reference", self.their_calls)
            contestants.insert(0, theirs)
        return Job(self.name, self.what, contestants)


class Scene:
    """A phantom cohort and its store, made when a stage first asks for them.

    Args:
        folder: a temporary one.
        device: where networks run.
        scale: how large everything is.
        bf16: whether ours computes in bf16.
        against_monai: whether MONAI's side is timed.
    """

    def __init__(
        self, folder: Path, device: torch.device, scale: Scale, *, bf16: bool, against_monai: bool
    ) -> None:
        self.folder = folder
        self.device = device
        self.scale = scale
        self.bf16 = bf16
        self.against_monai = against_monai

    @property
    def preset(self) -> Preset:
        """Of the encoder that is pre-trained."""
        return "tiny" if self.scale == SMALLEST else "small"

    @property
    def crop(self) -> Triple:
        """Voxels of a pre-training crop: 96 an axis, or what the volume has."""
        side = min(96, *self.scale.volume) // 16 * 16
        return side, side, side

    @cached_property
    def source(self) -> Path:
        """CT phantoms as `.nii.gz`."""
        rule = PhantomRule(self.scale.volume, (1.0, 1.0, 1.0), modality="ct", noise=0.05)
        return make_cohort(self.folder / "cohort", training=2, validation=0, rule=rule)

    @property
    def file(self) -> Path:
        """One of them."""
        return self.source / "imagesTr" / "phantom_000.nii.gz"

    @cached_property
    def store(self) -> Store:
        """The cohort, prepared without resampling and without cutting air off."""
        rule = PreparationConfig(modality="ct", crop_to_body=False, workers=0)
        prepare_store(self.source, self.folder / "store", PrepareConfig(rule))
        return open_store(self.folder / "store")
