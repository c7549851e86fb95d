"""The config of `mim3d convert`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mim3d.config.encoder import EncoderConfig

LayoutName = Literal[
    "auto", "plain", "monai-vit", "monai-unetr", "monai-mae", "monai-vitautoenc", "mim-med3d",
    "selfmedmae", "facebook-mae",
]  # fmt: skip


@dataclass(frozen=True)
class ConversionConfig:
    """Which tensors of a foreign file are taken, and what they are called."""

    layout: LayoutName = "auto"
    """Whose checkpoint it is: `auto` goes by its keys; `plain` has our own keys, perhaps by a key
    map. The others are renamed and reshaped, and say which encoder they are."""
    take: Literal["auto", "encoder"] = "auto"
    """Of a whole UNETR: `auto` takes its decoder too where it can; `encoder` leaves it out."""
    inflate: Literal["z"] | None = None
    """Two-dimensional weights: `z` repeats the kernel over as many slices as `encoder.patch` is
    deep, and divides by them; none makes patches one voxel thick."""
    section: str | None = None
    """Table of the checkpoint that holds the weights, by its keys with dots between them:
    `state_dict`, `teacher.backbone`; none takes the only one there is."""
    key_map: str | None = None
    """YAML or JSON file that says how keys are changed: `strip`, `drop`, `rename`; before the
    layout is applied."""
    max_gib: float = 16.0
    """Largest file that is opened."""
    seconds: float = 600.0
    """How long the process that reads it may take."""


@dataclass(frozen=True)
class ForeignSegmenterConfig:
    """What the weights of a whole UNETR do not say: the meaning of its outputs and its input."""

    modality: Literal["ct", "mr", "other"] | None = None
    """What it was trained on; has to be said for a run that `predict` takes. CT needs `window_hu`
    or `intensity_range` too."""
    classes: tuple[str, ...] = ()
    """Names of its outputs in their order, background first; empty calls them `label 1` and so on.
    Output i is the value i of label maps."""
    regions: str | None = None
    """Region scheme of overlapping outputs (`brats2021`), in place of classes."""
    channels: tuple[str, ...] = ()
    """Names of its input's channels in their order; empty calls them `channel 1` and so on."""
    spacing_mm: tuple[float, float, float] | None = None
    """Spacing that volumes are resampled to; none keeps each volume's own."""
    window_hu: tuple[float, float] | None = None
    """CT: this window becomes 0 to 1."""
    intensity_range: tuple[float, float] | None = None
    """These two values become 0 and 1, in place of window and percentiles."""
    clip_percentiles: tuple[float, float] = (0.5, 99.5)
    """MR and other: clip to these percentiles of the body, then mean 0 and deviation 1 over it."""
    crop_to_body: bool = True
    """Cut away air around the body."""


@dataclass(frozen=True)
class ConvertConfig:
    """From another program's checkpoint to weights without code."""

    convert: ConversionConfig = field(default_factory=ConversionConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    segmenter: ForeignSegmenterConfig = field(default_factory=ForeignSegmenterConfig)
