"""The SimMIM step against MONAI's ViT with mask token and linear head, as a user writes it.

THP_MEM_ALLOC_ENABLE=1 OMP_NUM_THREADS=1 python benchmarks/throughput/simmim_step.py
python benchmarks/throughput/simmim_step.py --device cuda
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from script import run
from torch import Tensor, nn

from mim3d.config.objective import PretextConfig
from mim3d.data.batch import CropBatch
from mim3d.models.vit import VolumeViT
from mim3d.objectives.masks import resting_ratio
from mim3d.objectives.simmim import SimMIM
from mim3d.tokens.patches import patchify
from mim3d.workflows.throughput import monai
from mim3d.workflows.throughput.inputs import SIDE, batches, moment
from mim3d.workflows.throughput.race import Job
from mim3d.workflows.throughput.steps import our_step

CONFIG = PretextConfig(name="simmim", mask_ratio=0.75, loss="l1")


class TheirSimMIM(nn.Module):
    """What a user makes of MONAI's `ViT`: all tokens embedded, masked ones exchanged, one map."""

    def __init__(self, vit: Any, patch_voxels: int) -> None:
        super().__init__()
        width = vit.norm.weight.shape[0]
        self.vit = vit
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.head = nn.Linear(width, patch_voxels)
        self.masks: list[Tensor] = []

    def forward(self, voxels: Tensor, mask: Tensor) -> Tensor:
        embedding = self.vit.patch_embedding
        tokens = embedding.patch_embeddings(voxels).flatten(2).transpose(1, 2)
        tokens = torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)
        tokens = embedding.dropout(tokens + embedding.position_embeddings)
        for block in self.vit.blocks:
            tokens = block(tokens)
        patches: Tensor = self.head(self.vit.norm(tokens))
        return patches


def jobs(device: torch.device) -> Iterator[Job]:
    """SimMIM at 1,728 tokens: few wide ones, and many narrow ones of a small crop."""
    yield simmim_job("small", 8, SIDE, 2, device)
    yield simmim_job("tiny", 4, SIDE // 2, 2, device)


def simmim_job(preset: monai.Preset, edge: int, side: int, count: int, device: torch.device) -> Job:
    """One SimMIM of both sides.

    Args:
        preset: of the encoder.
        edge: voxels of a patch along each axis.
        side: voxels of a crop along each axis.
        count: crops of a batch.
        device: where it runs.
    """
    encoder = VolumeViT(monai.plain_encoder(preset, edge, side, class_token=False))
    task = SimMIM(encoder, CONFIG).to(device)
    given = batches(count, device, side=side)
    equality, contestants = monai.ABSENT, []
    if monai.has_monai():
        theirs = counterpart(task, side).to(device)
        equality = same_step(task, theirs, given[0])
        contestants = monai.their_steps(theirs, loss, given)
    contestants.append(our_step("mim3d", task, given, equality))
    return Job("simmim", f"SimMIM {preset}/{edge}, {side}³, batch {count}", contestants)


def counterpart(task: SimMIM, side: int) -> TheirSimMIM:
    """Their network with the task's weights."""
    encoder = task.encoder
    vit = monai.room("networks.nets").ViT(
        encoder.channels, side, encoder.patch, encoder.width, 4 * encoder.width, encoder.depth,
        encoder.heads, proj_type="conv",
    )  # fmt: skip
    theirs = TheirSimMIM(vit, task.head.out_features)
    monai.take_weights(task, theirs, monai.SEGMENTER)
    return theirs


def loss(network: TheirSimMIM, batch: CropBatch) -> Tensor:
    """The absolute error of masked patches, under a mask that is drawn on the fly."""
    edge = round(network.head.out_features ** (1 / 3))
    patches = patchify(batch.voxels, (edge, edge, edge))
    b, n, _ = patches.shape
    if network.masks:
        mask = network.masks[0]
    else:
        order = torch.rand(b, n, device=patches.device).argsort(1)
        mask = order < round(resting_ratio(CONFIG) * n)
    error = (network(batch.voxels, mask) - patches).abs().mean(-1)
    value: Tensor = (error * mask).sum() / mask.sum()
    return value


def same_step(task: SimMIM, theirs: TheirSimMIM, batch: CropBatch) -> str:
    """Compares loss and gradients of both under the mask that ours draws."""
    block: Any = task.encoder.blocks[0]
    with monai.exact():
        outcome = task(batch, moment(0, pictures=True))
        assert outcome.pictures is not None
        px, py, pz = task.encoder.patch
        theirs.masks.append(outcome.pictures["mask"][:, ::px, ::py, ::pz].flatten(1))
        expected = loss(theirs, batch)
        theirs.masks.clear()
        embedding = theirs.vit.patch_embedding.patch_embeddings
        pairs = [
            (block.attention.qkv.weight, theirs.vit.blocks[0].attn.qkv.weight),
            (task.encoder.embedding.projection.weight, embedding.weight),
        ]
        found = monai.agreement(outcome.loss, expected, pairs, bound=1e-4)
    task.zero_grad()
    theirs.zero_grad()
    return found


if __name__ == "__main__":
    run(__doc__, jobs)
