"""The fine-tuning step against MONAI's UNETR with Dice and cross-entropy.

THP_MEM_ALLOC_ENABLE=1 OMP_NUM_THREADS=1 python benchmarks/throughput/finetune_step.py
python benchmarks/throughput/finetune_step.py --device cuda
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from script import run

from mim3d.config.task import DecoderConfig, SegmentationConfig
from mim3d.objectives.segmentation import Segmentation
from mim3d.workflows.throughput import monai
from mim3d.workflows.throughput.inputs import CLASSES, SIDE, batches
from mim3d.workflows.throughput.race import Job
from mim3d.workflows.throughput.steps import our_step, segmenter


def jobs(device: torch.device) -> Iterator[Job]:
    """UNETR base/16 with Dice and cross-entropy, and our cheaper decoders on the same encoder."""
    given = batches(1, device)
    network = monai.published_segmenter("base", SIDE, CLASSES)
    task = Segmentation(network, SegmentationConfig(), CLASSES).to(device)
    equality, contestants = monai.ABSENT, []
    if monai.has_monai():
        theirs = monai.unetr(network, SIDE).to(device)
        equality = monai.same_segmentation_step(task, theirs, given[0])
        contestants = monai.their_steps(theirs, monai.segmentation_loss, given)
    contestants.append(our_step("mim3d, `unetr`", task, given, equality))
    for decoder in (DecoderConfig("half"), DecoderConfig("hybrid")):
        other = Segmentation(segmenter("base", decoder, CLASSES), SegmentationConfig(), CLASSES).to(
            device
        )
        name = f"mim3d, `{decoder.name}`"
        contestants.append(our_step(name, other, given, monai.OTHER_NETWORK))
    yield Job("finetune", f"UNETR base/16, {CLASSES} classes, {SIDE}³, batch 1", contestants)


if __name__ == "__main__":
    run(__doc__, jobs)
