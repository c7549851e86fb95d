"""One config a verb: what `mim3d VERB --help` lists and what a YAML file of that verb may hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.inference import EvaluationConfig, InferenceConfig, unmirrored
from mim3d.config.objective import PretextConfig, ProbesConfig
from mim3d.config.read import ReadConfig
from mim3d.config.task import (
    ClassificationConfig,
    DecoderConfig,
    SegmentationConfig,
    from_a_probe,
)
from mim3d.config.training import OptimConfig, TrainingConfig

InitPart = Literal["patch", "channels", "positions"]


@dataclass(frozen=True)
class PreparationConfig:
    """How files become a store. Its values are part of every case's key."""

    spacing_mm: tuple[float, float, float] | None = None
    """Resample to this spacing; none keeps each case's own."""
    interpolation: Literal["linear", "cubic"] = "linear"
    """Between voxels of a volume; label maps take the class with the largest linear weight."""
    modality: Literal["auto", "ct", "mr", "other"] = "auto"
    """`auto` takes the source's word, else infers it from the values (minimum <= -500: CT)."""
    window_hu: tuple[float, float] = (-1000.0, 1000.0)
    """CT: this window becomes 0 to 1."""
    clip_percentiles: tuple[float, float] = (0.5, 99.5)
    """MR and other: clip to these percentiles of the body, then mean 0 and deviation 1 over it."""
    intensity_range: tuple[float, float] | None = None
    """These two values become 0 and 1 in every volume, in place of window and percentiles: for
    8-bit volumes and binary shapes. None measures; archives of 8-bit volumes have 0 and 255."""
    distance_mm: float | None = None
    """Volumes of two values, such as binary shapes: each voxel becomes its signed distance to the
    shape's surface, positive inside, cut to this and scaled to -1 to 1. None keeps the values."""
    crop_to_body: bool | None = None
    """Cut away air around the body; labelled voxels are never cut away. Where it is not set,
    this is done but for archives (`.npz`), whose frame is part of the data."""
    body_margin_mm: float = 5.0
    """Air that stays around the body."""
    filter: Literal["blosc", "lzf"] = "blosc"
    """Compression: blosc-lz4 with bitshuffle, or lzf, which h5py reads without plugin."""
    trust_image_grid: bool = False
    """Put labels without orientation on their image's grid if the shapes agree."""
    ignore_label: int | None = None
    """Value in label files, 1 to 65535, of voxels that are no class: left out of loss and metrics.
    None takes the source's word, the label `ignore` of a `dataset.json`."""
    align_channels: bool = False
    """Resample the channels of a case to the first one's grid instead of refusing the case."""
    validation_fraction: float = 0.2
    """Share of labelled subjects held out where the source has no validation list."""
    split: str | None = None
    """Lists of case ids in place of the source's own: a JSON file, or a shipped name such as
    `btcv_24_6`."""
    case_ids: Literal["stem", "hashed"] = "stem"
    """Name cases by their files' stems or by a hash of them."""
    keep_paths: bool = False
    """Note the source paths in the store; off, nothing but the case id is kept."""
    pattern: str | None = None
    """Glob of the images below a plain folder, for example `sub-*/**/*_T1w.nii.gz`."""
    contrasts: tuple[str, ...] | None = None
    """BIDS: contrasts that become channels, in this order, as `T1w,FLAIR`; sessions that lack one
    are left out. None takes those that every session has."""
    labels: str | None = None
    """Glob of the label maps below a BIDS folder, or beside `pattern`; None looks in `derivatives`
    for those of most sessions, and with `pattern` for none."""
    workers: int | None = None
    """Processes; none takes one a core, 0 prepares in the calling process."""
    verify: bool = False
    """Hash every source again instead of trusting size and times."""


@dataclass(frozen=True)
class PrepareConfig:
    """From files of scans to a store."""

    prepare: PreparationConfig = field(default_factory=PreparationConfig)
    read: ReadConfig = field(default_factory=ReadConfig)
    shard: str | None = None
    """`i/n` with i from 0: of n commands that fill one store together, which one this is. The last
    to finish merges."""


@dataclass(frozen=True)
class PretrainConfig:
    """From a store to a pre-trained encoder, which learns from no labels unless asked."""

    data: DataConfig = field(default_factory=DataConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    objective: PretextConfig = field(default_factory=PretextConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    probes: ProbesConfig = field(default_factory=ProbesConfig)
    init: str | None = None
    """Run to start from, or none. The encoder is then that run's, wherever the config is silent."""
    init_checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint of that run."""
    init_adapt: tuple[InitPart, ...] | None = None
    """What of that run's encoder is adapted where this one differs: `patch` resizes its kernel,
    `channels` takes 1 to N or N to 1, `positions` interpolates its table. None adapts nothing."""


@dataclass(frozen=True)
class FinetuneConfig:
    """From a store with labels and, mostly, a pre-trained run to a segmenter or a classifier."""

    task: Literal["segmentation", "classification", "regression"] = "segmentation"
    """What is learned: a class for every voxel (`objective`, `decoder`); or a class, or a number,
    for every volume (`classification`)."""
    data: DataConfig = field(default_factory=lambda: DataConfig(placement="label"))
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=from_a_probe)
    objective: SegmentationConfig = field(default_factory=SegmentationConfig)
    classification: ClassificationConfig = field(default_factory=ClassificationConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    inference: InferenceConfig = field(default_factory=unmirrored)
    init: str | None = None
    """Run to take the encoder from, or `none` to start from scratch; it must be said."""
    init_checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint of that run."""
    init_adapt: tuple[InitPart, ...] | None = None
    """What of that run's encoder is adapted where this one differs: `patch` resizes its kernel,
    `channels` takes 1 to N or N to 1, `positions` interpolates its table. None adapts nothing."""


@dataclass(frozen=True)
class PredictConfig:
    """From a fine-tuned run and scans to label maps, or to classes and numbers."""

    inference: InferenceConfig = field(default_factory=InferenceConfig)
    read: ReadConfig = field(default_factory=ReadConfig)
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint of the run."""
    align_channels: bool = False
    """Resample the channels of a case to the first one's grid instead of refusing the case."""
    channels: tuple[str, ...] = ()
    """Names of the inputs' channels in their order, for a run that takes any of its contrasts
    (`encoder.embedding per_contrast`); empty takes the source's names, else all of the run's."""
    label_format: Literal["nii.gz", "seg.nrrd"] = "nii.gz"
    """Label maps as NIfTI, with names and colours in `labels.*` beside them; or as 3D Slicer's
    `.seg.nrrd`, whose header holds both. Probabilities are NIfTI."""
    pictures: bool = True
    """Draw an overlay of each prediction into `pictures/` of the output folder."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` is bf16 where the device does it in hardware."""
    shard: str | None = None
    """`i/n` with i from 0: of n commands that predict into one folder together, which one this is.
    """


@dataclass(frozen=True)
class EvaluateConfig:
    """From predictions and labels to a table."""

    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    read: ReadConfig = field(default_factory=ReadConfig)
    part: Literal["training", "validation", "test"] | None = None
    """Only cases of this list of the labels' `dataset.json`; none is every label file. Of targets,
    only this list of the store, table or archive; none is every list that a prediction is of."""
    images: str | None = None
    """Folder of the images: with it, an overlay of each case is drawn beside the results."""


@dataclass(frozen=True)
class DemoConfig:
    """The whole path on a synthetic cohort."""

    seed: int = 0
    """Names the cohort and all runs."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`."""


StageName = Literal[
    "read", "prepare", "crop", "augment", "workers", "pretrain", "simmim", "finetune", "window",
    "evaluate",
]  # fmt: skip


@dataclass(frozen=True)
class ThroughputConfig:
    """What each stage costs on this machine."""

    stages: tuple[StageName, ...] = ()
    """Which stages; empty is all."""
    quick: bool = True
    """Small networks and volumes, within two minutes on one core; false takes the sizes of a
    recipe and more repeats."""
    repeats: int | None = None
    """Of each measurement; none is 2, or 7 without `quick`."""
    threads: int = 1
    """Threads of torch on a CPU; times are CPU time, summed over them."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`."""
    monai: bool = True
    """Time MONAI's side too, where MONAI is installed."""


@dataclass(frozen=True)
class ConvergenceConfig:
    """Which pre-training lets fine-tuning converge faster, and what it cost."""

    pretrain: str | None = None
    """Config that every pre-training starts from: a path beside this file, or a name that ships."""
    finetune: str | None = None
    """Config of the fine-tuning, the same for every arm."""
    store: str | None = None
    """Folder made by `mim3d prepare`; none takes the store of those two configs."""
    labels: tuple[int | float, ...] = (0.05, 0.1, 0.25, 0.5, 1.0)
    """Labelled subjects, as fractions (`0.1`) or numbers (`5`); nested within a replicate."""
    replicates: int = 3
    """Fine-tunings of each arm; they differ in which subjects have labels, in initialisation and in
    the order of crops, and are the same ones for every arm."""
    pretraining_seeds: int = 3
    """Pre-trainings of each arm; replicate i starts from number i modulo this. A folder takes
    another number where its runs keep their pre-trainings by it."""
    folds: tuple[int, ...] = ()
    """Replicate i is judged on one of these folds of 5 in turn; empty is the validation list."""
    pretrain_per_fold: bool = False
    """Pre-training does not see the volumes of the fold that judges either. Without it and with
    `folds`, pre-training has no probes of labels, which would be those of who judges."""
    budget: Literal["flop", "steps", "seconds"] = "flop"
    """What every pre-training spends as much of as that of `budget_arm`; an arm may say another
    `budget` of its own. One that sets `training.steps` of its pre-training itself keeps them."""
    budget_arm: str = "mae"
    """The arm whose pre-training is as long as its config says."""
    points: int = 14
    """Steps at which whole volumes are judged, evenly spaced in their logarithm, from step 10 to
    the last; besides them step 0."""
    rates: tuple[float, ...] = ()
    """Learning rates of the fine-tuning to choose from for each arm by itself, and with `folds` for
    each fold, on a fifth of the training list; empty takes that of the config."""
    warmups: tuple[int, ...] = ()
    """Steps of warm-up that each of `rates` is tried with; empty takes those of the config."""
    threads: int | None = None
    """Threads of a CPU process; none leaves them to the two configs."""
    shard: str | None = None
    """`i/n` with i from 0: of n commands that share the runs, which one this is."""
    report: str | None = None
    """Folder of the report; none is that of the runs. Benchmarks with arms in common can share a
    folder of runs, so that these are made once, and have each a report of its own."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """What this machine does, and how fast; which pre-training pays."""

    APART: ClassVar[frozenset[str]] = frozenset({"arms"})
    """Sections of a file that are not settings of this class (`mim3d.config.parts` reads them)."""

    throughput: ThroughputConfig = field(default_factory=ThroughputConfig)
    convergence: ConvergenceConfig = field(default_factory=ConvergenceConfig)
