"""The rows of a comparison, as a table for a person and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim3d.evaluation.intervals import Measure
from mim3d.evaluation.table import aligned
from mim3d.workflows.probing.judges import Judge, gain
from mim3d.workflows.probing.views import RANDOM, RUN, VOXELS

LONG = {
    "dice": "Dice", "auc": "ROC-AUC", "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1", "pearson": "Pearson",
    "spearman": "Spearman", "mae": "mean absolute error",
}  # fmt: skip
"""What scores are called on the page."""
TOLD = {"knn": "k-NN", "linear": "linear", "frozen": "frozen encoder", "lora": "LoRA",
        "full": "full fine-tuning"}  # fmt: skip
ORDER = tuple(TOLD)
VIEWS = (RUN, RANDOM, VOXELS)


@dataclass(frozen=True, eq=False)
class Row:
    """One reader of one view.

    Attributes:
        reader: `knn`, `linear`, `frozen`, `lora` or `full`.
        view: whose features it read.
        said: what it answered for each judged case.
        trained: parameters that were trained; 0 where none was by steps.
    """

    reader: str
    view: str
    said: NDArray[np.float64]
    trained: int = 0


@dataclass(frozen=True, eq=False)
class Scored:
    """A row with its numbers.

    Attributes:
        row: what was answered.
        scores: by name, the headline first.
        gains: of the headline over the same reader of another view, by that view.
    """

    row: Row
    scores: Mapping[str, Measure]
    gains: Mapping[str, Measure]

    def as_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "reader": self.row.reader,
            "features": self.row.view,
            "trained_parameters": self.row.trained,
            "scores": {name: asdict(measure) for name, measure in self.scores.items()},
            "gains": {f"over {name}": asdict(measure) for name, measure in self.gains.items()},
        }


def scored(rows: Sequence[Row], judge: Judge) -> list[Scored]:
    """All rows with their scores, in the order of the table."""
    known = {(row.reader, row.view): row for row in rows}
    ordered = sorted(rows, key=lambda row: (ORDER.index(row.reader), VIEWS.index(row.view)))
    found = []
    for row in ordered:
        others = (known.get((row.reader, view)) for view in (RANDOM, VOXELS))
        gains = {
            other.view: gain(judge, row.said, other.said)
            for other in others
            if other is not None and row.view == RUN
        }
        found.append(Scored(row, judge.scores(row.said), gains))
    return found


def table_of(rows: Sequence[Scored], headline: str) -> list[str]:
    """Lines: every reader of every view, with intervals of the headline and of its gains."""
    others = [name for name in rows[0].scores if name != headline]
    has_voxels = any(VOXELS in one.gains for one in rows)
    head = ["reader", "features", LONG[headline], *(LONG[name] for name in others)]
    head += [f"over {RANDOM}", *([f"over {VOXELS}"] if has_voxels else []), "trained"]
    lines = []
    for one in rows:
        cells = [TOLD[one.row.reader], one.row.view, one.scores[headline].told(".3f")]
        cells += [_plain(one.scores[name]) for name in others]
        for view in (RANDOM, *([VOXELS] if has_voxels else [])):
            cells.append(one.gains[view].told("+.3f") if view in one.gains else "")
        cells.append(f"{one.row.trained:,}" if one.row.trained else "")
        lines.append(cells)
    return aligned(head, lines)


def _plain(measure: Measure) -> str:
    return "-" if measure.value is None else f"{measure.value:.3f}"
