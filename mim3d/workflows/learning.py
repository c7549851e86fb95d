"""What a pre-training run learned, drawn from its own log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mim3d.foundation.documents import parsed
from mim3d.pictures.curves import Curve, Panel, draw_panels

PICTURE = "curves.png"

Names = dict[str, str]

QUANTITIES: tuple[tuple[str, Names, Names], ...] = (
    ("linear probe, R2", {"probe_r2": "encoder"},
     {"probe_r2_step0": "before training", "probe_r2_voxels": "voxels and position",
      "probe_r2_position": "position alone"}),
    ("probes, Dice", {"probe_dice": "linear", "knn_dice": "nearest neighbours"},
     {"probe_dice_step0": "linear, before training", "probe_dice_voxels": "voxels and position",
      "probe_dice_position": "position alone"}),
    ("rank of the features", {"rank": "encoder"}, {}),
    ("share that all tokens have in common", {"constant_share": "encoder"}, {}),
    ("reconstruction, PSNR in dB", {"psnr": "fixed crops"}, {}),
    ("reconstruction, SSIM", {"ssim": "fixed crops"}, {}),
)  # fmt: skip
"""Title, names in the log that become curves, and those that become levels."""


def draw_learning(folder: Path, name: str) -> Path:
    """Draws the loss and what probes found of a run, and returns the file.

    Args:
        folder: the run's; its log has at least one line of the training.
        name: stands in the title.
    """
    entries = list(_entries(folder / "log.jsonl"))
    training = [e for e in entries if e["kind"] == "train"]
    looks = [e for e in entries if e["kind"] == "validation"]
    panels = [Panel("loss", _curves({"loss": "training"}, training)
                    | _curves({"fixed_loss": "fixed crops"}, looks))]  # fmt: skip
    for title, curves, levels in QUANTITIES:
        found = [look for look in looks if any(key in look for key in curves)]
        stays = {
            called: found[-1][key]
            for key, called in levels.items()
            if found and found[-1].get(key) is not None
        }
        panels.append(Panel(title, _curves(curves, found), stays))
    return draw_panels(folder / "pictures" / PICTURE, panels, title=name)


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        yield parsed(line)


def _curves(names: Names, entries: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for key, called in names.items():
        points = [(e["step"], e[key]) for e in entries if e.get(key) is not None]
        if points:
            curves[called] = [step for step, _ in points], [value for _, value in points]
    return curves
