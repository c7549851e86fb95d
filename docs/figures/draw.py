"""Draws the figures of `docs/explain/`: `python docs/figures/draw.py [FOLDER]`.

Masks and positions come from the library's own functions on phantom volumes; the curves are those
of `benchmarks/convergence/mouse`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray

from mim3d.data.phantom import PhantomRule, make_volume
from mim3d.pictures.canvas import INK, axes_at, new_figure, write_at
from mim3d.tokens.grid import TokenGrid
from mim3d.tokens.masking import count, is_masked, split_tokens
from mim3d.tokens.positions import Positions
from mim3d.tokens.strategies import STRATEGIES

DOCS = Path(__file__).resolve().parents[1]
CURVES = DOCS.parent / "benchmarks" / "convergence" / "mouse" / "results" / "convergence.json"
PATCH = (8, 8, 8)
RATIO, GUIDED_RATIO = 0.75, 0.45
HIDDEN = (0.23, 0.26, 0.36)
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"


def phantom() -> NDArray[np.float32]:
    """A volume `x y z`, 0 to 1."""
    voxels, _ = make_volume(3, 0, PhantomRule(shape=(96, 80, 48), spacing_mm=(1.5, 1.5, 3.0)))
    top = np.percentile(voxels, 99.5)
    return np.clip(voxels[0] / top, 0, 1).astype(np.float32)


def hidden_voxels(
    shape: tuple[int, int, int],
    masking: str,
    ratio: float = RATIO,
    weights: torch.Tensor | None = None,
) -> tuple[NDArray[np.bool_], int, int]:
    """Which voxels are masked, `x y z` bool, and how many tokens that are, of how many."""
    grid = TokenGrid.over(shape, PATCH)
    strategy = STRATEGIES[masking]((3, 3, 2), "z")
    scores = strategy(grid, torch.tensor([11]), weights=weights)
    tokens = is_masked(split_tokens(scores, count(ratio, grid.n)), grid.n)
    voxels = tokens.reshape(grid.counts)
    for axis, edge in enumerate(PATCH):
        voxels = voxels.repeat_interleave(edge, dim=axis)
    return voxels.numpy(), int(tokens.sum()), grid.n


def body_weights(volume: NDArray[np.float32]) -> torch.Tensor:
    """The share of each token's voxels that are not air, `1 n`."""
    x, y, z = (side // edge for side, edge in zip(volume.shape, PATCH, strict=True))
    boxes = (volume > 0.12).reshape(x, PATCH[0], y, PATCH[1], z, PATCH[2])
    return torch.from_numpy(boxes.mean(axis=(1, 3, 5), dtype=np.float32)).reshape(1, -1)


def draw_masking(path: Path) -> None:
    """The same volume under four shapes of masks and one guide, an axial and a coronal slice."""
    volume = phantom()
    names = ("uniform", "block", "tube", "slab")
    shown: list[tuple[str, Any, str]] = [("volume", None, "what the scanner gave")]
    for name in names:
        voxels, masked, n = hidden_voxels(volume.shape, name)
        shown.append((name, voxels, f"{masked} of {n} tokens masked"))
    voxels, masked, n = hidden_voxels(volume.shape, "uniform", GUIDED_RATIO, body_weights(volume))
    shown.append(("guided by body", voxels, f"{masked} of {n} tokens masked"))

    width, high, low, gap, columns = 1.75, 1.46, 1.75, 0.15, 3
    row = high + low + 0.75
    figure = new_figure(columns * (width + gap) + gap, 2 * row)
    for place, (title, voxels, says) in enumerate(shown):
        left, upper = gap + place % columns * (width + gap), place // columns * row
        write_at(figure, left, upper + 0.1, title, weight="bold")
        write_at(figure, left, upper + 0.28, says, size=7)
        slices = ((slice(None), slice(None), 24), (slice(None), 40, slice(None)))
        for at, (top, height) in zip(slices, ((0.45, high), (0.5 + high, low)), strict=True):
            grey = np.repeat(volume[at][..., None], 3, axis=-1)
            if voxels is not None:
                grey[voxels[at]] = 0.12 * grey[voxels[at]] + 0.88 * np.array(HIDDEN)
            axes = axes_at(figure, left, upper + top, width, height)
            aspect = 1.0 if at[2] == 24 else 2.0  # a slice is 3 mm thick, a voxel 1.5 mm wide
            axes.imshow(grey.transpose(1, 0, 2), origin="lower", aspect=aspect)
            _grid(axes, grey.shape[:2])
    figure.savefig(path)


def _grid(axes: Axes, shape: tuple[int, ...]) -> None:
    for edge in range(0, shape[0] + 1, PATCH[0]):
        axes.axvline(edge - 0.5, color="white", linewidth=0.25)
    for edge in range(0, shape[1] + 1, PATCH[1]):
        axes.axhline(edge - 0.5, color="white", linewidth=0.25)
    axes.set(xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set_visible(False)


def similarities(kind: str) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
    """How alike positions along x of a fine and a coarse volume are, and where tokens lie in mm.

    Returns:
        Places in mm of the tokens of both volumes, and cosines `fine coarse`.
    """
    positions, kept, places = Positions(kind, 192, 3), [], []
    for spacing, size in ((1.5, (96, 8, 8)), (3.0, (48, 8, 8))):
        grid = TokenGrid.over(size, PATCH)
        spacing_mm = torch.tensor([[spacing, spacing, spacing]])
        coordinates = positions.coordinates(grid, spacing_mm, None, torch.device("cpu"))
        vectors = positions.added(coordinates, grid)
        assert vectors is not None
        along_x = vectors[0, :, :64]  # the 32 sines and 32 cosines of x
        kept.append(torch.nn.functional.normalize(along_x, dim=-1))
        places.append(grid.centres_mm(spacing_mm)[0, :, 0].numpy())
    return places, (kept[0] @ kept[1].T).detach().numpy()


def draw_millimetres(path: Path) -> None:
    """Tokens of one body at two spacings, and which positions are alike, by index and in mm."""
    figure = new_figure(10.2, 3.5)
    volume = phantom()[:, :, 24]
    for place, step in enumerate((1, 2)):
        axes = axes_at(figure, 0.55, 0.45 + place * 1.55, 2.6, 1.1)
        axes.imshow(
            volume[::step, ::step].T, origin="lower", cmap="gray", extent=(-72, 72, -60, 60),
            aspect="auto",
        )  # fmt: skip
        for number, edge in enumerate(np.arange(-72, 72, 8 * 1.5 * step)):
            axes.axvline(edge, color="white", linewidth=0.5)
            axes.text(edge + 4 * 1.5 * step, -54, str(number), color="white", ha="center", size=6)
        axes.set(yticks=[], xlabel="mm" if place else "")
        axes.tick_params(labelsize=6)
        axes.xaxis.label.set_size(7)
        write_at(figure, 0.55, 0.22 + place * 1.55,
                 f"voxels of {1.5 * step} mm, patches of 8 voxels: {8 * 1.5 * step:.0f} mm a token",
                 size=7.5)  # fmt: skip
    for place, (kind, title) in enumerate(
        (("sincos_index", "positions by index"), ("sincos_mm", "positions in millimetres"))
    ):
        centres, cosines = similarities(kind)
        axes = axes_at(figure, 4.1 + place * 3.05, 0.45, 2.5, 2.5)
        picture = axes.imshow(cosines, origin="lower", cmap="viridis", vmin=-0.2, vmax=1, aspect=1)
        axes.set_aspect("auto")
        best = cosines.argmax(axis=1)
        axes.plot(best, range(len(best)), "o", color=ORANGE, markersize=4)
        axes.set(
            xticks=range(len(centres[1])), xticklabels=[f"{mm:.0f}" for mm in centres[1]],
            yticks=range(len(centres[0])), yticklabels=[f"{mm:.0f}" for mm in centres[0]],
            xlabel="token of the 3 mm volume, its centre in mm",
            ylabel="token of the 1.5 mm volume, in mm",
        )  # fmt: skip
        axes.tick_params(labelsize=6)
        axes.xaxis.label.set_size(7)
        axes.yaxis.label.set_size(7)
        write_at(figure, 4.1 + place * 3.05, 0.22, title, size=8, weight="bold")
    bar = figure.add_axes((9.8 / 10.2, 0.17, 0.008, 0.66))
    figure.colorbar(picture, cax=bar).ax.tick_params(labelsize=6)
    write_at(figure, 9.72, 0.22, "cosine", size=7)
    figure.savefig(path)


def mean_curve(arm: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Judged steps of an arm at 5 labels, and the mean Dice of its replicates at each."""
    found = json.loads(CURVES.read_text())["records"]
    records = [one for one in found if one["arm"] == arm and one["labels"] == "5"]
    steps = np.array(records[0]["steps"])
    return steps, np.mean([_mean_dice(one) for one in records], axis=0)


def _mean_dice(record: dict[str, Any]) -> NDArray[np.float64]:
    """Mean over subjects at each judged step."""
    dice = record["dice"]
    rows = list(dice.values()) if isinstance(dice, dict) else dice
    table = np.array(rows, dtype=np.float64)
    return table.mean(axis=0) if table.shape[1] == len(record["steps"]) else table.mean(axis=1)


def first_step_at(steps: NDArray[Any], dice: NDArray[np.float64], level: float) -> float:
    """Where a curve's running maximum first reaches a level, between steps by interpolation."""
    running = np.maximum.accumulate(dice)
    at = int(np.argmax(running >= level))
    share = (level - running[at - 1]) / (running[at] - running[at - 1])
    return float(steps[at - 1] + share * (steps[at] - steps[at - 1]))


def draw_convergence(path: Path) -> None:
    """How the factor of one arm over another is read off two curves."""
    figure = new_figure(7.2, 3.6)
    axes = axes_at(figure, 0.7, 0.2, 6.2, 2.85)
    curves = {arm: mean_curve(arm) for arm in ("scratch", "mae")}
    level = 0.9 * float(curves["scratch"][1].max())
    firsts = {}
    for arm, colour, name in (("scratch", GREY, "from scratch"), ("mae", BLUE, "from MAE")):
        steps, dice = curves[arm]
        axes.plot(steps, dice, "-o", color=colour, markersize=3.5, label=name)
        firsts[arm] = first_step_at(steps, dice, level)
        axes.plot([firsts[arm]] * 2, [0, level], ":", color=colour)
        axes.annotate(f"T = {firsts[arm]:.0f}", (firsts[arm] + 4, 0.03), color=colour, fontsize=8)
    axes.axhline(level, color=ORANGE, linewidth=1)
    axes.annotate("0.9 of the best from scratch", (402, level - 0.035), color=ORANGE, fontsize=8,
                  ha="right")  # fmt: skip
    axes.annotate("", (firsts["scratch"], 0.1), (firsts["mae"], 0.1),
                  arrowprops={"arrowstyle": "<->", "color": INK})  # fmt: skip
    factor = firsts["scratch"] / firsts["mae"]
    axes.annotate(f"{factor:.2f} times fewer steps", (firsts["mae"] + 38, 0.115),
                  color=INK, fontsize=8.5)  # fmt: skip
    axes.set(xlabel="steps of fine-tuning", ylabel="Dice of whole validation volumes")
    axes.set(xlim=(0, 405), ylim=(0, 0.72))
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    axes.tick_params(labelsize=7)
    figure.savefig(path)


def main(folder: Path = DOCS / "pictures") -> None:
    """Draws all of them into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    draw_masking(folder / "masking.png")
    draw_millimetres(folder / "millimetres.png")
    draw_convergence(folder / "convergence.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draws the figures of the site.")
    parser.add_argument("folder", type=Path, nargs="?", default=DOCS / "pictures")
    main(parser.parse_args().folder)
