"""What a pre-training minimises: masks, guides, targets, views and teachers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mim3d.config.data import Axis, Triple

MaskShape = Literal["uniform", "block", "tube", "slab"]


@dataclass(frozen=True)
class ContrastConfig:
    """What the objectives that compare views of a crop share, and what each weighs."""

    min_overlap: float = 0.6
    """Smallest share of a crop's voxels that both views see, 0 to 1; 1 is the same place. Counted
    before the crops are rotated and zoomed."""
    projector_width: int = 512
    """Width of the projector's inner layers, and of the predictor's."""
    projector_depth: int = 2
    """Linear layers of the projector."""
    projector_out: int = 128
    """Width of what is compared."""
    projector_norm: Literal["batch", "layer"] = "batch"
    """SimCLR, VICReg, BYOL, MoCo v3: the norm between the linear maps. `batch` is over the crops of
    all processes; `layer` knows one crop at a time and tends to collapse."""
    temperature: float = 0.1
    """SimCLR and MoCo v3: divides the similarities."""
    momentum: float = 0.99
    """MoCo v3, BYOL, VoCo: decay of the momentum encoder at the start; it grows to 1 by a cosine.
    """
    invariance_weight: float = 25.0
    """VICReg: weight of the distance between views."""
    variance_weight: float = 25.0
    """VICReg: weight of the hinge on each dimension's deviation."""
    covariance_weight: float = 1.0
    """VICReg: weight of the covariances between dimensions."""
    base_crops: Triple = (2, 2, 2)
    """VoCo: base crops that a crop is divided into along x, y, z."""
    windows: int = 4
    """VoCo: windows of a base crop's size whose place in the crop is predicted."""


@dataclass(frozen=True)
class TeacherConfig:
    """Self-distillation (`dino`, `smit`): a running mean of the network teaches it."""

    views: int = 2
    """`smit`: 2 is two views of a crop, each taught by the other as a whole; 1 is one view, taught
    by itself unmasked, at half the cost. `dino` always has 2."""
    momentum: float = 0.99
    """Decay of the running mean at the start; it grows to 1 by a cosine."""
    prototypes: int = 1024
    """Outputs of the head, over which student and teacher are compared."""
    head_width: int = 512
    """Width of the head's inner layers."""
    head_depth: int = 2
    """Linear layers of the head before the prototypes."""
    bottleneck: int = 128
    """Width before the prototypes, normalised to length 1."""
    student_temperature: float = 0.1
    """Divides the student's logits."""
    teacher_temperature: tuple[float, float] = (0.03, 0.03)
    """Divides the teacher's: at the start, and after the first third of the run. Published: 0.04 to
    0.07, which small batches and short runs leave undecided."""
    centre_momentum: float = 0.9
    """Decay of the mean that is taken from the teacher's logits."""
    voxel_weight: float = 1.0
    """`smit`: weight of the reconstruction of masked voxels; 0 is iBOT (arXiv:2111.07832)."""
    token_weight: float = 0.1
    """`smit`: weight of the teacher's answer at each masked token; 0 does without."""
    global_weight: float = 0.1
    """`smit`: weight of the teacher's answer for the whole of the other view; 0 does without."""


@dataclass(frozen=True)
class TargetsConfig:
    """Numbers of the targets that have any."""

    scales: tuple[int, ...] = (1, 2, 4)
    """`multiscale`: voxels of a cube's side, for each scale; 1 is the voxels themselves. Each scale
    counts as much as every other."""
    hog_cells: Triple = (2, 2, 2)
    """`hog`: cells of a patch along x, y, z, each with a histogram; they divide the patch."""
    slope: float = 1.0
    """`spectral`: the coefficient of k half waves counts (1 + |k|)^slope times; 1 evens out what
    images hold, 0 is no weight."""
    windows_hu: tuple[tuple[float, float], ...] = (
        (-1000.0, 200.0), (-160.0, 240.0), (-200.0, 1000.0),
    )  # fmt: skip
    """`windows`: low and high end of each in HU, within the one by which voxels are normalised;
    lung, soft tissue and bone."""
    prepared_hu: tuple[float, float] | None = None
    """`windows`: the window by which voxels are normalised. `pretrain` takes it from the store."""
    blocks: int | None = None
    """`teacher`: how many of the top blocks are averaged; none is half of them. Its momentum is
    `objective.teacher.momentum`."""


@dataclass(frozen=True)
class SupervisedConfig:
    """What pre-training by `mae` or `simmim` learns from labels beside reconstruction (MSMAE)."""

    target: str | None = None
    """Which of the store's targets; none learns from no labels. Cases that lack it are only
    reconstructed."""
    classes: tuple[float, ...] | None = None
    """Values that are the classes; none takes those of the store."""
    weight: float = 0.1
    """Weight of the cross-entropy beside 1 of the reconstruction, 0 or more."""


@dataclass(frozen=True)
class GuideConfig:
    """What leads masks to some tokens rather than others, in training alone."""

    by: Literal["none", "body", "map", "prior", "attention", "loss"] = "none"
    """Weight of a token: its share of voxels that are not air; or that the store's label map has in
    a class other than 0; or the mean of a volume of weights that is given (`priors`): every case
    needs what is asked for. Or what training has found at its place in the volume: the attention it
    got in the last block (MSMAE), or the error of its reconstruction (AnatoMask)."""
    priors: str | None = None
    """`prior`: folder with a volume of weights, 0 or more, for each case: `CASE.nii.gz` or any
    other format of volumes, on any grid in the case's millimetres; nothing is 0."""
    share: tuple[float, float] = (1.0, 1.0)
    """Share of the masked tokens that the guide picks, at the start and at the end of the run, in a
    straight line between; the rest is drawn evenly. 0 to 0.5 is AnatoMask's easy to hard."""
    polarity: Literal["high", "low"] = "high"
    """Which are masked: tokens of high weight, or of low weight, so that the others are seen."""
    temperature: float = 1.0
    """1 draws tokens in proportion to their weights, higher more evenly, lower more sharply; at 0
    the highest weights are taken, of equal ones any."""
    warmup: float = 0.0
    """Share of the run with unguided masks first, 0 to below 1; `share` begins behind it."""
    momentum: float = 0.8
    """`attention`, `loss`: decay of a place's running mean each time that it is seen, 0 to below 1.
    """
    refresh_epochs: float = 0.0
    """`attention`, `loss`: how often masks go by a new copy of the means: each time that so many
    times as many crops as there are cases were seen. 0 goes by what is known now."""
    every: int = 1
    """`attention`, `loss`: steps from one that tells something to the next."""
    queries: Literal["class_token", "patches"] | None = None
    """`attention`: whose; none is the class token's where the encoder has one, else the mean of all
    patches' that the encoder is given, which for `simmim` are those of mask tokens too."""
    source: Literal["network", "teacher"] = "network"
    """`loss`: the network's own errors, which cost nothing; or those of its running mean
    (`teacher.momentum`), which cost a forward pass in each step that tells."""


@dataclass(frozen=True)
class PretextConfig:
    """The pretext task: what the encoder learns from without labels."""

    name: Literal[
        "mae", "simmim", "smit", "autoencoder", "denoising", "simclr", "mocov3", "byol", "vicreg",
        "dino", "voco", "own",
    ] = "mae"  # fmt: skip
    """`mae` encodes visible tokens only and decodes with a small transformer (arXiv:2111.06377);
    `simmim` encodes mask tokens too and predicts with one linear layer (arXiv:2111.09886); `smit`
    adds self-distillation to it (arXiv:2205.10342); `autoencoder` and `denoising` reconstruct every
    voxel, from the crop or from one with noise; the others compare views of a crop: `simclr`
    (arXiv:2002.05709), `mocov3` (arXiv:2104.02057), `byol` (arXiv:2006.07733), `vicreg`
    (arXiv:2105.04906), `dino` (arXiv:2104.14294), `voco` (arXiv:2402.17300). `own` is a task that a
    program of yours hands to `pretrain`."""
    mask_ratio: float | tuple[float, float] = 0.75
    """Masked share of all valid tokens; counts are exact. Two numbers: each step draws one between
    them, validation takes their mean."""
    mask_ratio_end: float | None = None
    """Ratio of the last step, reached from `mask_ratio` in a straight line; validation stays at
    `mask_ratio`. None keeps the ratio."""
    drop_ratio: float = 0.0
    """`mae`, `simmim`: further share of the valid tokens that neither encoder nor decoder sees: of
    those that are not masked the next in the strategy's order (MSMAE, arXiv:2305.05871: 0.3 beside
    a `mask_ratio` of 0.45)."""
    masking: MaskShape | tuple[MaskShape, ...] = "uniform"
    """Which tokens: each by itself; blocks of `mask_unit` tokens with random phase; tubes, that is
    lines of tokens along `mask_axis`; slabs, that is whole planes across it. Of several each step
    draws one, validation takes the first."""
    mask_unit: Triple = (2, 2, 2)
    """Tokens of a block along x, y, z, with `masking: block`."""
    mask_axis: Axis = "z"
    """Axis of tubes and slabs."""
    rounding: Literal["half_up", "ceil", "floor"] = "half_up"
    """How ratio x tokens becomes a count."""
    target: Literal[
        "raw", "normalised", "normalised_per_channel", "multiscale", "gradient", "hog", "spectral",
        "windows", "teacher",
    ] = "raw"  # fmt: skip
    """What is predicted of a patch: its voxels as they are; to mean 0 and deviation 1 over all
    channels, or each channel by itself; means over cubes of several sizes; derivatives; histograms
    of their directions (MaskFeat, arXiv:2112.09133); cosine coefficients; several HU windows of a
    CT; what a running mean of the encoder makes of the whole crop (`mae`, `simmim`; data2vec,
    arXiv:2202.03555)."""
    loss: Literal["l1", "l2", "smooth_l1"] = "l2"
    """Error of a voxel."""
    visible_weight: float = 0.0
    """Weight of the loss at visible tokens beside 1 at masked ones."""
    air_weight: float = 1.0
    """Weight of air in the loss: 0 leaves it out. Air is what lies below the body's threshold."""
    patches: tuple[Triple, ...] = ()
    """`mae`, `simmim`: sizes of a patch in voxels along x, y, z, of which each step draws one
    (FlexiViT, arXiv:2212.08013). Weights are kept for `encoder.patch` and resized for the step;
    validation and what comes afterwards use `encoder.patch`. Empty is that one alone."""
    drop_air: bool = False
    """`mae`, `simmim`: tokens that are nothing but air take no part, neither seen nor predicted;
    the ratio is of the rest."""
    decoder: Literal["full", "cross"] = "full"
    """MAE's decoder: `full` is self-attention over visible and mask tokens; `cross` is attention
    from mask tokens to visible ones alone (CrossMAE, arXiv:2401.14391)."""
    decode_fraction: float = 1.0
    """Share of the masked tokens that is predicted in a step, drawn anew each time; below 1 with
    `decoder: cross` alone."""
    decoder_width: int = 384
    """Width of MAE's decoder."""
    decoder_depth: int = 4
    """Blocks of MAE's decoder, 1 or more."""
    decoder_heads: int = 6
    """Attention heads of MAE's decoder."""
    final_norm: bool = True
    """Whether the encoder's final LayerNorm takes part in the pretext task (MIM-Med3D: no)."""
    contrast_dropout: float = 0.0
    """`mae`, `simmim` with `encoder.embedding per_contrast`: probability, 0 to below 1, that a
    contrast of a crop is masked wholly and must be told from the others; one always stays."""
    masks_per_contrast: bool = False
    """The same: each contrast has masks of its own; hidden is a token that shows none."""
    corruption: float = 0.5
    """`denoising`: standard deviation of the noise on what the encoder sees, in normalised units.
    """
    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)
    guide: GuideConfig = field(default_factory=GuideConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    targets: TargetsConfig = field(default_factory=TargetsConfig)


@dataclass(frozen=True)
class ProbesConfig:
    """Looks at frozen features while pre-training: do they improve? They choose nothing."""

    every: int | None = None
    """Steps between two looks; 0 is never, none is ten times in a run."""
    subjects: int = 12
    """Labelled subjects of the training list, whose crops are looked at: two thirds to fit the
    probes, one third to score them. With 0, or without labels, only rank and reconstruction are
    looked at."""
    crops: int = 24
    """Crops in all; fewer where they are so large that 256 MiB do not hold them."""
    neighbours: int = 10
    """Of the k-nearest-neighbour probe."""
