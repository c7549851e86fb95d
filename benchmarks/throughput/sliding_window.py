"""A network slid over a volume in memory, against MONAI's `sliding_window_inference`.

    THP_MEM_ALLOC_ENABLE=1 OMP_NUM_THREADS=1 python benchmarks/throughput/sliding_window.py
    python benchmarks/throughput/sliding_window.py --full                    # 512 x 512 x 300
    python benchmarks/throughput/sliding_window.py --full --shape 256 256 160
    python benchmarks/throughput/sliding_window.py --run runs/finetune-x --store stores/x

The first line times stitching alone, by a network that costs nearly nothing, and a UNETR. `--full`
goes from file to file (`window_files.py`); `--run` measures Dice by overlap and window
(`window_overlap.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from script import run
from torch import Tensor, nn

from mim3d.config.inference import InferenceConfig
from mim3d.config.task import DecoderConfig
from mim3d.data.volume import Volume
from mim3d.inference.predict import predict_volume
from mim3d.inference.segmenter import Segmenter
from mim3d.inference.windows import window_starts
from mim3d.workflows.throughput import monai
from mim3d.workflows.throughput.inputs import CLASSES, SIDE, Triple, synthetic
from mim3d.workflows.throughput.race import SHIPPED, TUNED, Contestant, Job, require
from mim3d.workflows.throughput.steps import segmenter

STITCHED: Triple = (224, 224, 160)
"""What the nearly free network is slid over."""
SCAN: Triple = (160, 160, 96)
"""What UNETR is slid over."""
CROP: Triple = (SIDE, SIDE, SIDE)
SLIDING = InferenceConfig(overlap=0.25, windows_per_batch=4)
"""The overlap is MONAI's default."""


class NearlyFree(nn.Module):
    """Outputs that depend on the voxel and on its place in the window, in one pass over memory."""

    def __init__(self) -> None:
        super().__init__()
        axes = [torch.linspace(-1, 1, side) for side in CROP]
        x, y, z = torch.meshgrid(*axes, indexing="ij")
        turns = torch.linspace(0, 6, CLASSES)[:, None, None, None]
        self.places: Tensor
        self.register_buffer("places", torch.sin(3 * x + turns) * y + torch.cos(2 * turns + z))
        self.register_buffer("slopes", torch.cos(5 * turns))
        self.slopes: Tensor

    def forward(self, voxels: Tensor) -> Tensor:
        """`b 1 x y z` to `b k x y z`."""
        return torch.addcmul(self.places, voxels, self.slopes)


def jobs(device: torch.device) -> Iterator[Job]:
    """Labels of a volume: stitching alone, one network, and one with a cheaper decoder."""
    torch.manual_seed(0)
    free = NearlyFree().to(device).eval()
    for overlap in (0.5, 0.25):
        config = replace(SLIDING, overlap=overlap, windows_per_batch=2)
        yield stitching(free, synthetic(STITCHED, 1)[None], config, device)
    yield unetr(synthetic(SCAN, 0)[None], device)


def stitching(
    network: nn.Module, voxels: Tensor, config: InferenceConfig, device: torch.device
) -> Job:
    """Nothing but cutting, weighting, adding up and choosing."""
    own = ours(network, voxels, config, device, bf16=False)
    others, equal = [], monai.ABSENT
    if monai.has_monai():
        other = theirs(network, voxels, config, device, bf16=False)
        equal = agreement(own(0), other(0).cpu().numpy(), least=0.9999)
        others = [Contestant(f"{SHIPPED}: fp32", other, "reference")]
    contestants = [*others, Contestant("mim3d: fp32", own, equal)]
    return Job("window", f"stitching alone, {described(voxels, config)}", contestants, is_warm=True)


def unetr(voxels: Tensor, device: torch.device) -> Job:
    """The same network on both sides, and ours with half the decoder."""
    network = monai.published_segmenter("small", SIDE, CLASSES).to(device).eval()
    cheaper = segmenter("small", DecoderConfig("half"), CLASSES).to(device).eval()
    others, equal, close = [], monai.ABSENT, monai.ABSENT
    plain = ours(network, voxels, SLIDING, device, bf16=False)
    fast = ours(network, voxels, SLIDING, device, bf16=True)
    half = ours(cheaper, voxels, SLIDING, device, bf16=True)
    half(0)
    if monai.has_monai():
        # MONAI's own network with the same weights: both sides bring their own.
        other = monai.unetr(network, SIDE).to(device).eval()
        shipped = theirs(other, voxels, SLIDING, device, bf16=False)
        tuned = theirs(other, voxels, SLIDING, device, bf16=True)
        expected = shipped(0).cpu().numpy()
        tuned(0)
        equal = agreement(plain(0), expected, least=0.9999)
        close = agreement(fast(0), expected, least=0.9) + ", at random weights"
        others = [
            Contestant(f"{SHIPPED}: fp32", shipped, "reference"),
            Contestant(f"{TUNED}: bf16", tuned, "the same network"),
        ]
    contestants = [
        *others,
        Contestant("mim3d, `unetr`: fp32", plain, equal),
        Contestant("mim3d, `unetr`: bf16", fast, close),
        Contestant("mim3d, `half`: bf16", half, monai.OTHER_NETWORK),
    ]
    what = f"UNETR small/16, {described(voxels, SLIDING)}"
    return Job("window", what, contestants, is_warm=True)


def described(voxels: Tensor, config: InferenceConfig) -> str:
    """Sizes and number of windows."""
    x, y, z = voxels.shape[1:]
    count = len(window_starts((x, y, z), CROP, config.overlap))
    return f"{CLASSES} classes, {x} x {y} x {z}, overlap {config.overlap}: {count} windows"


def agreement(found: NDArray[Any], expected: NDArray[Any], *, least: float) -> str:
    """The share of equal labels; ends the run where it is too small."""
    share = float((found == expected).mean())
    require(share > least, f"{share:.4%} of labels")
    return "all labels" if share == 1 else f"{share:.4%} of labels"


def ours(
    network: nn.Module, voxels: Tensor, config: InferenceConfig, device: torch.device, *, bf16: bool
) -> Callable[[int], NDArray[Any]]:
    """From a volume on the CPU to its label map there."""
    made = Segmenter(network, CROP, device=device, precision="bf16" if bf16 else "fp32")
    volume = Volume.from_array(voxels.numpy(), np.eye(4))
    return lambda _: predict_volume(made, volume, config).voxels[0]


def theirs(
    network: nn.Module, voxels: Tensor, config: InferenceConfig, device: torch.device, *, bf16: bool
) -> Callable[[int], Tensor]:
    """MONAI's `sliding_window_inference` with the same windows and weights, to class indices."""
    infer = monai.room("inferers").sliding_window_inference

    @torch.inference_mode()
    def call(_: int) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits: Tensor = infer(
                voxels[None].to(device), CROP, config.windows_per_batch, network,
                overlap=config.overlap, mode=config.weights,
            )  # fmt: skip
        return logits[0].argmax(0)

    return call


if __name__ == "__main__":
    if "--full" in sys.argv:
        sys.argv.remove("--full")
        from window_files import main

        main()
    elif "--run" in sys.argv:
        from window_overlap import main

        main()
    else:
        run(__doc__, jobs)
