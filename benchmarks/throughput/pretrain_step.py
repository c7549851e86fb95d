"""The pre-training step against MONAI's `MaskedAutoEncoderViT`.

THP_MEM_ALLOC_ENABLE=1 OMP_NUM_THREADS=1 python benchmarks/throughput/pretrain_step.py
python benchmarks/throughput/pretrain_step.py --device cuda
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import counterparts
import torch
from script import run
from steps import SIDE, Preset, agreement, batches, exact, moment, our_step, their_steps
from torch import Tensor

from mim3d.config.sections import EncoderConfig, MaskedConfig
from mim3d.data.batch import CropBatch
from mim3d.models.vit import VolumeViT
from mim3d.objectives.masked import MaskedAutoencoder
from mim3d.tokens.patches import patchify
from mim3d.workflows.throughput.race import Job


def jobs(device: torch.device) -> Iterator[Job]:
    """MAE with a full decoder: patch 16, where linear maps cost most, and 8, where attention."""
    yield masked_job("small", 16, 8, 384, device)
    yield masked_job("tiny", 8, 4, 192, device)


def masked_job(preset: Preset, edge: int, count: int, width: int, device: torch.device) -> Job:
    """One MAE with the shape of MONAI's: class token, no bias of queries, keys and values.

    Args:
        preset: of the encoder.
        edge: voxels of a patch along each axis.
        count: crops of a batch.
        width: of the decoder, which has 4 blocks and MONAI's default of 12 heads.
        device: where it runs.
    """
    config = EncoderConfig(
        preset=preset,
        patch=(edge, edge, edge),
        positions="learned",
        learned_grid=(SIDE // edge, SIDE // edge, SIDE // edge),
        class_token=True,
        qkv_bias=False,
    )
    objective = MaskedConfig(decoder_width=width, decoder_heads=12)
    task = MaskedAutoencoder(VolumeViT(config), objective).to(device)
    given = batches(count, device)
    equality, others = counterparts.ABSENT, []
    if counterparts.has_monai():
        theirs = counterparts.masked_autoencoder(task, SIDE).to(device)
        equality = same_masked_step(task, theirs, given[0])
        others = their_steps(theirs, masked_loss, given, counterparts.allow_bf16)
    ours = our_step("mim3d", task, given, equality)
    what = f"MAE {preset}/{edge}, decoder {width} x 4, {SIDE}³, batch {count}"
    return Job("pretrain", what, [*others, ours])


def masked_loss(network: Any, batch: CropBatch) -> Tensor:
    """What a user of MONAI writes: the error of all patches, times the mask."""
    predicted, mask = network(batch.voxels)
    error = (predicted - patchify(batch.voxels, network.patch_size)).square().mean(-1)
    loss: Tensor = (error * mask).sum() / mask.sum()
    return loss


def same_masked_step(task: MaskedAutoencoder, theirs: Any, batch: CropBatch) -> str:
    """Compares loss and gradients of both under the mask that ours draws."""
    block: Any = task.encoder.blocks[0]
    with exact():
        outcome = task(batch, moment(0, pictures=True))
        assert outcome.pictures is not None
        px, py, pz = task.encoder.patch
        mask = outcome.pictures["mask"][:, ::px, ::py, ::pz].flatten(1)
        with counterparts.masked_by(theirs, mask):
            expected = masked_loss(theirs, batch)
        embedding = theirs.patch_embedding.patch_embeddings
        pairs = [
            (block.attention.qkv.weight, theirs.blocks[0].attn.qkv.weight),
            (task.encoder.embedding.projection.weight, embedding.weight),
        ]
        found = agreement(outcome.loss, expected, pairs, bound=1e-4)
    task.zero_grad()
    theirs.zero_grad()
    return found


if __name__ == "__main__":
    run(__doc__, jobs)
