"""All targets, by the config's word."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mim3d.config.objective import PretextConfig
from mim3d.foundation.errors import ConfigError
from mim3d.models.vit import VolumeViT
from mim3d.objectives.targets.base import Target
from mim3d.objectives.targets.features import Features
from mim3d.objectives.targets.gradients import Gradient, Hog
from mim3d.objectives.targets.scales import Scales
from mim3d.objectives.targets.spectral import Spectrum
from mim3d.objectives.targets.voxels import Voxels
from mim3d.objectives.targets.windows import Windows

Maker = Callable[[VolumeViT, PretextConfig], Target]


def _voxels(encoder: VolumeViT, config: PretextConfig, *, kind: str) -> Target:
    return Voxels(encoder.channels, kind)


def _scales(encoder: VolumeViT, config: PretextConfig) -> Target:
    return Scales(encoder.channels, encoder.patch, config.targets.scales)


def _gradient(encoder: VolumeViT, config: PretextConfig) -> Target:
    return Gradient(encoder.channels)


def _hog(encoder: VolumeViT, config: PretextConfig) -> Target:
    return Hog(encoder.channels, encoder.patch, config.targets.hog_cells)


def _spectrum(encoder: VolumeViT, config: PretextConfig) -> Target:
    return Spectrum(encoder.channels, encoder.patch, config.targets.slope)


def _windows(encoder: VolumeViT, config: PretextConfig) -> Target:
    return Windows(encoder.channels, config.targets.windows_hu, config.targets.prepared_hu)


def _features(encoder: VolumeViT, config: PretextConfig) -> Target:
    return Features(encoder, config.targets.blocks, config.teacher.momentum)


TARGETS: dict[str, Maker] = {
    "raw": partial(_voxels, kind="raw"),
    "normalised": partial(_voxels, kind="normalised"),
    "normalised_per_channel": partial(_voxels, kind="normalised_per_channel"),
    "multiscale": _scales,
    "gradient": _gradient,
    "hog": _hog,
    "spectral": _spectrum,
    "windows": _windows,
    "teacher": _features,
}
"""`objective.target` to what makes it for an encoder."""
ONE_PATCH = ("multiscale", "hog", "spectral")
"""Targets with a number of values that goes with the size of a patch."""
HIDING = ("mae", "simmim")
"""Pretext tasks that hide what the teacher sees."""


def make_target(encoder: VolumeViT, config: PretextConfig) -> Target:
    """The target of a pretext task that predicts what it does not see.

    Args:
        encoder: as it is drawn or loaded: a teacher begins as its copy.
        config: the pretext task.

    Raises:
        ConfigError: another word, or settings that do not go together.
    """
    check_target(config)
    return TARGETS[config.target](encoder, config)


def check_target(config: PretextConfig) -> None:
    """Refuses settings of a target that do not go together.

    Raises:
        ConfigError: as said.
    """
    if config.target not in TARGETS:
        raise ConfigError(f"`objective.target {config.target}` is not one of {', '.join(TARGETS)}")
    if config.patches and config.target in ONE_PATCH:
        raise ConfigError(
            f"`objective.patches` is not for `objective.target {config.target}`, whose values go "
            "with one size of patch",
            remedy="use `--objective.target raw` or `normalised`, or leave `objective.patches` out",
            code="patches",
        )
    if config.target == "teacher" and config.name not in HIDING:
        raise ConfigError(
            f"`objective.target teacher` is not for `objective.name {config.name}`",
            remedy="use `--objective.name mae` or `simmim`",
            code="target",
        )
