"""A network slid over a volume in memory, against MONAI's `sliding_window_inference`.

THP_MEM_ALLOC_ENABLE=1 OMP_NUM_THREADS=1 python benchmarks/throughput/sliding_window.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import counterparts
import torch
from finetune_step import segmenter
from script import run
from steps import CLASSES, SIDE, Triple, synthetic
from torch import Tensor, nn

from mim3d.config.sections import DecoderConfig, InferenceConfig
from mim3d.inference.sliding_window import slide
from mim3d.workflows.throughput.race import SHIPPED, TUNED, Contestant, Job, require

SCAN: Triple = (160, 160, 96)
"""What the window is slid over."""
CROP: Triple = (SIDE, SIDE, SIDE)
SLIDING = InferenceConfig(overlap=0.25, windows_per_batch=4)
"""The overlap is MONAI's default."""


def jobs(device: torch.device) -> Iterator[Job]:
    """Class indices of a volume by one network, and by one with a cheaper decoder."""
    torch.manual_seed(0)
    voxels = synthetic(SCAN, 0)[None].to(device)
    network = segmenter("small", counterparts.PUBLISHED).to(device).eval()
    cheaper = segmenter("small", DecoderConfig("half")).to(device).eval()
    plain, fast = ours(network, voxels, bf16=False), ours(network, voxels, bf16=True)
    half = ours(cheaper, voxels, bf16=True)
    labels = [one(0) for one in (plain, fast, half)]
    others, equal, close = [], counterparts.ABSENT, counterparts.ABSENT
    if counterparts.has_monai():
        others = their_windows(network, voxels)
        expected = others[0].call(0)
        share, close_share = (float((found == expected).float().mean()) for found in labels[:2])
        equal = f"{share:.4%} of labels"
        close = f"{close_share:.2%} of labels, at random weights"
        require(share > 0.9999, f"labels of windows: {equal}")
    contestants = [
        *others,
        Contestant("mim3d, `unetr`: fp32", plain, equal),
        Contestant("mim3d, `unetr`: bf16", fast, close),
        Contestant("mim3d, `half`: bf16", half, counterparts.OTHER_NETWORK),
    ]
    size = " x ".join(map(str, SCAN))
    what = f"UNETR small/16, {CLASSES} classes, {size}, overlap {SLIDING.overlap}"
    yield Job("window", what, contestants, is_warm=True)


def their_windows(network: nn.Module, voxels: Tensor) -> list[Contestant]:
    """MONAI's sliding window over the same network."""
    plain, fast = (theirs(network, voxels, bf16=bf16) for bf16 in (False, True))
    return [
        Contestant(f"{SHIPPED}: fp32", plain, "reference"),
        Contestant(f"{TUNED}: bf16", fast, "the same network"),
    ]


def ours(network: nn.Module, voxels: Tensor, *, bf16: bool) -> Callable[[int], Tensor]:
    """Our sliding window, from `c x y z` to class indices `x y z`."""

    def predict(crops: Tensor, spacing_mm: Tensor, valid: Tensor | None) -> Tensor:
        with torch.autocast(voxels.device.type, torch.bfloat16, enabled=bf16):
            logits: Tensor = network(crops, spacing_mm, valid)
        return logits

    @torch.inference_mode()
    def call(_: int) -> Tensor:
        logits = slide(voxels, predict, SLIDING, window=CROP, spacing_mm=(1.0, 1.0, 1.0))
        return logits.argmax(0)

    return call


def theirs(network: nn.Module, voxels: Tensor, *, bf16: bool) -> Callable[[int], Tensor]:
    """MONAI's `sliding_window_inference` with the same windows and weights, to class indices."""
    infer = counterparts.monai("inferers").sliding_window_inference

    @torch.inference_mode()
    def call(_: int) -> Tensor:
        with torch.autocast(voxels.device.type, torch.bfloat16, enabled=bf16):
            logits: Tensor = infer(
                voxels[None], CROP, SLIDING.windows_per_batch, network,
                overlap=SLIDING.overlap, mode=SLIDING.weights,
            )  # fmt: skip
        return logits[0].argmax(0)

    return call


if __name__ == "__main__":
    run(__doc__, jobs)
