"""Dice of a trained segmenter by overlap and by window, on the validation cases of its store.

    python benchmarks/throughput/sliding_window.py --run runs/finetune-x --store stores/x

What an overlap costs is the number of windows; what it gains is measured here. Dice is the mean
over structures of the mean over cases, on the store's grid, as `finetune` reports it.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mim3d.config.data import DataConfig
from mim3d.config.inference import InferenceConfig
from mim3d.data.classes import IGNORE_INDEX
from mim3d.data.splits import validation_cases
from mim3d.data.store import Store, open_store
from mim3d.data.volume import Volume
from mim3d.evaluation.overlap import dice, index_maps, meetings, sizes
from mim3d.foundation.atomic import write_json
from mim3d.foundation.versions import versions
from mim3d.inference.predict import predict
from mim3d.inference.segmenter import Segmenter
from mim3d.workflows.loading import load_segmenter
from mim3d.workflows.tasks.segmentation import structures_of
from mim3d.workflows.throughput.machine import machine

OVERLAPS = (0.0, 0.125, 0.25, 0.5)
SCALES = (1.0, 1.5)
"""Sides of the window over those of the training's crop, rounded up to whole patches."""


def main() -> None:
    """Reads the command line and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--fold", type=int, help="of the store, where it has folds")
    parser.add_argument("--cases", type=int, help="at most so many")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="result file; default: results/")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    trained = load_segmenter(options.run, device=options.device, precision=options.precision)
    store = open_store(options.store)
    data = DataConfig(store=options.store, fold=options.fold)
    cases = validation_cases(store, data)[: options.cases]
    if not cases:
        raise SystemExit(f"store `{options.store}` has no validation cases")
    rows = []
    print("| window | overlap | windows | CPU s | Dice |\n|---|---:|---:|---:|---:|")
    for scale, overlap in itertools.product(SCALES, OVERLAPS):
        rows.append(measured(trained, store, cases, scale, overlap))
        row = rows[-1]
        window = " x ".join(map(str, row["window"]))
        print(
            f"| {window} | {overlap} | {row['windows']:,} | {row['cpu_seconds']:,.1f} "
            f"| {row['dice']:.4f} |",
            flush=True,
        )
    path = (
        options.out or Path(__file__).parent / "results" / f"overlap_{Path(options.run).name}.json"
    )
    facts = {"machine": machine(torch.device(trained.device)), "versions": versions()}
    write_json(path, {**facts, "cases": len(cases), "run": Path(options.run).name, "rows": rows})
    print(f"\n{len(cases)} cases; written to {path}")


def measured(
    trained: Segmenter, store: Store, cases: list[str], scale: float, overlap: float
) -> dict[str, Any]:
    """Mean Dice, windows and time of one setting."""
    patch: Any = getattr(trained.network, "encoder").patch  # noqa: B009
    x, y, z = (
        -(-round(scale * side) // edge) * edge
        for side, edge in zip(trained.window, patch, strict=True)
    )
    config = InferenceConfig(window=(x, y, z), overlap=overlap)
    assert trained.classes is not None
    structures = structures_of(trained.classes, trained.regions)
    scores: dict[str, list[float]] = {structure.name: [] for structure in structures}
    windows, spent = 0, 0.0
    # A store's voxels are prepared already.
    plain = Segmenter(
        trained.network, (x, y, z), classes=trained.classes, regions=trained.regions,
        swap_on_flip=trained.swap_on_flip, device=trained.device, precision=trained.precision,
    )  # fmt: skip
    for case_id in cases:
        with store.open(case_id) as case:
            size = case.shape[1:]
            _, labels = case.read((0, 0, 0), size)
            assert labels is not None
            volume = Volume.from_array(case.read_normalised((0, 0, 0), size), case.affine)
        began = time.process_time()
        found = predict(plain, volume, config)
        spent += time.process_time() - began
        windows += found.windows.run
        ignored = labels == IGNORE_INDEX
        reference = trained.classes.to_value(np.where(ignored, 0, labels))
        prediction = np.where(ignored, 0, found.labels.voxels[0])
        maps = index_maps(reference, prediction)
        table = meetings(maps)
        for structure in structures:
            counted = sizes(table, maps.indices(structure))
            if counted[0] or counted[1]:
                scores[structure.name].append(dice(*counted))
    by_structure = {name: float(np.mean(found)) for name, found in scores.items() if found}
    return {
        "window": [x, y, z],
        "overlap": overlap,
        "windows": windows,
        "cpu_seconds": spent,
        "dice": float(np.mean(list(by_structure.values()))) if by_structure else 0.0,
        "by_structure": by_structure,
    }


if __name__ == "__main__":
    main()
