"""The sections that training, prediction and evaluation share. `verbs` composes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Triple = tuple[int, int, int]
Axis = Literal["x", "y", "z"]
MaskShape = Literal["uniform", "block", "tube", "slab"]
AdaptedMap = Literal["qkv", "proj", "mlp"]


@dataclass(frozen=True)
class DataConfig:
    """Which crops are drawn from which store."""

    store: str | None = None
    """Folder made by `mim3d prepare`."""
    stores: tuple[str, ...] = ()
    """Pre-training: several stores in place of `store`, with crops of all of them in one order.
    They have equally many channels; each keeps its own spacing and normalisation."""
    store_weights: Literal["equal"] | None = None
    """With `stores`, how often each is drawn from: none by its number of cases, so that every case
    is seen equally often; `equal` as often as each other one."""
    crop_size: Triple = (96, 96, 96)
    """Voxels of a crop along x, y, z. Volumes that are smaller are padded."""
    crop_sizes: tuple[Triple, ...] = ()
    """Fine-tuning, and pre-training by `mae` and `simmim`: sizes that the crops of a step take in
    turn, in place of `crop_size`, which is left to what validation looks at and to windows. Packed,
    they cost what they hold."""
    placement: Literal["uniform", "body", "label"] = "uniform"
    """Where crops lie: anywhere; around a voxel of the body; or around a labelled voxel in
    `label_share` of the cases and anywhere in the rest."""
    label_share: float = 0.5
    """With `placement: label`, the share of crops around a labelled voxel, 0 to 1. The class is
    drawn first, so that small structures are seen as often as large ones."""
    overhang: Triple = (0, 0, 0)
    """Voxels by which a crop may reach beyond the volume; shifts volumes that fit in one crop. At
    least half of what could be seen stays."""
    labels: int | float | None = None
    """Labelled subjects to train on: a number (`5`) or a fraction (`0.1`, rounded up, at least 2);
    none is all. The draws of one seed are nested."""
    subjects: int | float | None = None
    """Subjects of the training list that pre-training sees, as `labels` counts them; none is all.
    The draws of one seed are nested."""
    fold: int | None = None
    """Validate on this fold of 5 (0 to 4) of all labelled subjects instead of the stored list."""
    inner_fold: int | None = None
    """Judge on this fifth (0 to 4) of the training subjects instead of the validation list, and
    train on the rest: for choosing rates and the like."""
    selection_fraction: float = 0.0
    """Share of the training subjects kept aside to choose the `best` checkpoint by. With 0 nothing
    is chosen and `best` is the last one: the validation list only reports."""
    origin_grid: int | Triple | None = None
    """Voxels between the places where crops may begin, with `placement: uniform`; besides them the
    faces of the volume. 32, the side of a store's chunk, halves the cost of reading; none is free.
    """
    feed: Literal["store", "resident"] = "store"
    """`store` reads each crop from disk; `resident` keeps whole decoded volumes in memory."""
    resident_on: Literal["auto", "host", "device"] = "auto"
    """Where `resident` keeps volumes: in the machine's memory, or in that of the training device,
    which then cuts and augments whole batches at once. `auto` is the device if it is a GPU."""
    window_cases: int | None = None
    """Cases that crops are drawn from at a time, so that few volumes must be in memory; none is
    all. A multiple of the batch size lets each of several devices hold its own share."""
    max_crops_per_visit: int | None = None
    """With `window_cases`: crops drawn from a case before another takes its place, each visit."""
    workers: int = 0
    """Processes that cut and augment crops, or draw their numbers where a device does that; 0 does
    it in the training process."""
    window_hu: tuple[float, float] | None = None
    """Intensity window for CT, in HU, in place of the one noted in the store."""
    ignore_label: int | None = None
    """Value in label files that is left out of loss and metrics."""


@dataclass(frozen=True)
class AugmentationConfig:
    """What happens to a crop. Everything is off by default; recipes name what they use."""

    flip_axes: tuple[Axis, ...] = ()
    """Axes that may be mirrored. Sided labels need `swap_on_flip`."""
    flip_probability: float = 0.5
    """Probability of a mirror image, for each axis by itself."""
    swap_on_flip: tuple[tuple[int, int], ...] = ()
    """Pairs of label values (left, right) that change places when x is mirrored."""
    turn_plane: tuple[Axis, Axis] | None = None
    """Plane of turns by 90, 180 or 270 degrees; the crop must be square in it."""
    turn_probability: float = 0.0
    """Probability of such a turn."""
    affine_probability: float = 0.0
    """Probability of rotation and zoom together, by one trilinear interpolation."""
    rotation_degrees: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Largest rotation around x, y and z."""
    zoom: float = 0.0
    """Largest relative change of size, the same along all axes: 0.1 is 0.9 to 1.1."""
    stretch: float = 0.0
    """Largest further change of size, for each axis by itself."""
    rescale: tuple[float, float] | None = None
    """Smallest and largest factor of the physical scale at which every crop is read, drawn evenly
    in its logarithm: at 2 the same number of voxels covers twice as many millimetres, smoothed as
    larger voxels are; the encoder is told by the spacing. None reads as stored."""
    rescale_axes: Literal["all", "each", "z"] = "all"
    """One factor for all axes, one for each by itself, or one along z alone, as thicker slices."""
    scale_intensity: float = 0.0
    """Largest relative change of contrast."""
    scale_intensity_probability: float = 1.0
    """Probability of a change of contrast."""
    shift_intensity: float = 0.0
    """Largest offset, in normalised units."""
    shift_intensity_probability: float = 1.0
    """Probability of an offset."""
    gamma: float = 0.0
    """Largest exponent of a gamma curve, as a natural logarithm: 0.3 is 0.74 to 1.35."""
    gamma_probability: float = 0.5
    """Probability of a gamma curve."""
    noise: float = 0.0
    """Largest standard deviation of Gaussian noise, in normalised units."""
    noise_probability: float = 0.3
    """Probability of noise."""
    blur: float = 0.0
    """Largest standard deviation of a Gaussian blur, in voxels."""
    blur_probability: float = 0.3
    """Probability of a blur."""


@dataclass(frozen=True)
class EncoderConfig:
    """The vision transformer."""

    preset: Literal["tiny", "small", "base", "large"] = "base"
    """Width x depth x heads: tiny 192 x 12 x 3, small 384 x 12 x 6, base 768 x 12 x 12,
    large 1024 x 24 x 16."""
    width: int | None = None
    """Width of a token, in place of the preset's."""
    depth: int | None = None
    """Number of blocks, in place of the preset's."""
    heads: int | None = None
    """Attention heads, in place of the preset's."""
    mlp_ratio: float = 4.0
    """Width of the MLP as a multiple of the token's."""
    patch: Triple = (16, 16, 16)
    """Voxels behind one token along x, y, z; each a power of two where a UNETR is built on it."""
    stem: Literal["patches", "convolutional"] = "patches"
    """From voxels to tokens: one linear map of each patch; or convolutions down to the token grid.
    While tokens are masked these stay inside visible patches, so that nothing leaks; afterwards
    they run over the whole crop. Needs patches of powers of two, 4 or more along an axis."""
    stem_width: int = 16
    """Channels of the convolutional stem at its finest level, doubled with each coarser one; 32
    suits `base` and `large`."""
    channels: int | None = None
    """Channels of a volume; none takes the store's."""
    embedding: Literal["joint", "per_contrast"] = "joint"
    """From the channels of a patch to its token: one map of all of them together; or one of each
    contrast with a vector of its own, averaged over those that are there, so that the encoder takes
    any of the contrasts it knows. Needs `stem patches`."""
    contrasts: tuple[str, ...] = ()
    """Names of the contrasts that `embedding: per_contrast` knows; empty takes the store's. Stores
    and volumes are matched to them by name and may lack some."""
    positions: Literal["learned", "sincos_index", "sincos_mm", "rotary_mm", "rotary_index"] = (
        "sincos_mm"
    )
    """Learned table; sine-cosine of the token's index; sine-cosine or rotary of the token's centre
    in millimetres from the crop's centre; or rotary of the same in voxels, whatever the spacing."""
    wavelengths_mm: tuple[float, float] = (8.0, 800.0)
    """Shortest and longest wavelength of positions in millimetres; of `rotary_index` in voxels."""
    learned_grid: Triple | None = None
    """Token grid of the learned table; other grids interpolate it. None takes the crop's."""
    default_spacing_mm: tuple[float, float, float] | None = None
    """Spacing where a caller gives none; training writes the cohort's median here."""
    class_token: bool = False
    """One more token that gathers the volume; it has no position."""
    registers: int = 0
    """Number of further learned tokens without position (Darcet et al., arXiv:2309.16588)."""
    qkv_bias: bool = True
    """Bias of the query, key and value map."""
    drop_path: float = 0.0
    """Stochastic depth: rate of the last block, growing linearly from 0."""
    attention_dropout: float = 0.0
    """Dropout of attention weights, in training only."""
    layer_scale: float | None = None
    """Initial LayerScale of each residual branch; none leaves it out."""
    initialisation: Literal["xavier", "normal"] = "xavier"
    """Linear layers: Xavier-uniform, or truncated normal with deviation 0.02."""
    checkpointing: bool = False
    """Recompute blocks in the backward pass: about a third more time for much less memory."""


@dataclass(frozen=True)
class ContrastConfig:
    """What the objectives that compare views of a crop share, and what each weighs."""

    min_overlap: float = 0.6
    """Smallest share of a crop's voxels that both views see, 0 to 1; 1 is the same place."""
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

    by: Literal["none", "body", "map", "attention", "loss"] = "none"
    """Weight of a token: its share of voxels that are not air; or that the store's label map has in
    a class other than 0, where every case needs what is asked for. Or what training has found at
    its place in the volume: the attention it got in the last block (MSMAE), or the error of its
    reconstruction (AnatoMask); both for `mae` and `simmim`."""
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
    visible patches'."""
    source: Literal["network", "teacher"] = "network"
    """`loss`: the network's own errors, which cost nothing; or those of its running mean
    (`teacher.momentum`), which cost a forward pass in each step that tells."""


@dataclass(frozen=True)
class PretextConfig:
    """The pretext task: what the encoder learns from without labels."""

    name: Literal[
        "mae", "simmim", "smit", "autoencoder", "denoising", "simclr", "mocov3", "byol", "vicreg",
        "dino", "voco",
    ] = "mae"  # fmt: skip
    """`mae` encodes visible tokens only and decodes with a small transformer (arXiv:2111.06377);
    `simmim` encodes mask tokens too and predicts with one linear layer (arXiv:2111.09886); `smit`
    adds self-distillation to it (arXiv:2205.10342); `autoencoder` and `denoising` reconstruct every
    voxel, from the crop or from one with noise; the others compare views of a crop: `simclr`
    (arXiv:2002.05709), `mocov3` (arXiv:2104.02057), `byol` (arXiv:2006.07733), `vicreg`
    (arXiv:2105.04906), `dino` (arXiv:2104.14294), `voco` (arXiv:2402.17300)."""
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
    probes, one third to score them. Without labels only rank and reconstruction are looked at."""
    crops: int = 24
    """Crops in all; fewer where they are so large that 256 MiB do not hold them."""
    neighbours: int = 10
    """Of the k-nearest-neighbour probe."""


@dataclass(frozen=True)
class SegmentationConfig:
    """The supervised task: a class, or overlapping regions, for every voxel."""

    loss: Literal["dice_ce", "dice", "dice_focal", "tversky", "generalised_dice"] = "dice_ce"
    """Dice with cross-entropy (closed form), Dice alone, or MONAI's loss of that name."""
    squared: bool = False
    """Squares in the denominator of Dice."""
    smooth_numerator: float = 1e-5
    """Added to the numerator of Dice."""
    smooth_denominator: float = 1e-5
    """Added to the denominator of Dice."""
    batch_dice: bool = False
    """Sum over the batch before the quotient is taken."""
    include_background: bool = True
    """Whether class 0 counts in Dice."""
    contrast_dropout: float = 0.0
    """With `encoder.embedding per_contrast`: probability, 0 to below 1, that a contrast of a
    training crop is left out, so that the decoder too learns to do without; one always stays."""
    regions: str | None = None
    """Scheme of overlapping regions with a sigmoid each, for example `brats2021`; none is one class
    a voxel with a softmax. `docs/reference.md` lists the schemes."""


@dataclass(frozen=True)
class ClassificationConfig:
    """The tasks of whole volumes: a class, or a number, for each."""

    target: str | tuple[str, ...] | None = None
    """Which of the store's targets, or several, as a list or parted by commas; none takes the
    store's only one."""
    loss: Literal["ce", "bce", "l1", "l2", "smooth_l1"] | None = None
    """Classes: `ce` is a softmax over those of each target; `bce` a sigmoid for each target, of
    which several may be true at once (0 and 1 alone). Numbers: error in deviations of the training
    cases. None is `ce` or `smooth_l1`."""
    pool: Literal["mean", "class_token"] = "mean"
    """What stands for a volume: the mean of its tokens, or the class token, which the encoder must
    have."""
    dropout: float = 0.0
    """Dropout of that before the last linear map, in training only, 0 to below 1."""
    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes, 0 to below 1."""
    mixup: float = 0.0
    """Above 0, crops are blended with others of their step, voxels and targets alike, by shares
    from the Beta distribution with both parameters this (arXiv:1710.09412); 0.2 is usual."""
    class_weights: Literal["none", "balanced"] | tuple[float, ...] = "none"
    """Weight of each class in the loss: all 1; inversely to how many training cases have it; or
    these, in the order of the classes."""
    keep: float = 1.0
    """Share of the tokens that the encoder sees of a training crop, drawn anew each time."""
    keep_at_test: bool = False
    """See only so many when predicting too, the same places of every window."""


@dataclass(frozen=True)
class DecoderConfig:
    """From hidden states to logits."""

    name: Literal["unetr", "half", "interpolate", "hybrid", "light"] = "unetr"
    """`unetr` is UNETR's decoder with skips up to full resolution; `half` ends skips and
    convolutions at half resolution; `interpolate` is `unetr` with trilinear interpolation and
    convolutions in place of transposed ones; `hybrid` adds a small convolutional path for the raw
    voxels down to the token grid; `light` has no skips and no raw voxels."""
    taps: tuple[int, int, int, int] | None = None
    """Blocks passed where hidden states are taken; none is L/4, L/2, 3L/4, L."""
    tap_norm: Literal["none", "layer"] = "layer"
    """LayerNorm on the inner taps, or the residual stream as it is (as published)."""
    feature_size: int = 16
    """Channels at full resolution; doubled at each level."""
    dropout: float = 0.0
    """Dropout of whole channels before the logits, in training only."""
    direct: Literal["none", "random", "ridge", "linear"] = "none"
    """A linear path from the last hidden states to logits beside the decoder. It starts at random,
    or from a probe that is fitted to the labels before the first step: `ridge` in closed form,
    `linear` from there on cross-entropy and Dice."""
    deep_supervision: int = 0
    """Coarser levels of `unetr`, `half` and `interpolate` that are trained on the labels too, each
    with half the weight of the level above it; they take no part in prediction."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule."""

    lr: float = 1e-3
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of AdamW's two moments."""
    weight_decay: float = 0.05
    """Decoupled weight decay; biases, norms, positions and tokens have none."""
    layer_decay: float = 1.0
    """Factor of the rate from each block to the one below it; 1 is none."""
    encoder_lr: float = 1.0
    """Factor of the whole encoder's rate."""
    freeze_encoder_steps: int = 0
    """Steps at the start in which the encoder does not learn."""
    adapt: Literal["full", "frozen", "lora"] = "full"
    """Fine-tuning: what of the encoder learns. All of it; nothing, so that its features stay as the
    initial run has them; or low-rank adapters in its blocks beside maps that stay
    (arXiv:2106.09685), which are added to these in what the run writes."""
    lora_rank: int = 8
    """`adapt: lora`: rank of the update of a map; queries, keys and values have one each."""
    lora_scale: float = 1.0
    """`adapt: lora`: factor of the update, the paper's alpha / r."""
    lora_on: tuple[AdaptedMap, ...] = ("qkv", "proj", "mlp")
    """`adapt: lora`: maps of a block that have adapters: to queries, keys and values; back from the
    heads; and both of the MLP."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up."""
    final_lr: float = 0.0
    """Last rate of the cosine as a share of the peak."""
    clip: float | None = 1.0
    """Largest norm of the gradient; none does not clip."""
    ema: float = 0.0
    """Decay of the running mean of the weights, which is what is used afterwards; 0 is off."""


@dataclass(frozen=True)
class TrainingConfig:
    """The loop."""

    steps: int = 10_000
    """Optimiser updates."""
    batch_size: int = 8
    """Crops of one update, over all devices and accumulation steps."""
    accumulation: int = 1
    """Parts in which a device works through its share of the batch."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` is bf16 autocast where the device does bf16 in hardware, else fp32."""
    float32_matmul: Literal["highest", "high", "medium"] = "highest"
    """How exact fp32 matrix products are: torch's `set_float32_matmul_precision`. Below `highest`
    a GPU rounds to TF32; `medium` takes a CPU's other library, 1.2 to 2 times as fast at an error
    of 4e-7 where it was measured, but rounds to bf16 on CPUs with AMX."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several processes share a run: `ddp` keeps all weights in each, `fsdp` (FSDP2) a part in
    each, for models that do not fit; `auto` is `ddp`. A run may go on with another one."""
    threads: int | None = None
    """Threads of a CPU process; none leaves torch's choice."""
    compile: bool = False
    """Compile the model with `torch.compile`: worth it for long runs."""
    seed: int = 0
    """Names the run: crops, masks, augmentation and initialisation follow from it."""
    validate_every: int = 0
    """Steps between validations; 0 is only at the end."""
    validate_at: tuple[int, ...] = ()
    """Further steps at which to validate, for example in a logarithmic grid; 0 is before the first
    update."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 20
    """Steps between lines of the log."""
    pictures_every: int = 1000
    """Steps between reconstruction panels; 0 is none."""
    collective_timeout_seconds: float = 120.0
    """How long one of several processes waits for the others once the first steps are made; longer
    where they are of unequal speed. While the first one validates or writes they wait patiently."""
    stop_on_nonfinite: int = 10
    """Consecutive steps with a non-finite loss or gradient after which the run stops."""


@dataclass(frozen=True)
class InferenceConfig:
    """The sliding window."""

    window: Triple | None = None
    """Voxels of a window; none takes the training's crop."""
    patch: Literal["auto", "fixed", "by_spacing"] = "auto"
    """Voxels behind a token: `fixed` is as in training; `by_spacing` is, in a volume whose spacing
    training never saw, as many as cover about the millimetres of training: the embedding's kernel
    is resized, and the window of training with it (one named here is in the volume's voxels).
    `auto` is `by_spacing` where the encoder can."""
    overlap: float = 0.5
    """Share of a window that the next one covers again, 0 to below 1."""
    weights: Literal["gaussian", "constant"] = "gaussian"
    """How overlapping windows are averaged."""
    flips: tuple[Axis, ...] = ()
    """Axes of test-time mirroring; all their combinations are averaged."""
    windows_per_batch: int = 4
    """Windows, or mirrored copies of them, that pass the network at once."""
    skip_air: bool = True
    """Windows without any voxel of the body do not pass the network: a voxel that only they cover
    is background, one that others cover too has the mean of the others."""
    save_probabilities: bool = False
    """Also write `<name>_probabilities.nii.gz`, float32, 4D in class order."""
    largest_component: bool = False
    """Keep only the largest connected component (26 neighbours) of each class."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Metrics and their intervals."""

    nsd_tolerance_mm: float = 1.0
    """Distance up to which two surfaces agree, for the normalised surface Dice."""
    resamples: int = 2000
    """Bootstrap resamples, over subjects where they are known."""
    confidence: float = 0.95
    """Level of the intervals."""
    allow_missing: bool = False
    """Score a label without prediction as missed instead of stopping."""
