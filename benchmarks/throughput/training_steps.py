"""The pre-training and the fine-tuning step: forward, backward and update on crops in memory."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import counterparts
import torch
from race import SHIPPED, TUNED, Contestant, Job, require
from torch import Tensor

from mim3d.config.sections import (
    DecoderConfig,
    EncoderConfig,
    MaskedConfig,
    OptimConfig,
    SegmentationConfig,
)
from mim3d.data.batch import CropBatch
from mim3d.foundation.randomness import RandomStream
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment, Task
from mim3d.objectives.masked import MaskedAutoencoder
from mim3d.objectives.segmentation import Segmentation
from mim3d.tokens.patches import patchify
from mim3d.training.optim import build_optimiser, trainable

Triple = tuple[int, int, int]
Preset = Literal["tiny", "small", "base", "large"]

SIDE = 96
"""Voxels of a crop and of a window along each axis."""
CLASSES = 14
ROTATED = 4
"""Batches that steps take in turn, so that no step sees what the one before it saw."""
GPU_STEPS = 10
"""Steps between two looks at the clock of a GPU, which is ahead of its launches only then."""
RATE = 1e-4


def pretraining(device: torch.device) -> Iterator[Job]:
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


def finetuning(device: torch.device) -> Iterator[Job]:
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


def agreement(
    ours: Tensor, theirs: Tensor, pairs: Sequence[tuple[Any, Any]], *, bound: float
) -> str:
    """How far losses and gradients lie apart; ends the run where it is more than rounding.

    Args:
        ours: our loss in fp32, not yet backward.
        theirs: likewise.
        pairs: our weight and theirs, of which gradients are compared.
        bound: largest norm of a difference between gradients / norm of theirs.
    """
    for loss in (ours, theirs):
        loss.backward()  # type: ignore[no-untyped-call]
    apart = abs(float(ours.detach() - theirs.detach()) / float(theirs.detach()))
    gradients = [(mine.grad.flatten(1), other.grad.flatten(1)) for mine, other in pairs]
    farthest = max(float((mine - other).norm() / other.norm()) for mine, other in gradients)
    losses = f"within {apart:.0e}" if apart else "equal"
    found = f"fp32 loss {losses}, gradients within {farthest:.0e}"
    require(apart < 1e-5 and farthest < bound, found)
    return found


def exact() -> contextlib.AbstractContextManager[None]:
    """Convolutions in true fp32 on a GPU too, while results are compared."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def step(
    loss: Callable[[CropBatch, int], Tensor],
    optimiser: torch.optim.Optimizer,
    given: Sequence[CropBatch],
    *,
    bf16: bool,
) -> Callable[[int], object]:
    """One update: loss, gradients, optimiser. No side clips gradients."""

    def update(number: int) -> None:
        batch = given[number % len(given)]
        with torch.autocast(batch.voxels.device.type, torch.bfloat16, enabled=bf16):
            value = loss(batch, number)
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()

    return update


def our_step(name: str, task: Task, given: Sequence[CropBatch], equality: str) -> Contestant:
    """A step as the training loop makes it: mask or loss by the task, bf16, fused AdamW."""
    optimiser = build_optimiser(trainable(task), OptimConfig(lr=RATE))
    update = step(lambda batch, n: task(batch, moment(n)).loss, optimiser, given, bf16=True)
    return Contestant(f"{name}: bf16, fused AdamW", update, equality, calls_on(given))


def their_steps(
    network: Any,
    loss: Callable[[Any, CropBatch], Tensor],
    given: Sequence[CropBatch],
    patch: Callable[[Any], None] = lambda _: None,
) -> list[Contestant]:
    """MONAI's network as shipped, and a patched copy in bf16 with fused AdamW."""
    tuned = copy.deepcopy(network)
    patch(tuned)
    plain = torch.optim.AdamW(network.parameters(), lr=RATE)
    fused = torch.optim.AdamW(tuned.parameters(), lr=RATE, fused=True)
    first = step(lambda batch, _: loss(network, batch), plain, given, bf16=False)
    second = step(lambda batch, _: loss(tuned, batch), fused, given, bf16=True)
    calls = calls_on(given)
    return [
        Contestant(f"{SHIPPED}: fp32, AdamW", first, "reference", calls),
        Contestant(f"{TUNED}: bf16, fused AdamW", second, "the same network", calls),
    ]


def calls_on(given: Sequence[CropBatch]) -> int:
    """Steps between two looks at the clock."""
    return GPU_STEPS if given[0].voxels.device.type == "cuda" else 1


def moment(number: int, *, pictures: bool = False) -> Moment:
    """Step `number` of a run; masks follow from it."""
    return Moment(number, 1000, RandomStream(0, number), wants_pictures=pictures)


def batches(count: int, device: torch.device) -> list[CropBatch]:
    """Batches of `count` crops, with labels whose class tells the place."""
    x, y, z = torch.meshgrid(*[torch.arange(SIDE) // 12] * 3, indexing="ij")
    labels = ((x + 2 * y + 3 * z) % CLASSES).to(torch.uint8).expand(count, -1, -1, -1)
    affine = torch.eye(4, dtype=torch.float64).expand(count, 4, 4)
    made = []
    for number in range(ROTATED):
        crops = [synthetic((SIDE, SIDE, SIDE), count * number + i)[None] for i in range(count)]
        names, ids = ("synthetic",) * count, torch.arange(count)
        made.append(CropBatch(torch.stack(crops), affine, names, ids, labels).to(device))
    return made


def synthetic(size: Triple, seed: int) -> Tensor:
    """A ramp, a sine, a square wave and noise, `x y z` float32: no two places are alike."""
    x, y, z = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in size), indexing="ij")
    noise = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    waves = torch.sin(9 * y + seed) + torch.sign(torch.sin(11 * z + 2 * x + seed))
    return x + 0.5 * waves + 0.2 * noise
