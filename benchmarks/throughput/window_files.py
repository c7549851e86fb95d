"""From a CT file to a file of labels, each side in a process of its own, as users start them.

    python benchmarks/throughput/sliding_window.py --full
    python benchmarks/throughput/sliding_window.py --full --shape 256 256 160 --sides theirs same

MONAI reads, orients and scales the volume, slides its UNETR over it in fp32 with overlap 0.5, takes
the largest class and writes it. Ours has the same weights; `same` has the same settings, `fast` is
bf16, overlap 0.25, cropped to the body, windows of air skipped; `half` is as fast, with the cheaper
decoder (another network). MONAI's process has torch's own allocator, ours the setting of the
`mim3d` command. The volume is a phantom; weights are random, which is fair for time and memory but
says nothing about Dice: neighbouring classes are nearly equal everywhere.

Peak memory is the largest resident size less what the process held before it read the file; on a
GPU what torch allocated at most is told beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mim3d.config.inference import InferenceConfig
from mim3d.config.task import DecoderConfig
from mim3d.data.files import read_label, read_volume, write_label, write_volume
from mim3d.data.phantom import PhantomRule, make_volume
from mim3d.data.prepare.volume import VolumeRule
from mim3d.data.volume import Volume
from mim3d.foundation.atomic import write_json
from mim3d.foundation.versions import versions
from mim3d.inference.predict import predict
from mim3d.inference.segmenter import Segmenter
from mim3d.inference.windows import WindowCount, window_starts
from mim3d.workflows.throughput import monai
from mim3d.workflows.throughput.inputs import CLASSES, SIDE
from mim3d.workflows.throughput.machine import machine
from mim3d.workflows.throughput.race import require
from mim3d.workflows.throughput.steps import segmenter

WINDOW = (SIDE, SIDE, SIDE)
SPACING = (0.8, 0.8, 1.5)
LOW, HIGH = -1000.0, 1000.0
SAME = InferenceConfig(overlap=0.5, skip_air=False, windows_per_batch=2)
FAST = InferenceConfig(overlap=0.25, windows_per_batch=2)
RULE = VolumeRule(modalities=("ct",), window_hu=(LOW, HIGH))
HEAD = (
    "| side | windows | CPU s | s | peak MB | labels as MONAI's |\n"
    "|---|---:|---:|---:|---:|---|"
)  # fmt: skip
SIDES = ("theirs", "same", "fast", "half")


def main() -> None:
    """Reads the command line; a child runs one side, the parent all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 300))
    parser.add_argument(
        "--preset",
        default="small",
        choices=("tiny", "small", "base", "none"),
        help="`none` is one linear map: what stitching takes by itself",
    )
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="result file; default: results/, by device")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if min(options.shape) < SIDE:
        # Our network leaves tokens of padding out, MONAI's does not: other results.
        parser.error(f"--shape must be {SIDE} or more along each axis")
    if options.child:
        run_side(options)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Runs the sides one after the other and prints the table."""
    x, y, z = options.shape
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_phantom(folder / "scan.nii.gz", (x, y, z))
        print(HEAD)
        for side in options.sides:
            rows.append(started(side, folder, options))
            rows[-1]["agreement"] = compared(side, folder, options.sides)
            print(line(rows[-1]), flush=True)
    path = options.out or result_path(options.device)
    content = {"machine": machine(torch.device(options.device)), "versions": versions()}
    write_json(path, {**content, "shape": [x, y, z], "preset": options.preset, "rows": rows})
    print(f"\n{ratios(rows)}\nwritten to {path}")


def write_phantom(path: Path, shape: tuple[int, int, int]) -> None:
    """A CT of a body with organs, in air."""
    voxels, _ = make_volume(0, 0, PhantomRule(shape, SPACING, modality="ct", organs=6))
    write_volume(path, voxels, Volume.from_array(voxels, np.diag([*SPACING, 1.0])))


def started(side: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Runs one side in a child with the allocator that its users have."""
    environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    if side != "theirs":
        environment["THP_MEM_ALLOC_ENABLE"] = "1"
    call = [
        sys.executable, str(Path(__file__)), "--child", side, "--folder", str(folder),
        "--threads", str(options.threads), "--device", options.device, "--preset", options.preset,
    ]  # fmt: skip
    subprocess.run(call, check=True, env=environment)
    return dict(json.loads((folder / f"{side}.json").read_text(encoding="utf-8")))


def run_side(options: argparse.Namespace) -> None:
    """One side, from file to file; what it took goes into a file."""
    side, folder, device = options.child, options.folder, torch.device(options.device)
    torch.manual_seed(0)
    network: Any = torch.nn.Conv3d(1, CLASSES, 1)
    if options.preset != "none":
        network = monai.published_segmenter(options.preset, SIDE, CLASSES)
    if monai.has_monai() and options.preset != "none":
        other = monai.unetr(network, SIDE)  # the weights of both sides
        network = other if side == "theirs" else network
    if side == "half":
        network = segmenter(options.preset, DecoderConfig("half"), CLASSES)
    network = network.to(device).eval()
    ends = folder / "scan.nii.gz", folder / f"{side}.nii.gz"

    before = forget_peak()
    processor, wall = time.process_time(), time.monotonic()
    windows = (
        by_monai(network, *ends, device)
        if side == "theirs"
        else by_us(network, *ends, device, is_same=side == "same")
    )
    content = {
        "side": side,
        "run": windows.run,
        "skipped": windows.skipped,
        "cpu_seconds": time.process_time() - processor,
        "seconds": time.monotonic() - wall,
        "peak_mb": resident("VmHWM") - before,
        "device_mb": torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None,
    }
    write_json(folder / f"{side}.json", content)


def forget_peak() -> float:
    """Makes the present resident size the largest so far, and gives it in MB. Linux.

    `ru_maxrss` would not do: a child inherits the largest size of its parent.
    """
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident("VmRSS")


def resident(word: str) -> float:
    """A size of this process in MB, by its word in `/proc/self/status`."""
    found = re.search(rf"^{word}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def by_monai(network: Any, source: Path, target: Path, device: torch.device) -> WindowCount:
    """As MONAI's tutorials do it."""
    transforms = monai.room("transforms")
    infer = monai.room("inferers").sliding_window_inference
    load = transforms.Compose([
        transforms.LoadImage(image_only=True, ensure_channel_first=True),
        transforms.Orientation(axcodes="RAS"),
        transforms.ScaleIntensityRange(LOW, HIGH, 0.0, 1.0, clip=True),
    ])  # fmt: skip
    with torch.inference_mode():
        volume = load(source)
        logits = infer(
            volume[None].to(device), WINDOW, SAME.windows_per_batch, network,
            overlap=SAME.overlap, mode="gaussian",
        )  # fmt: skip
        labels = logits.argmax(dim=1)
        save = transforms.SaveImage(
            output_dir=target.parent, output_postfix="", output_dtype=np.uint8,
            separate_folder=False, print_log=False,
        )  # fmt: skip
        labels.meta["filename_or_obj"] = str(target)
        save(labels)
    x, y, z = volume.shape[1:]
    return WindowCount(len(window_starts((x, y, z), WINDOW, SAME.overlap)))


def by_us(
    network: Any, source: Path, target: Path, device: torch.device, *, is_same: bool
) -> WindowCount:
    """As `mim3d predict` does it."""
    rule = replace(RULE, crop_to_body=not is_same)
    made = Segmenter(
        network, WINDOW, rule=rule, device=device, precision="fp32" if is_same else "bf16"
    )
    volume = read_volume(source)
    found = predict(made, volume, SAME if is_same else FAST)
    write_label(target, found.labels.voxels[0], volume)
    return found.windows


def compared(side: str, folder: Path, sides: list[str]) -> str:
    """How many labels are MONAI's; ends the run where equal settings give others."""
    if side == "theirs":
        return "reference"
    if "theirs" not in sides or side == "half":
        return "-"
    pair = [read_label(folder / f"{name}.nii.gz").voxels for name in ("theirs", side)]
    share = float((pair[0] == pair[1]).mean())
    require(side != "same" or share > 0.999, f"labels of files, equal in {share:.3%}")
    return f"{share:.4%}"


def line(row: dict[str, Any]) -> str:
    """One line of the table."""
    windows = f"{row['run']}" + (f" + {row['skipped']} of air" if row["skipped"] else "")
    memory = f"{row['peak_mb']:,.0f}"
    memory += f", device {row['device_mb']:,.0f}" if row["device_mb"] else ""
    cells = (
        row["side"], windows, f"{row['cpu_seconds']:,.1f}", f"{row['seconds']:,.1f}", memory,
        row["agreement"],
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def ratios(rows: list[dict[str, Any]]) -> str:
    """MONAI's time and memory over each of ours (U), by CPU time on a CPU."""
    by_side = {row["side"]: row for row in rows}
    if "theirs" not in by_side:
        return "MONAI did not run: no ratios"
    theirs, said = by_side.pop("theirs"), []
    clock = "cpu_seconds" if theirs["device_mb"] is None else "seconds"
    memory = "peak_mb" if theirs["device_mb"] is None else "device_mb"
    for side, row in by_side.items():
        time_ratio, share = theirs[clock] / row[clock], row[memory] / theirs[memory]
        said.append(f"{side}: U {time_ratio:.2f}, {share:.2f} of MONAI's memory")
    return "; ".join(said)


def result_path(device: str) -> Path:
    """`results/window_files_cpu_torch2.13.json`."""
    from script import RESULTS, word_for

    return RESULTS / f"window_files_{word_for(torch.device(device))}.json"


if __name__ == "__main__":
    main()
