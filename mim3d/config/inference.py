"""Windows over whole volumes, and what is measured of the answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mim3d.config.data import Axis, Triple


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
    flips: tuple[Axis, ...] | None = None
    """Axes of test-time mirroring; all their combinations are averaged. Where it is not
    set, those that the run was judged with."""
    windows_per_batch: int = 4
    """Windows, or mirrored copies of them, that pass the network at once."""
    skip_air: bool = True
    """Windows without any voxel of the body do not pass the network: a voxel that only they cover
    is background, one that others cover too has the mean of the others."""
    save_probabilities: bool = False
    """Also write `<name>_probabilities.nii.gz`, float32, 4D in class order."""
    largest_component: bool = False
    """Keep only the largest connected component (26 neighbours) of each class."""

    @property
    def mirrored(self) -> tuple[Axis, ...]:
        """Axes to mirror by; none where nothing is said, and no run says it."""
        return self.flips or ()


def unmirrored() -> InferenceConfig:
    """The default of trainings, which judge without mirrors."""
    return InferenceConfig(flips=())


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
