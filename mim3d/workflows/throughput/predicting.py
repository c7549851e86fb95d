"""From a network to a label map, and from label maps to numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mim3d.config.inference import InferenceConfig
from mim3d.config.task import DecoderConfig
from mim3d.data.phantom import PhantomRule, make_volume
from mim3d.data.volume import Volume
from mim3d.evaluation.cases import score_case
from mim3d.evaluation.overlap import Structure
from mim3d.inference.predict import predict_volume
from mim3d.inference.segmenter import Segmenter
from mim3d.inference.windows import window_starts
from mim3d.workflows.throughput import monai
from mim3d.workflows.throughput.inputs import CLASSES, Triple, synthetic
from mim3d.workflows.throughput.race import require
from mim3d.workflows.throughput.stage import Scene, Stage
from mim3d.workflows.throughput.steps import segmenter
from mim3d.workflows.throughput.work import Work, forward_flop

SLIDING = InferenceConfig(overlap=0.5)
"""What MONAI's users take."""
SPACING = (1.0, 1.0, 1.5)
METRICS_BYTES = 2
"""Of a voxel that evaluation must read: one of each label map."""


def window_stage(scene: Scene) -> Iterator[Stage]:
    """Labels of a volume in memory, by windows that overlap by half, gaussian weights."""
    side, preset = scene.scale.segmenter_side, scene.scale.segmenter
    window = (side, side, side)
    x, y, z = (min(length, side + side // 2) for length in scene.scale.volume)
    size: Triple = (x, y, z)
    voxels = synthetic(size, 0)[None]
    volume = Volume.from_array(voxels.numpy(), np.eye(4))
    windows = len(window_starts(size, window, SLIDING.overlap))

    same = monai.published_segmenter(preset, side, CLASSES).to(scene.device).eval()
    theirs, equality = None, "-"
    if scene.against_monai:
        theirs = _their_windows(same, voxels.to(scene.device), window)
        found = _predictor(same, volume, window, scene.device, bf16=False)(0)
        share = float((theirs(0).cpu().numpy() == found).mean())
        require(share > 0.999, f"labels of windows, equal in {share:.2%}")
        equality = f"{share:.2%} of labels in fp32"
    half = segmenter(preset, DecoderConfig("half"), CLASSES).to(scene.device).eval()
    of = f"{preset}/16, {windows} windows of {side}³"
    networks = (("half", half, monai.OTHER_NETWORK if theirs else "-"), ("unetr", same, equality))
    for name, network, equal in networks:
        flop = windows * forward_flop(network, torch.zeros(1, 1, *window))
        yield Stage(
            "window", f"`{name}` {of}",
            _predictor(network, volume, window, scene.device, bf16=scene.bf16),
            work=Work(flop, "bf16" if scene.bf16 else "fp32"), theirs=theirs, equality=equal,
        )  # fmt: skip


def evaluate_stage(scene: Scene) -> Iterator[Stage]:
    """Dice, HD95 and normalised surface Dice of the organs of a phantom, one voxel off."""
    _, reference = make_volume(0, 0, PhantomRule(scene.scale.volume, SPACING, modality="ct"))
    prediction = np.roll(reference, 1, axis=0)
    classes = int(reference.max())
    structures = [Structure(f"organ {value}", (value,)) for value in range(1, classes + 1)]

    def ours(_: int) -> NDArray[np.float64]:
        scores = score_case(reference, prediction, SPACING, structures, case_id="phantom")
        return np.array([(one.dice, one.hd95_mm, one.nsd) for one in scores], np.float64)

    theirs: Callable[[int], NDArray[np.float64]] | None = None
    equality = "-"
    if scene.against_monai:
        theirs = _their_metrics(reference, prediction, classes)
        apart = float(np.abs(ours(0) - theirs(0)).max())
        require(apart < 1e-4, f"metrics, which differ by {apart:.1e}")
        equality = f"within {apart:.0e}" if apart else "equal"
    size = " x ".join(map(str, scene.scale.volume))
    yield Stage(
        "evaluate", f"{classes} organs of {size}: Dice, HD95, NSD", ours,
        work=Work(METRICS_BYTES * reference.size, "read"), theirs=theirs, equality=equality,
    )  # fmt: skip


def _predictor(
    network: torch.nn.Module, volume: Volume, window: Triple, device: torch.device, *, bf16: bool
) -> Callable[[int], NDArray[Any]]:
    made = Segmenter(network, window, device=device, precision="bf16" if bf16 else "fp32")
    return lambda _: predict_volume(made, volume, SLIDING).voxels[0]


def _their_windows(
    network: torch.nn.Module, voxels: Tensor, window: Triple
) -> Callable[[int], Tensor]:
    """MONAI's `sliding_window_inference` in fp32, four windows a batch, to class indices."""
    infer = monai.room("inferers").sliding_window_inference

    @torch.inference_mode()
    def call(_: int) -> Tensor:
        logits: Tensor = infer(
            voxels[None], window, 4, network, overlap=SLIDING.overlap, mode=SLIDING.weights
        )
        return logits[0].argmax(0)

    return call


def _their_metrics(
    reference: NDArray[np.uint8], prediction: NDArray[np.uint8], classes: int
) -> Callable[[int], NDArray[np.float64]]:
    """MONAI's three metrics on one-hot volumes, made anew as from two files."""
    metrics, one_hot = monai.room("metrics"), monai.room("networks.utils").one_hot

    def call(_: int) -> NDArray[np.float64]:
        found = torch.from_numpy(prediction)[None, None], torch.from_numpy(reference)[None, None]
        ours, true = (one_hot(labels, classes + 1) for labels in found)
        kept = {"include_background": False}
        dice = metrics.compute_dice(ours, true, **kept)
        hd95 = metrics.compute_hausdorff_distance(
            ours, true, percentile=95, spacing=SPACING, **kept
        )
        nsd = metrics.compute_surface_dice(ours, true, [1.0] * classes, spacing=SPACING, **kept)
        return torch.stack([dice[0], hd95[0], nsd[0]], dim=1).double().numpy()

    return call
