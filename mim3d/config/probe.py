"""The config of `mim3d probe`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.config.inference import EvaluationConfig, InferenceConfig, unmirrored
from mim3d.config.task import (
    ClassificationConfig,
    DecoderConfig,
    SegmentationConfig,
    from_a_probe,
)
from mim3d.config.training import OptimConfig, TrainingConfig

ProbeReader = Literal["knn", "linear", "frozen", "lora", "full"]


@dataclass(frozen=True)
class ComparisonConfig:
    """Which readers of the encoder are compared, and who judges them."""

    readers: tuple[ProbeReader, ...] = ("knn", "linear", "frozen", "lora", "full")
    """`knn` looks at the nearest known features, `linear` fits one linear map to them; both take
    seconds. `frozen` trains a decoder or head on an encoder that stays, `lora` low-rank adapters
    beside it, `full` everything: three trainings by one recipe."""
    references: bool = True
    """Beside the run, the same readers of an encoder with random weights, and `knn` and `linear` of
    raw voxels: what a number means without pre-training. `lora` has none."""
    judge: Literal["inner", "validation"] = "inner"
    """Who judges: a fifth of the training subjects (`data.inner_fold`, 0 where nothing is said),
    for every choice; or the validation list, for a report at the end."""
    neighbours: int = 20
    """Of `knn`."""
    temperature: float = 0.07
    """`knn` of whole volumes: a neighbour counts exp(cosine / this)."""
    tokens: int = 32_768
    """`linear` of label maps: most patches, of all training volumes together, that it is fitted to;
    `knn` looks among a quarter of them."""


@dataclass(frozen=True)
class ProbeConfig:
    """From any run with an encoder and a store with labels or targets to a comparison."""

    task: Literal["auto", "segmentation", "classification", "regression"] = "auto"
    """What is read: `auto` is label maps where the store has them and no target is named, else
    classes where the target has any, else its number."""
    probe: ComparisonConfig = field(default_factory=ComparisonConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(placement="label"))
    """Where `crop_size` is not said, it is that of the run."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    decoder: DecoderConfig = field(default_factory=lambda: from_a_probe("light"))
    """`light` sees no raw voxels, so that what it reads comes from the encoder."""
    objective: SegmentationConfig = field(default_factory=SegmentationConfig)
    classification: ClassificationConfig = field(default_factory=ClassificationConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(warmup_steps=25))
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(steps=500, checkpoint_every=250)
    )
    inference: InferenceConfig = field(default_factory=unmirrored)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint of the run."""
