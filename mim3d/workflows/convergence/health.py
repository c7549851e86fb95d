"""Is a pre-trained encoder alive? A dead run is marked, not averaged in."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mim3d.config.data import AugmentationConfig
from mim3d.config.objective import PretextConfig
from mim3d.config.verbs import PretrainConfig
from mim3d.data.batch import BatchNeeds, CropBatch
from mim3d.data.feed import make_feed
from mim3d.data.splits import pretraining_cases
from mim3d.foundation.documents import parsed
from mim3d.foundation.reporting import Silent
from mim3d.models.vit import VolumeViT
from mim3d.objectives.heads import crop_features
from mim3d.objectives.health import embedding_logs
from mim3d.training.alarms import GUESS_MARGIN, SMALLEST_STRETCH, is_guessing
from mim3d.training.fabric import choose_device
from mim3d.workflows.assembly import store_of
from mim3d.workflows.run_weights import encoder_of, start_from

PROBE_CROPS = 32
"""Crops, not augmented and the same for every arm, from all pre-training cases in turn."""
LEAST_RANK = 2.0
"""Effective rank below which little is left beside the vector that all crops have in common."""
LEAST_SPREAD = 0.5
"""Share of the untrained encoder's spread: with less, and so low a rank, variety was lost, where
crops that look alike never had it."""
ONE_VECTOR = 0.01
"""The same share below which all crops have one vector, whatever the loss says."""
LEAST_DICE = 0.01
LAST_SHARE = 0.1
"""Of a pre-training's steps, over which its last loss is taken."""
LEVELS = ("loss", "chance", "mean_predictor")
"""What the log has of the loss, and of answers that know nothing."""


def embedding_health(config: PretrainConfig, run: Path) -> dict[str, float]:
    """Effective rank, spread and mean cosine of a run's frozen features of some crops.

    Args:
        config: of the run.
        run: its folder.

    Returns:
        `crops_rank`, `crops_spread`, `crops_cosine` of the pooled features (`objectives.health`),
        and `untrained_rank` and so on of an encoder of the same form as it is drawn; the probes'
        `rank` is of tokens.
    """
    store = store_of(config.data, several=True)
    # Placed anywhere, so that arms that draw their crops elsewhere are looked at alike.
    data = replace(config.data, crop_sizes=(), placement="uniform", feed="store", workers=0,
                   window_cases=None, max_crops_per_visit=None, resident_on="auto")  # fmt: skip
    device = choose_device(config.training.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = VolumeViT(encoder_of(run))
    encoder.carry(store.channel_names)
    encoder.to(device).eval()
    feed = make_feed(
        store,
        pretraining_cases(store, config.data, config.training.seed),
        data=data,
        augmentation=AugmentationConfig(),
        needs=BatchNeeds(),
        batch_size=min(config.training.batch_size, PROBE_CROPS),
        seed=0,
        device=device,
    )
    crops = list(feed.fixed(PROBE_CROPS))
    untrained = _pooled(encoder, crops)
    start_from(encoder, str(run), "last", Silent())
    found = {"untrained": untrained, "crops": _pooled(encoder, crops)}
    return {
        f"{whose}_{name}": float(value)
        for whose, features in found.items()
        for name, value in embedding_logs(features).items()
    }


def _pooled(encoder: VolumeViT, crops: Iterable[CropBatch]) -> Tensor:
    device = next(encoder.parameters()).device
    with torch.no_grad():
        return torch.cat([
            crop_features(encoder(there.voxels, there.spacing_mm, valid=there.valid))
            for there in (batch.to(device) for batch in crops)
        ])  # fmt: skip


def why_collapsed(health: Mapping[str, float], *, tells_apart: bool) -> str | None:
    """Why features are those of a collapsed encoder; None for live ones.

    Spread is measured by what the untrained encoder makes of the same crops: where these look
    alike, so do their features, of a sound encoder too.

    Args:
        health: as `embedding_health` gives it.
        tells_apart: whether the loss proves that crops are told apart (`tells_crops_apart`):
            features that hardly differ are then no collapse, for what differs is what was asked.
    """
    rank, spread, untrained = (
        health[name] for name in ("crops_rank", "crops_spread", "untrained_spread")
    )
    is_finite = math.isfinite(rank) and math.isfinite(spread)
    has_fallen = rank < LEAST_RANK and spread < LEAST_SPREAD * untrained
    if is_finite and spread >= ONE_VECTOR * untrained and (tells_apart or not has_fallen):
        return None
    numbers = ", ".join(
        f"{name} {health[f'crops_{name}']:{form}} (untrained {health[f'untrained_{name}']:{form}})"
        for name, form in (("rank", ".2f"), ("spread", ".4f"), ("cosine", ".4f"))
    )
    return f"collapsed: of {PROBE_CROPS} crops {numbers}"


def tells_crops_apart(task: PretextConfig, levels: Mapping[str, float]) -> bool:
    """Whether the loss is one that an encoder with the same answer to all crops does not reach.

    So it is below guessing which views belong together, and below predicting the mean of all
    voxels. `target: teacher` is predicted by a constant where the teacher is one.

    Args:
        task: what was asked.
        levels: of its end, as `last_levels` gives them.
    """
    known = "loss" in levels and ("chance" in levels or "mean_predictor" in levels)
    return known and task.target != "teacher" and _why_level(levels) is None


def train_lines(run: Path) -> list[dict[str, Any]]:
    """The lines of training in a run's `log.jsonl`; none where there is no log."""
    path, lines = run / "log.jsonl", []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # the last line of a killed process
                line = parsed(text)
                if line.get("kind") == "train":
                    lines.append(line)
    return lines


def last_levels(run: Path) -> dict[str, float]:
    """Loss, `chance` and `mean_predictor` over the last tenth of a run's steps, where it has them.

    Args:
        run: its folder.

    Returns:
        Means by steps; not-a-number where one of a stretch was none. Empty without a log.
    """
    lines = train_lines(run)
    if not lines:
        return {}
    end = lines[-1]["step"]
    begins = [0, *(line["step"] for line in lines[:-1])]
    # What a line tells of reaches from the one before it.
    late = [
        (line["step"] - begin, line)
        for begin, line in zip(begins, lines, strict=True)
        if line["step"] > (1 - LAST_SHARE) * end
    ]
    return {
        name: sum(steps * _number(line[name]) for steps, line in late) / sum(s for s, _ in late)
        for name in LEVELS
        if all(name in line for _, line in late)
    }


def why_unlearnt(levels: Mapping[str, float], steps: int) -> str | None:
    """Why a pre-training has learned nothing of its own task; None for a sound one.

    Args:
        levels: of its end, as `last_levels` gives them.
        steps: of all of it; a very short one is not asked, as by the alarms of a training.
    """
    return None if steps < SMALLEST_STRETCH or "loss" not in levels else _why_level(levels)


def _why_level(levels: Mapping[str, float]) -> str | None:
    loss, chance, mean = levels["loss"], levels.get("chance"), levels.get("mean_predictor")
    if chance is not None and is_guessing(loss, chance):
        percent = f"{100 * GUESS_MARGIN:.0f} %"
        return f"learned nothing: loss {loss:.4g} is not {percent} below {chance:.4g} of guessing"
    if mean is not None and not loss < mean:
        return f"learned nothing: loss {loss:.4g} is not below {mean:.4g} of predicting the mean"
    return None


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def why_hopeless(last_dice: Sequence[float]) -> str | None:
    """Why a fine-tuning has learned nothing, or unlearned what it began with; None for a sound one.

    A case where nothing is and nothing is predicted has a Dice of exactly 1: it tells nothing.

    Args:
        last_dice: of each case at its end; a linear start may be far above it before the first
            step.
    """
    telling = [dice for dice in last_dice if dice < 1]
    mean = sum(telling) / len(telling) if telling else 1.0
    return None if mean >= LEAST_DICE else f"Dice {mean:.4f} after the last step"
