"""What runs a benchmark's folder already holds: what they follow from must not change any more."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mim3d.config.nodes import load
from mim3d.foundation.documents import read_object

PRETRAIN, FINETUNE, TUNE = "pretrain", "finetune", "tune"
RECORDS, PRETRAINED = "records", "pretrained"
FOLDERS = {PRETRAINED: PRETRAIN, PRETRAIN: PRETRAIN, TUNE: TUNE, RECORDS: FINETUNE,
           FINETUNE: FINETUNE}  # fmt: skip
"""Where runs and what was kept of them lie, and of which sort they are."""
NUMBER = r"[0-9.e+-]+"
ENDINGS = {
    PRETRAIN: r"-seed[0-9]+(-fold[0-9]+)?",
    FINETUNE: rf"-labels{NUMBER}-(?P<replicate>[0-9]+)",
    TUNE: rf"-lr{NUMBER}?(-warmup[0-9]+)?(-fold(?P<fold>[0-9]+))?",
}
"""What follows an arm's name in that of a run, by sort."""


@dataclass(frozen=True)
class Begun:
    """A run that is there, finished or not.

    Args:
        sort: `pretrain`, `finetune` or `tune`.
        name: of its folder or record.
        replicate: of a fine-tuning.
        fold: that a rate is chosen for, or None.
        before: name of the pre-training that it starts from; None from scratch, or not known.
    """

    sort: str
    name: str
    replicate: int | None = None
    fold: int | None = None
    before: str | None = None

    @property
    def seed(self) -> int | None:
        """Of that pre-training."""
        found = re.search(r"-seed([0-9]+)(-fold[0-9]+)?$", self.before or "")
        return None if found is None else int(found[1])


def begun(out: Path, arm: str) -> tuple[Begun, ...]:
    """All runs of an arm in a benchmark's folder, each once."""
    found: dict[tuple[str, str], Begun] = {}
    for folder in FOLDERS:
        for run in _runs(out, folder, arm):
            found.setdefault((run.sort, run.name), run)
    return tuple(found.values())


def _runs(out: Path, folder: str, arm: str) -> Iterator[Begun]:
    sort = FOLDERS[folder]
    pattern = re.compile(re.escape(arm) + ENDINGS[sort])
    for path in sorted((out / folder).glob("*")):
        found = pattern.fullmatch(path.name.removesuffix(".json"))
        if found is None or path.name.startswith("."):
            continue
        numbers = {
            name: None if value is None else int(value) for name, value in found.groupdict().items()
        }
        before = None if sort == PRETRAIN else _before(path)
        yield Begun(sort, found[0], **numbers, before=before)


def _before(path: Path) -> str | None:
    """Of a record or a run's folder, the pre-training that it names."""
    if path.suffix == ".json":
        paid = read_object(path).get("pretraining")
        return None if paid is None else str(paid["run"])
    config = path / "config.yaml"
    if not config.is_file():
        return None
    init = load(config.read_text(encoding="utf-8")).get("init")
    return None if init is None else Path(init).name
