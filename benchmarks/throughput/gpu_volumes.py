"""Sections of `gpu.py` about volumes: the resident feed, and the sliding window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gpu_frame import Bench, fresh, peak_gb, release
from torch import Tensor, nn

from mim3d.config.inference import InferenceConfig
from mim3d.config.task import DecoderConfig
from mim3d.inference.sliding_window import slabs
from mim3d.inference.windows import plan_sweep
from mim3d.workflows.throughput import monai
from mim3d.workflows.throughput.clock import elapsed
from mim3d.workflows.throughput.inputs import Triple, synthetic
from mim3d.workflows.throughput.race import SHIPPED, require
from mim3d.workflows.throughput.steps import segmenter

HALF = InferenceConfig(overlap=0.5, windows_per_batch=16)
QUARTER = InferenceConfig(overlap=0.25, windows_per_batch=16)
CHECKED = 2
"""The volume on which labels are compared is so many windows along each axis."""


def window(bench: Bench) -> dict[str, Any]:
    """Labels of a whole volume: MONAI at overlap 0.5 in fp32, ours at its and at our settings."""
    sizes = bench.sizes
    side = (sizes.side, sizes.side, sizes.side)
    rows: list[dict[str, Any]] = []

    def timed(name: str, call: Callable[[], Tensor]) -> None:
        release(bench)
        call()  # kernels are chosen
        release(bench)
        seconds = elapsed(call, bench.device)
        rows.append({"name": name, "seconds": seconds, "peak_gb": peak_gb(bench)})

    torch.manual_seed(0)
    with fresh(bench), torch.inference_mode():
        same = monai.published_segmenter(sizes.segmenter, sizes.side, sizes.classes)
        half = segmenter(sizes.segmenter, DecoderConfig("half"), sizes.classes)
        for network in (same, half):
            network.to(bench.device).eval()
        found = _same_labels(same, side, bench)
        voxels = synthetic(sizes.volume, 0, bench.device)[None]
        if monai.has_monai() and bench.has_time():
            timed(f"{SHIPPED}: fp32, overlap 0.5", lambda: theirs(same, voxels, side))
        settings = (
            ("mim3d, the same network: fp32, overlap 0.5", same, HALF, False),
            ("mim3d, the same network: bf16, overlap 0.5", same, HALF, True),
            ("mim3d, `half`: bf16, overlap 0.5", half, HALF, True),
            ("mim3d, `half`: bf16, overlap 0.25", half, QUARTER, True),
        )
        for name, network, config, bf16 in settings:
            if bench.has_time():
                timed(name, lambda n=network, c=config, b=bf16: ours(n, voxels, side, c, bf16=b))
    shipped = rows[0] if rows and rows[0]["name"].startswith(SHIPPED) else None
    for row in rows:
        row["s"] = None if shipped is None else shipped["seconds"] / row["seconds"]
    return {"volume": sizes.volume, "equality": found, "rows": rows}


def _same_labels(network: nn.Module, side: Triple, bench: Bench) -> str:
    """Compares labels of the same network in fp32 on a small volume."""
    if not monai.has_monai():
        return monai.ABSENT
    x, y, z = (CHECKED * edge - 5 * place for place, edge in enumerate(side))
    voxels = synthetic((x, y, z), 1, bench.device)[None]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        mine, other = ours(network, voxels, side, HALF, bf16=False), theirs(network, voxels, side)
    share = float((mine == other).float().mean())
    require(share > 0.999, f"labels of windows, equal in {share:.2%}")
    return f"{share:.3%} of labels in fp32"


def ours(
    network: nn.Module, voxels: Tensor, side: Triple, config: InferenceConfig, *, bf16: bool
) -> Tensor:
    """Class indices `x y z` uint8 of a volume `c x y z`; the logits never lie there as a whole."""
    x, y, z = voxels.shape[1:]
    sweep = plan_sweep((x, y, z), side, config.overlap)
    labels = torch.empty((x, y, z), dtype=torch.uint8, device=voxels.device)

    def predict(crops: Tensor, spacing_mm: Tensor, valid: Tensor | None) -> Tensor:
        with torch.autocast(voxels.device.type, torch.bfloat16, enabled=bf16):
            logits: Tensor = network(crops, spacing_mm, valid)
        return logits

    for slab in slabs(voxels, predict, config, sweep, spacing_mm=(1.0, 1.0, 1.0)):
        rows = slab.sums.shape[1 + sweep.axis]
        labels.narrow(sweep.axis, slab.first, rows).copy_(slab.sums.argmax(0))
    return labels


def theirs(network: nn.Module, voxels: Tensor, side: Triple) -> Tensor:
    """MONAI's `sliding_window_inference` in fp32, to class indices."""
    infer = monai.room("inferers").sliding_window_inference
    logits: Tensor = infer(
        voxels[None], side, HALF.windows_per_batch, network,
        overlap=HALF.overlap, mode=HALF.weights,
    )  # fmt: skip
    return logits[0].argmax(0)
