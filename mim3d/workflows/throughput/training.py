"""Steps of a training on crops in memory: pre-training, and fine-tuning of a segmenter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig
from mim3d.config.task import DecoderConfig, SegmentationConfig
from mim3d.data.batch import CropBatch
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Task
from mim3d.objectives.mae import MaskedAutoencoder
from mim3d.objectives.segmentation import Segmentation
from mim3d.objectives.simmim import SimMIM
from mim3d.workflows.throughput import monai
from mim3d.workflows.throughput.inputs import CLASSES, batches
from mim3d.workflows.throughput.stage import Scene, Stage
from mim3d.workflows.throughput.steps import our_step, segmenter, step
from mim3d.workflows.throughput.work import Work, step_flop

LIGHT = PretextConfig(decoder="cross", decode_fraction=0.25, decoder_heads=12)
"""The recipe: a quarter of what is masked is predicted, from the visible tokens alone."""
FULL = PretextConfig(decoder_heads=12)
"""As published, and as MONAI has it."""


def pretrain_stage(scene: Scene) -> Iterator[Stage]:
    """MAE small/16 with both decoders, against MONAI's with its only one."""
    given = batches(scene.scale.batch, scene.device, side=scene.crop[0])
    preset = scene.preset
    encoder = monai.plain_encoder(preset, 16, scene.crop[0], class_token=True)
    full = MaskedAutoencoder(VolumeViT(encoder), FULL).to(scene.device)
    theirs, equality = None, "-"
    if scene.against_monai:
        network = monai.masked_autoencoder(full, scene.crop[0]).to(scene.device)
        equality = monai.same_masked_step(full, network, given[0])
        theirs = _their_step(network, monai.masked_loss, given)
    light = MaskedAutoencoder(VolumeViT(encoder), LIGHT).to(scene.device)
    of = f"MAE {preset}/16, {_crops(given)}"
    yield _step_stage(
        scene, "pretrain", f"{of}, cross decoder, a quarter decoded", light, given, theirs,
        "another decoder: speed only" if theirs else "-", a_step=1,
    )  # fmt: skip
    del light
    yield _step_stage(scene, "pretrain", f"{of}, full decoder", full, given, theirs, equality)


def simmim_stage(scene: Scene) -> Iterator[Stage]:
    """SimMIM encodes all tokens; MONAI has no such task."""
    given = batches(scene.scale.batch, scene.device, side=scene.crop[0])
    encoder = VolumeViT(EncoderConfig(preset=scene.preset))
    task = SimMIM(encoder, PretextConfig(name="simmim")).to(scene.device)
    what = f"SimMIM {scene.preset}/16, {_crops(given)}"
    yield _step_stage(scene, "simmim", what, task, given, None, "-")


def finetune_stage(scene: Scene) -> Iterator[Stage]:
    """Dice and cross-entropy of 14 classes: our decoders against MONAI's UNETR."""
    side, preset = scene.scale.segmenter_side, scene.scale.segmenter
    given = batches(1, scene.device, side=side)
    same = monai.published_segmenter(preset, side, CLASSES)
    task = Segmentation(same, SegmentationConfig(), CLASSES).to(scene.device)
    theirs, equality = None, "-"
    if scene.against_monai:
        network = monai.unetr(same, side).to(scene.device)
        equality = monai.same_segmentation_step(task, network, given[0])
        theirs = _their_step(network, monai.segmentation_loss, given)
    of = f"{preset}/16, {CLASSES} classes, {_crops(given)}"
    other = Segmentation(
        segmenter(preset, DecoderConfig("half"), CLASSES), SegmentationConfig(), CLASSES
    ).to(scene.device)
    yield _step_stage(scene, "finetune", f"`half` {of}", other, given, theirs,
                      monai.OTHER_NETWORK if theirs else "-")  # fmt: skip
    del other
    yield _step_stage(scene, "finetune", f"`unetr` {of}", task, given, theirs, equality)


def _step_stage(
    scene: Scene,
    name: str,
    what: str,
    task: Task,
    given: list[CropBatch],
    theirs: Callable[[int], object] | None,
    equality: str,
    *,
    a_step: int = 0,
) -> Stage:
    contestant = our_step("mim3d", task, given, equality, bf16=scene.bf16)
    work = Work(step_flop(task, given[0]), "bf16" if scene.bf16 else "fp32")
    return Stage(
        name, what, contestant.call, work=work, theirs=theirs, equality=equality,
        calls=contestant.calls, their_calls=contestant.calls, a_step=a_step,
    )  # fmt: skip


def _their_step(
    network: Any, loss: Callable[[Any, CropBatch], Tensor], given: list[CropBatch]
) -> Callable[[int], object]:
    """MONAI as shipped: fp32, torch's default AdamW."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    return step(lambda batch, _: loss(network, batch), optimiser, given, bf16=False)


def _crops(given: list[CropBatch]) -> str:
    count, side = len(given[0].case_ids), given[0].voxels.shape[-1]
    return f"{count} crop{'s' if count > 1 else ''} of {side}³"
