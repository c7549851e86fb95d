"""Where a guide that learns has looked: its maps over the volumes, and how much lies in anatomy.

    python benchmarks/masking/anatomy.py RUN... --store STORE --out DIR

RUN is a pre-training run with `objective.guide.by attention` or `loss`, STORE the store it was
trained on, whose label maps are looked at here alone. Of every case: the share of the map's weight
that lies in labelled voxels, beside the share of voxels that are labelled, which is chance. A place
that was never seen is left out of both. Intervals: bootstrap over subjects, of this one run.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from mim3d.config.data import Triple
from mim3d.config.reading import read_config
from mim3d.config.verbs import PretrainConfig
from mim3d.data.classes import IGNORE_INDEX
from mim3d.data.splits import pretraining_cases
from mim3d.data.store import Store, open_store
from mim3d.evaluation.intervals import Measure, drawn, measures
from mim3d.foundation.atomic import write_json
from mim3d.foundation.versions import versions
from mim3d.objectives.weight_maps import WeightMaps
from mim3d.pictures.canvas import LARGE, SMALL, axes_at, new_figure, save, write_at
from mim3d.pictures.slices import PLANES, Plane, Slice, cut, fullest, grey_range, letter, show
from mim3d.training.checkpoints import Checkpoints, read_state
from mim3d.workflows.case_facts import volume_grids

Array = NDArray[np.float64]
MAPS = "weights/masks.guide.maps."
"""Of a guide that learns, in a run's state."""
RESAMPLES, CONFIDENCE = 2000, 0.95
PICTURED = 4
"""Cases of a panel."""
SIDE, GAP, TOP = 1.35, 0.06, 0.55
"""Inches."""
WHITE_HOT = "inferno"


@dataclass(frozen=True, eq=False)
class Found:
    """The maps of a run.

    Args:
        name: of the run.
        by: what leads its masks.
        maps: of its cases.
        cases: their ids.
        patch: voxels of a cell.
    """

    name: str
    by: str
    maps: WeightMaps
    cases: Sequence[str]
    patch: Triple

    def of(self, case_id: str, shape: Triple) -> Array:
        """A case's map, voxel by voxel; NaN where nothing was seen."""
        values, known = (part.numpy() for part in self.maps.map_of(case_id))
        return spread_over(np.where(known, values.astype(np.float64), np.nan), self.patch, shape)


def found_in(run: Path, store: Store) -> Found:
    """The maps of a pre-training run, of the cases it saw."""
    config = read_config(run / "config.yaml", PretrainConfig)
    guide = config.objective.guide
    cases = pretraining_cases(store, config.data, config.training.seed)
    last = Checkpoints(run / "checkpoints").find("last")
    if last is None:
        raise SystemExit(f"`{run}` has no checkpoint")
    state = {name.removeprefix(MAPS): tensor for name, tensor in read_state(last).tensors.items()
             if name.startswith(MAPS)}  # fmt: skip
    if not state:
        raise SystemExit(f"`{run}` has no maps: its guide is `{guide.by}`")
    maps = WeightMaps(
        volume_grids(store, cases),
        config.encoder.patch,
        momentum=guide.momentum,
        refresh_epochs=guide.refresh_epochs,
    )
    maps.load_state_dict(state)
    return Found(run.name, guide.by, maps, cases, config.encoder.patch)


def spread_over(cells: Array, patch: Triple, shape: Triple) -> Array:
    """Numbers of cells as numbers of the voxels in them, `x y z`."""
    for axis, edge in enumerate(patch):
        cells = cells.repeat(edge, axis=axis)
    x, y, z = shape
    return cells[:x, :y, :z]


def shares(weights: Array, labels: NDArray[np.uint8], classes: int) -> Array:
    """Shares of weight and of voxels in each class above 0, and in all of these: `2 classes`.

    Args:
        weights: `x y z`; voxels without a number are left out of both.
        labels: `x y z`, class indices; voxels that are no class are left out too.
        classes: of the store, background among them.
    """
    is_known = np.isfinite(weights) & (labels != IGNORE_INDEX)
    if not weights[is_known].any():
        return np.full((2, classes), np.nan)
    own, kinds = weights[is_known], labels[is_known]
    inside = [kinds == value for value in range(1, classes)]
    inside.append(kinds > 0)
    return np.array([
        [own[each].sum() / own.sum() for each in inside],
        [each.mean() for each in inside],
    ])  # fmt: skip


def compared(each: Array, subjects: Sequence[str]) -> dict[str, tuple[Measure, ...]]:
    """Means over cases with intervals over subjects, by column of `shares`.

    Args:
        each: `cases 2 classes`.
        subjects: whose each case is.
    """
    count = each.shape[2]
    flat = each.reshape(len(each), -1)

    def statistic(weights: Array) -> Array:
        mean = weights @ flat / weights.sum(axis=1, keepdims=True)
        inside, chance = mean[:, :count], mean[:, count:]
        return np.concatenate([inside, chance, inside / chance], axis=1)

    every = measures(drawn(statistic, subjects, RESAMPLES), CONFIDENCE)
    return {
        "share": every[:count], "chance": every[count : 2 * count], "ratio": every[2 * count :],
    }  # fmt: skip


def look(found: Found, store: Store) -> tuple[dict[str, Any], dict[str, Any]]:
    """The numbers of a run over its labelled cases, and what is drawn of some of them."""
    names = store.classes.names if store.classes is not None else ()
    labelled = [case for case in found.cases if store.entry(case).has_label]
    pictured = labelled[:: max(1, len(labelled) // PICTURED)][:PICTURED]
    each, drawn_of, seen = [], {}, []
    for case_id in labelled:
        with store.open(case_id) as case:
            _, *size = case.shape
            shape: Triple = (size[0], size[1], size[2])
            _, labels = case.read((0, 0, 0), shape)
            assert labels is not None  # `has_label`
            weights = found.of(case_id, shape)
            seen.append(float(np.isfinite(weights).mean()))
            each.append(shares(weights, labels, len(names)))
            if case_id in pictured:
                image = case.read_normalised((0, 0, 0), shape)[0]
                drawn_of[case_id] = (image, labels, weights, case.spacing_mm)
    values = np.array(each)
    is_known = np.isfinite(values).all(axis=(1, 2))
    subjects = [
        store.subject(case) for case, known in zip(labelled, is_known, strict=True) if known
    ]
    numbers = compared(values[is_known], subjects)
    facts = {
        "run": found.name, "by": found.by, "cases": int(is_known.sum()),
        "seen": float(np.mean(seen)), "classes": [*names[1:], "all"],
        **{key: [vars(one) for one in each] for key, each in numbers.items()},
        "told": {key: [one.told(".3f") for one in each] for key, each in numbers.items()},
    }  # fmt: skip
    return facts, drawn_of


def draw(found: Found, cases: Mapping[str, Any], path: Path) -> Path:
    """One row a case: planes of the volume with its labels outlined, and of its map."""
    width = GAP + len(PLANES) * (2 * SIDE + 3 * GAP)
    figure = new_figure(width, TOP + len(cases) * (SIDE + 0.22))
    write_at(figure, GAP, 0.08, f"{found.name}: weights by {found.by}", size=LARGE, weight="bold")
    write_at(figure, GAP, 0.28, "volume with the labels' outline; weight of each place, from 0 "
             "(black) to the case's largest (bright), grey where nothing was seen",
             size=SMALL)  # fmt: skip
    for row, (case_id, (image, labels, weights, spacing)) in enumerate(cases.items()):
        top = TOP + row * (SIDE + 0.22)
        write_at(figure, GAP, top, case_id, size=SMALL)
        low, high = grey_range(image)
        for place, plane in enumerate(PLANES):
            at = fullest(labels > 0, plane)
            outline = cut(labels > 0, plane, at, spacing)
            left = GAP + place * (2 * SIDE + 3 * GAP)
            axes = axes_at(figure, left, top + 0.16, SIDE, SIDE)
            show(axes, cut(image, plane, at, spacing), cmap="gray", vmin=low, vmax=high)
            _outlined(axes, outline, plane)
            axes = axes_at(figure, left + SIDE + GAP, top + 0.16, SIDE, SIDE)
            shown = cut(weights, plane, at, spacing)
            show(axes, shown, cmap=WHITE_HOT, vmin=0.0, vmax=float(np.nanmax(weights)))
            axes.set_facecolor("gray")
            _outlined(axes, outline, plane)
    return save(figure, path)


def _outlined(axes: Axes, outline: Slice, plane: Plane) -> None:
    height, width = outline.size_mm
    rows, columns = outline.pixels.shape
    across = (np.arange(columns) + 0.5) * width / columns
    down = (np.arange(rows) + 0.5) * height / rows
    if outline.pixels.any() and min(rows, columns) > 1:
        axes.contour(across, down, outline.pixels, levels=(0.5,), colors=("cyan",), linewidths=0.8)
    letter(axes, plane, SMALL)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of all runs."""
    lines = [
        "| run | guide | cases | seen | class | of the weight | of the voxels | ratio |",
        "|---|---|---:|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        for place, name in enumerate(row["classes"]):
            told = [row["told"][key][place] for key in ("share", "chance", "ratio")]
            cells = [row["run"], row["by"], str(row["cases"]), f"{row['seen']:.0%}", name, *told]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Reads the command line, draws each run's panel, prints the table and writes the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--store", type=Path, required=True, help="that the runs were trained on")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    store = open_store(options.store)
    rows = []
    for run in options.runs:
        found = found_in(run, store)
        facts, cases = look(found, store)
        draw(found, cases, options.out / f"anatomy_{run.name}.png")
        rows.append(facts)
    write_json(options.out / "anatomy.json", {"versions": versions(), "runs": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
