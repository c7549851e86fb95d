"""The fine-tuning step against MONAI's UNETR with Dice and cross-entropy.

THP_MEM_ALLOC_ENABLE=1 OMP_NUM_THREADS=1 python benchmarks/throughput/finetune_step.py
python benchmarks/throughput/finetune_step.py --device cuda
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import counterparts
import torch
from script import run
from steps import (
    CLASSES,
    SIDE,
    Preset,
    agreement,
    batches,
    exact,
    moment,
    our_step,
    their_steps,
)
from torch import Tensor

from mim3d.config.sections import DecoderConfig, EncoderConfig, SegmentationConfig
from mim3d.data.batch import CropBatch
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.objectives.segmentation import Segmentation
from mim3d.workflows.throughput.race import Job


def jobs(device: torch.device) -> Iterator[Job]:
    """UNETR base/16 with Dice and cross-entropy, and our cheaper decoders on the same encoder."""
    given = batches(1, device)
    network = segmenter("base", counterparts.PUBLISHED)
    task = Segmentation(network, SegmentationConfig(), CLASSES).to(device)
    equality, contestants = counterparts.ABSENT, []
    if counterparts.has_monai():
        theirs = counterparts.unetr(network, SIDE).to(device)
        equality = same_segmentation_step(task, theirs, given[0])
        contestants = their_steps(theirs, segmentation_loss, given)
    contestants.append(our_step("mim3d, `unetr`", task, given, equality))
    for decoder in (DecoderConfig("half"), DecoderConfig("hybrid")):
        other = Segmentation(segmenter("base", decoder), SegmentationConfig(), CLASSES).to(device)
        name = f"mim3d, `{decoder.name}`"
        contestants.append(our_step(name, other, given, counterparts.OTHER_NETWORK))
    yield Job("finetune", f"UNETR base/16, {CLASSES} classes, {SIDE}³, batch 1", contestants)


def segmenter(preset: Preset, decoder: DecoderConfig) -> UNETR:
    """A network with patch 16; of MONAI's shape with the `PUBLISHED` decoder."""
    config = EncoderConfig(preset=preset, default_spacing_mm=(1.0, 1.0, 1.0))
    if decoder == counterparts.PUBLISHED:
        grid = (SIDE // 16, SIDE // 16, SIDE // 16)
        config = EncoderConfig(
            preset=preset, positions="learned", learned_grid=grid, qkv_bias=False
        )
    return UNETR(VolumeViT(config), CLASSES, decoder)


def segmentation_loss(network: Any, batch: CropBatch) -> Tensor:
    """MONAI's loss of MONAI's network."""
    assert batch.labels is not None
    loss = counterparts.monai("losses").DiceCELoss(to_onehot_y=True, softmax=True)
    value: Tensor = loss(network(batch.voxels), batch.labels[:, None])
    return value


def same_segmentation_step(task: Segmentation, theirs: Any, batch: CropBatch) -> str:
    """Compares loss and gradients of both."""
    network: Any = task.network
    with exact():
        pairs = [
            (network.encoder.blocks[0].attention.qkv.weight, theirs.vit.blocks[0].attn.qkv.weight),
            (network.decoder.out.weight, theirs.out.conv.conv.weight),
        ]
        ours = task(batch, moment(0)).loss
        # The instance norms of small maps amplify rounding; in float64 gradients agree to 1e-14.
        found = agreement(ours, segmentation_loss(theirs, batch), pairs, bound=1e-2)
    task.zero_grad()
    theirs.zero_grad()
    return found


if __name__ == "__main__":
    run(__doc__, jobs)
