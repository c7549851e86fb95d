"""Sections of `gpu.py` about steps: ceilings, equality, pre-training, profile, fine-tuning."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from gpu_frame import Bench, fresh, growing, milliseconds, peak_gb
from gpu_trace import parts_of
from torch import Tensor

from mim3d.config.objective import PretextConfig
from mim3d.config.task import DecoderConfig, SegmentationConfig
from mim3d.data.batch import CropBatch
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Task
from mim3d.objectives.mae import MaskedAutoencoder
from mim3d.objectives.segmentation import Segmentation
from mim3d.workflows.throughput import monai
from mim3d.workflows.throughput.ceilings import measure_ceilings
from mim3d.workflows.throughput.inputs import batches
from mim3d.workflows.throughput.race import SHIPPED, TUNED
from mim3d.workflows.throughput.steps import RATE, Preset, our_step, segmenter, step
from mim3d.workflows.throughput.work import step_flop

QUARTER = "cross, a quarter"
DECODERS = {
    QUARTER: PretextConfig(decoder="cross", decode_fraction=0.25, decoder_heads=12),
    "full": PretextConfig(decoder_heads=12),
}
COMPILING_SECONDS = 70.0
"""What one compiled configuration takes, most of it compiling."""
COMPILED_STEPS = 5


def ceilings(bench: Bench) -> dict[str, Any]:
    """What everything is divided by."""
    if bench.device.type == "cuda":
        return measure_ceilings(bench.device, seconds=0.5).as_json()
    small = measure_ceilings(
        bench.device, seconds=0.0, shapes=[(216, 192, 768)], buffer_bytes=2**20
    )
    return small.as_json()


def equality(bench: Bench) -> dict[str, Any]:
    """MONAI's weights in our networks, the same masks: loss and gradients in fp32."""
    if not monai.has_monai():
        return {"skipped": monai.ABSENT}
    found: dict[str, Any] = {}
    for preset, edge, _ in bench.sizes.runs[:2]:
        with fresh(bench):
            task = masked_task(bench, preset, edge, "full")
            given = batches(2, bench.device, side=bench.sizes.side, rotated=1)[0]
            theirs = monai.masked_autoencoder(task, bench.sizes.side).to(bench.device)
            found[f"{preset}/{edge}"] = monai.same_masked_step(task, theirs, given)
            del task, theirs
    return found


def pretraining(bench: Bench) -> dict[str, Any]:
    """Our steps, as they are and compiled: time, share of the peak, memory."""
    rows = []
    eager = [(run, decoder) for run in bench.sizes.runs for decoder in DECODERS]
    for (preset, edge, first), decoder in eager:
        if rows and not bench.has_time():
            rows.append({"skipped": f"{preset}/{edge}, {decoder}: no time left"})
            continue
        with fresh(bench):
            task = masked_task(bench, preset, edge, decoder)
            try:
                found = growing(first, lambda n, t=task: our_call(t, n, bench), bench)
                rows.append(_described(task, found, preset, edge, decoder, bench))
            except torch.OutOfMemoryError:
                rows.append({"skipped": f"{preset}/{edge}, {decoder}: out of memory"})
            del task
    for row in [row for row in rows if "skipped" not in row][: bench.sizes.compiled]:
        if not bench.has_time(COMPILING_SECONDS):
            rows.append({"skipped": f"compiled {row['preset']}/{row['edge']}: no time left"})
            break
        with fresh(bench):
            rows.append(_compiled(row, bench))
    return {"rows": rows}


def _compiled(row: dict[str, Any], bench: Bench) -> dict[str, Any]:
    preset, edge, decoder, count = (row[key] for key in ("preset", "edge", "decoder", "batch"))
    task = masked_task(bench, preset, edge, decoder)
    for module in task.children():  # as the training loop does
        module.compile()
    call = our_call(task, count, bench)
    began = time.monotonic()
    for number in range(COMPILED_STEPS):
        call(number)
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.monotonic() - began
    ms = milliseconds(call, bench)
    found = {"batch": count, "ms": ms, "crops_per_second": 1e3 * count / ms,
             "peak_gb": peak_gb(bench), "first_steps_seconds": seconds}  # fmt: skip
    return {**_described(task, found, preset, edge, decoder, bench), "compiled": True}


def _described(
    task: Task, found: dict[str, Any], preset: Preset, edge: int, decoder: str, bench: Bench
) -> dict[str, Any]:
    flop = step_flop(task, batches(1, torch.device("cpu"), side=bench.sizes.side, rotated=1)[0])
    share = flop * found["crops_per_second"] / bench.bf16_peak
    return {"preset": preset, "edge": edge, "decoder": decoder, "compiled": False,
            "gflop_a_crop": flop / 1e9, "mfu": share, **found}  # fmt: skip


def against_monai(bench: Bench) -> dict[str, Any]:
    """MONAI's step as shipped and tuned, each at its own best batch, and S and T by crops/s."""
    if not monai.has_monai():
        return {"skipped": monai.ABSENT}
    rows = []
    eager = [row for row in bench.results["pretrain"]["rows"] if not row.get("compiled", True)]
    ours = {(row["preset"], row["edge"], row["decoder"]): row for row in eager}
    for preset, edge, first in bench.sizes.runs[:2]:
        for name, bf16 in ((SHIPPED, False), (TUNED, True)):
            with fresh(bench):
                theirs = monai.masked_autoencoder(
                    masked_task(bench, preset, edge, "full"), bench.sizes.side
                ).to(bench.device)
                if bf16:
                    monai.allow_bf16(theirs)
                found = growing(
                    max(1, first // 8),
                    lambda n, t=theirs, b=bf16: their_call(t, monai.masked_loss, n, bench, bf16=b),
                    bench,
                )  # fmt: skip
                ratios = {decoder: row["crops_per_second"] / found["crops_per_second"]
                          for (*network, decoder), row in ours.items()
                          if network == [preset, edge]}  # fmt: skip
                rows.append({"name": name, "preset": preset, "edge": edge, **found,
                             "ours_over_theirs": ratios})  # fmt: skip
                del theirs
    return {"rows": rows}


def profiled(bench: Bench) -> dict[str, Any]:
    """Where the time of a step goes, and how often it waits for the device."""
    preset, edge, first = bench.sizes.runs[0]
    rows = bench.results.get("pretrain", {}).get("rows", [])
    count = next((row["batch"] for row in rows if "batch" in row), first)
    found: dict[str, Any] = {}
    for decoder in DECODERS:
        with fresh(bench):
            call = our_call(masked_task(bench, preset, edge, decoder), count, bench)
            for number in range(3):
                call(number)
            found[decoder] = {"syncs": _syncs(call, bench), **parts_of(call, bench.device)}
            del call
    return {"network": f"{preset}/{edge}", "batch": count, **found}


def _syncs(call: Callable[[int], Any], bench: Bench) -> list[str]:
    """Places at which a step waited for the device, as torch reports them."""
    if bench.device.type != "cuda":
        return []
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call(3)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sorted({f"{warning.filename}:{warning.lineno}" for warning in caught
                   if "synchroniz" in str(warning.message)})  # fmt: skip


def finetuning(bench: Bench) -> dict[str, Any]:
    """The segmenter's step: MONAI's UNETR as shipped and in bf16, ours with two decoders."""
    sizes, rows = bench.sizes, []
    given = batches(sizes.segmenter_batch, bench.device, side=sizes.side, classes=sizes.classes)

    def timed(name: str, call: Callable[[int], Any]) -> None:
        rows.append({"name": name, "ms": milliseconds(call, bench), "peak_gb": peak_gb(bench)})

    same = ""
    for bf16 in (False, True) if monai.has_monai() else ():
        with fresh(bench):
            network = monai.published_segmenter(sizes.segmenter, sizes.side, sizes.classes)
            task = Segmentation(network, SegmentationConfig(), sizes.classes).to(bench.device)
            theirs = monai.unetr(network, sizes.side).to(bench.device)
            same = same or monai.same_segmentation_step(task, theirs, given[0])
            del task
            call = _update(theirs, monai.segmentation_loss, given, bf16=bf16)
            timed(TUNED if bf16 else SHIPPED, call)
            del theirs, network, call
    for decoder in ("unetr", "half"):
        with fresh(bench):
            config = DecoderConfig(decoder)  # type: ignore[arg-type]
            mine = segmenter(sizes.segmenter, config, sizes.classes)
            task = Segmentation(mine, SegmentationConfig(), sizes.classes).to(bench.device)
            timed(f"mim3d, `{decoder}`", our_step("mim3d", task, given, "").call)
            del mine, task
    shipped = next((row["ms"] for row in rows if row["name"] == SHIPPED), None)
    for row in rows:
        row["s"] = None if shipped is None else shipped / row["ms"]
    return {"batch": sizes.segmenter_batch, "equality": same, "rows": rows}


def masked_task(bench: Bench, preset: Preset, edge: int, decoder: str) -> MaskedAutoencoder:
    """MAE of MONAI's shape, with one of the decoders."""
    torch.manual_seed(0)
    encoder = monai.plain_encoder(preset, edge, bench.sizes.side, class_token=True)
    return MaskedAutoencoder(VolumeViT(encoder), DECODERS[decoder]).to(bench.device)


def our_call(task: Task, count: int, bench: Bench) -> Callable[[int], Any]:
    """A step of ours on batches of `count` crops that take turns."""
    given = batches(count, bench.device, side=bench.sizes.side)
    return our_step("mim3d", task, given, "").call


def their_call(
    network: Any,
    loss: Callable[[Any, CropBatch], Tensor],
    count: int,
    bench: Bench,
    *,
    bf16: bool,
) -> Callable[[int], Any]:
    """A step of MONAI's on such batches."""
    given = batches(count, bench.device, side=bench.sizes.side)
    return _update(network, loss, given, bf16=bf16)


def _update(
    network: Any,
    loss: Callable[[Any, CropBatch], Tensor],
    given: list[CropBatch],
    *,
    bf16: bool,
) -> Callable[[int], Any]:
    fused = {"fused": True} if bf16 else {}
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, **fused)
    return step(lambda batch, _: loss(network, batch), optimiser, given, bf16=bf16)
