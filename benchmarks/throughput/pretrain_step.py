"""The pre-training step against MONAI's `MaskedAutoEncoderViT`.

THP_MEM_ALLOC_ENABLE=1 OMP_NUM_THREADS=1 python benchmarks/throughput/pretrain_step.py
python benchmarks/throughput/pretrain_step.py --device cuda
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from script import run

from mim3d.config.objective import PretextConfig
from mim3d.models.vit import VolumeViT
from mim3d.objectives.mae import MaskedAutoencoder
from mim3d.workflows.throughput import monai
from mim3d.workflows.throughput.inputs import SIDE, batches
from mim3d.workflows.throughput.race import Job
from mim3d.workflows.throughput.steps import our_step


def jobs(device: torch.device) -> Iterator[Job]:
    """Patch 16, where linear maps cost most, and 8, where attention does."""
    yield masked_job("small", 16, 8, 384, device)
    yield masked_job("base", 16, 8, 384, device)
    yield masked_job("small", 8, 2, 384, device)
    yield masked_job("tiny", 8, 4, 192, device)


def masked_job(
    preset: monai.Preset, edge: int, count: int, width: int, device: torch.device
) -> Job:
    """MAE with MONAI's full decoder, and with decoders that predict a quarter of the masked tokens.

    Both sides have a class token and no bias of queries, keys and values.

    Args:
        preset: of the encoder.
        edge: voxels of a patch along each axis.
        count: crops of a batch.
        width: of the full decoder, which has 4 blocks and MONAI's default of 12 heads; `quarter`
            has the same size, `light` half the width and two blocks.
        device: where it runs.
    """
    encoder = monai.plain_encoder(preset, edge, SIDE, class_token=True)
    full = PretextConfig(decoder_width=width, decoder_heads=12)
    quarter = replace(full, decoder="cross", decode_fraction=0.25)
    light = replace(quarter, decoder_width=width // 2, decoder_depth=2, decoder_heads=6)
    task = MaskedAutoencoder(VolumeViT(encoder), full).to(device)
    given = batches(count, device)
    equality, contestants = monai.ABSENT, []
    if monai.has_monai():
        theirs = monai.masked_autoencoder(task, SIDE).to(device)
        equality = monai.same_masked_step(task, theirs, given[0])
        contestants = monai.their_steps(theirs, monai.masked_loss, given, monai.allow_bf16)
    contestants.append(our_step("mim3d, full decoder", task, given, equality))
    for name, config in (("quarter", quarter), ("light", light)):
        other = MaskedAutoencoder(VolumeViT(encoder), config).to(device)
        contestants.append(our_step(f"mim3d, {name}", other, given, monai.OTHER_NETWORK))
    what = f"MAE {preset}/{edge}, decoder {width} x 4, {SIDE}³, batch {count}"
    return Job("pretrain", what, contestants)


if __name__ == "__main__":
    run(__doc__, jobs)
