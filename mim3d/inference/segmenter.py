"""What prediction needs of a run: the network, what its outputs mean, and how its input is made."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from mim3d.config.data import Axis
from mim3d.config.inference import InferenceConfig
from mim3d.data.classes import ClassTable
from mim3d.data.prepare.volume import VolumeRule
from mim3d.data.regions import RegionScheme
from mim3d.foundation.errors import UserError, VolumeError
from mim3d.inference.sliding_window import Predictor, Spacing
from mim3d.inference.windows import Triple
from mim3d.models.any_spacing import AtPatch, patch_for
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.tokens.contrasts import places_of

DEFAULT_WINDOW = 96
"""Side of the window of a module that comes without a run, at most."""
MOST_TIMES = 4
"""Voxels of a patch at a finer spacing, as a multiple of those of training."""
MOST_STRETCH = 1.5
"""Millimetres of a patch of whole voxels, over or under those of training."""
WINDOW_STEP = 16
"""Such a window is a multiple of this, which suits patches and networks that halve four times."""


def output_pairs(
    values: Sequence[tuple[int, int]], classes: ClassTable | None
) -> tuple[tuple[int, int], ...]:
    """Output channels of pairs of label values (left, right); without a table these are they."""
    if classes is None:
        return tuple(values)
    return tuple((classes.values.index(a), classes.values.index(b)) for a, b in values)


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A trained network with all that its run knew.

    Attributes:
        network: `b c x y z` (and spacing, and valid) to logits `b k x y z`.
        window: voxels of a window; the crop of training.
        classes: index, value and name of each output; None leaves indices as they are.
        regions: the outputs are these regions, each with a sigmoid; None is a softmax over classes
            (a sigmoid where there is one output).
        rule: what training did to a volume; None takes voxels as they are.
        channel_names: one a channel of the volumes; None does not check.
        swap_on_flip: pairs of label values (left, right) that change places in a mirror along x.
        device: where windows are predicted and added up.
        precision: `bf16` is autocast.
        pads: whether a volume that is smaller than the window is filled up to it, as training's
            crops were; without, such a window is no larger than the volume.
        spacings_mm: the smallest and the largest spacing of training along x, y, z; None where
            nobody knows.
        flips: axes by which whole volumes were mirrored when it was judged.
    """

    network: nn.Module
    window: Triple
    classes: ClassTable | None = None
    regions: RegionScheme | None = None
    rule: VolumeRule | None = None
    channel_names: tuple[str, ...] | None = None
    swap_on_flip: tuple[tuple[int, int], ...] = ()
    device: torch.device | str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    pads: bool = True
    spacings_mm: tuple[Spacing, Spacing] | None = None
    flips: tuple[Axis, ...] = ()

    @property
    def outputs(self) -> int | None:
        """Channels of the logits, where known."""
        if self.regions is not None:
            return self.regions.count
        return None if self.classes is None else self.classes.count

    @property
    def swaps(self) -> tuple[tuple[int, int], ...]:
        """Pairs of output channels that change places in a mirror along x."""
        if self.regions is not None:
            return ()
        return output_pairs(self.swap_on_flip, self.classes)

    @property
    def takes_some(self) -> bool:
        """Whether it takes volumes with any of its channels, which it knows by name."""
        encoder = getattr(self.network, "encoder", None)
        return isinstance(encoder, VolumeViT) and bool(encoder.contrasts)

    def patch_at(self, spacing_mm: Sequence[float]) -> Triple | None:
        """Voxels of the patch that keeps the millimetres of training in a volume of this spacing.

        Returns:
            None where the patch of training does: within the range of its spacings, or outside by
            less than half a voxel of a patch. None too where the range is not known.
        """
        if not isinstance(self.network, UNETR) or self.spacings_mm is None:
            return None
        own = self.network.encoder.patch
        nearest = [
            min(max(side, low), high)
            for side, low, high in zip(spacing_mm, *self.spacings_mm, strict=True)
        ]
        patch = patch_for(own, nearest, spacing_mm)
        return None if patch == own else patch

    def at_spacing(self, spacing_mm: Sequence[float]) -> Segmenter:
        """The same for volumes of this spacing: patches and window keep their millimetres.

        Args:
            spacing_mm: of the volume as the network gets it.

        Raises:
            ConfigError: the encoder has a convolutional stem, which only knows its own patch.
            VolumeError: no whole number of voxels comes near, or the kernel would be far larger.
        """
        patch, network = self.patch_at(spacing_mm), self.network
        if patch is None or not isinstance(network, UNETR):
            return self
        own = network.encoder.patch
        self._check_reach(patch, own, spacing_mm)
        x, y, z = (
            -(-side // edge) * new for side, edge, new in zip(self.window, own, patch, strict=True)
        )
        return replace(self, network=AtPatch(network, patch), window=(x, y, z))

    def _check_reach(self, patch: Triple, own: Triple, spacing_mm: Sequence[float]) -> None:
        assert self.spacings_mm is not None  # else there is no patch
        for new, edge, side, low, high in zip(
            patch, own, spacing_mm, *self.spacings_mm, strict=True
        ):
            covers, covered = new * side, edge * min(max(side, low), high)
            if new > MOST_TIMES * edge or not 1 / MOST_STRETCH <= covers / covered <= MOST_STRETCH:
                raise VolumeError(
                    f"its voxels of {side:.3g} mm are too far from those of training "
                    f"({low:.3g} to {high:.3g} mm) for patches of {edge} voxels to follow",
                    remedy="resample it; `--inference.patch fixed` predicts it poorly",
                    code="spacing",
                )

    @property
    def can_follow(self) -> bool:
        """Whether its patches may have another size than in training."""
        encoder = getattr(self.network, "encoder", None)
        return isinstance(encoder, VolumeViT) and encoder.config.stem != "convolutional"

    def for_channels(self, names: Sequence[str]) -> Segmenter:
        """The same for volumes of these channels.

        Args:
            names: of the volumes' channels, in their order.

        Raises:
            UserError: the run was not trained on one of them, or takes no others than all.
        """
        known = self.channel_names
        if known is None or tuple(names) == known:
            return self
        if not self.takes_some:
            raise UserError(
                f"the run takes all its channels in their order, {_listed(known)}, and not "
                f"{_listed(names)}",
                remedy="leave `channels` out; a run with `--encoder.embedding per_contrast` takes "
                "any of them",
                code="channels",
            )
        places = places_of(
            names, known, "the volume", whose="the run",
            remedy="say with `--channels` what each channel is, by these names",
        )  # fmt: skip
        rule = self.rule
        if rule is not None and rule.modalities is not None:
            modalities = tuple(rule.modalities[place] for place in places)
            rule = replace(rule, modalities=modalities)
        return replace(self, channel_names=tuple(names), rule=rule)

    def check_channels(self, channels: int) -> None:
        """Raises `UserError` where a volume has other channels than training had."""
        if self.channel_names is not None and channels != len(self.channel_names):
            remedy = "give all of them, in this order, as one file or one case"
            if self.takes_some:
                remedy = "say with `--channels` which of them it has, in its order"
            raise UserError(
                f"the volume has {channels} channel(s), the run expects {len(self.channel_names)}: "
                f"{_listed(self.channel_names)}",
                remedy=remedy,
                code="channels",
            )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def with_mirrors(models: Sequence[Segmenter], config: InferenceConfig) -> InferenceConfig:
    """The config with the mirrors that the runs were judged with, where it names none.

    Raises:
        UserError: they were judged with different ones.
    """
    if config.flips is not None:
        return config
    judged = [model.flips for model in models]
    if len({frozenset(axes) for axes in judged}) > 1:
        said = ", ".join(f"[{','.join(axes)}]" for axes in judged)
        raise UserError(
            f"the runs were judged with mirrors along different axes: {said}",
            remedy="say which to take, for example `--inference.flips x,y`, or "
            "`--inference.flips []` for none",
            code="mirrors-differ",
        )
    return replace(config, flips=judged[0] if judged else ())


def segmenter_of(network: nn.Module, size: Triple, window: Triple | None) -> Segmenter:
    """A module by itself: voxels as they are in, class indices out.

    Args:
        network: any module; `spacing_mm` and `valid` are handed to it if its `forward` has them.
        size: voxels of the volume.
        window: voxels of a window; None takes up to 96 along each axis.
    """
    x, y, z = (min(DEFAULT_WINDOW, -(-side // WINDOW_STEP) * WINDOW_STEP) for side in size)
    first = next(network.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    return Segmenter(network, window or (x, y, z), device=device)


@contextlib.contextmanager
def predicting(segmenter: Segmenter) -> Iterator[Predictor]:
    """The network as a predictor: in eval mode, without gradients, in its precision.

    The mode that each of its parts was in is restored afterwards.
    """
    network = segmenter.network.to(segmenter.device)
    encoder = getattr(network, "encoder", None)
    if isinstance(encoder, VolumeViT) and segmenter.channel_names is not None:
        encoder.carry(segmenter.channel_names)
    device = torch.device(segmenter.device).type
    accepted = _accepted(network)
    training = [module for module in network.modules() if module.training]

    def predictor(voxels: Tensor, spacing_mm: Tensor, valid: Tensor | None) -> Tensor:
        given = {"spacing_mm": spacing_mm, "valid": valid}
        with torch.autocast(device, torch.bfloat16, enabled=segmenter.precision == "bf16"):
            logits: Tensor = network(voxels, **{name: given[name] for name in accepted})
        return logits

    network.eval()
    try:
        with torch.inference_mode():
            yield predictor
    finally:
        for module in training:
            module.training = True


def _accepted(network: nn.Module) -> tuple[str, ...]:
    """Which of our two further arguments the network's `forward` takes by name."""
    inner = getattr(network, "_orig_mod", network)  # torch.compile's wrapper takes anything
    parameters = inspect.signature(inner.forward).parameters
    return tuple(name for name in ("spacing_mm", "valid") if name in parameters)
