"""Whether a run was trained on the very volumes that judge what is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mim3d.config.objective import PretextConfig
from mim3d.config.reading import read_config
from mim3d.config.verbs import PretrainConfig
from mim3d.data.store import Store


@dataclass(frozen=True)
class Note:
    """What a reader must know of scores.

    Attributes:
        text: one sentence.
        flatters: whether it makes the run look better than it is.
    """

    text: str
    flatters: bool


def seen_before(
    run: str, record: Mapping[str, Any], store: Store, judging: Sequence[str]
) -> list[Note]:
    """What a run has seen of those who judge; nothing where it has seen none.

    Args:
        run: its folder.
        record: what it keeps of its preparation.
        store: where the cases are.
        judging: their ids.
    """
    trained = set(record["trained_on"].values())
    seen = [case for case in judging if store.source_hash(case) in trained]
    if not seen:
        return []
    listed = f"{len(seen)} of {len(judging)} judged cases"
    if record["verb"] == "finetune":
        return [Note(f"`{run}` was fine-tuned on {listed}: its numbers flatter", True)]
    told = _told_in_pretraining(run, record)
    if told is None:
        text = f"`{run}` was pre-trained on the images of {listed}, without their labels"
        return [Note(text, False)]
    text = f"`{run}` was pre-trained on {listed} with {told}: its numbers may flatter"
    return [Note(text, True)]


def _told_in_pretraining(run: str, record: Mapping[str, Any]) -> str | None:
    """What a run's pre-training was told of its cases beside their images; None if nothing."""
    if record["verb"] != "pretrain":
        return None
    return told_beside_images(read_config(Path(run) / "config.yaml", PretrainConfig).objective)


def told_beside_images(objective: PretextConfig) -> str | None:
    """What a pretext task is told of its cases beside their images; None if nothing."""
    if objective.supervised.target is not None:
        return f"their `{objective.supervised.target}`"
    led = {"map": "their label maps", "prior": "weights that were given for them"}
    return f"masks led by {led[objective.guide.by]}" if objective.guide.by in led else None
