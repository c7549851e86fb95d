"""The face that every task of a fine-tuning shows to the workflow."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from mim3d.config.data import DataConfig
from mim3d.config.verbs import FinetuneConfig
from mim3d.data.feed import Feed
from mim3d.data.store import Store
from mim3d.foundation.reporting import Reporter
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Task
from mim3d.training.run import Run
from mim3d.training.validation import Validator


class Training(Protocol):
    """What is learned, of whom, and how it is judged; made of a config and a store.

    Attributes:
        targets: numbers of whole cases that are learned, by name; none is label maps.
    """

    targets: tuple[str, ...]

    def __init__(self, config: FinetuneConfig, store: Store) -> None: ...

    @staticmethod
    def data(data: DataConfig, said: Collection[str] | None) -> DataConfig:
        """The section with what suits the task where nothing was said.

        Args:
            data: as it was read.
            said: dotted settings that were written down; None: not known.
        """

    def build(self, cases: Sequence[str]) -> tuple[Task, VolumeViT]:
        """The task and its encoder, with weights drawn from torch's generator.

        Args:
            cases: those that are trained on.
        """

    def record(self, cases: Sequence[str]) -> dict[str, Any]:
        """What the run keeps beside its preparation, to predict by.

        Args:
            cases: those that are trained on.
        """

    def begin(self, feed: Feed, reporter: Reporter) -> None:
        """What comes before the first step of a new run."""

    def validators(
        self, run: Run, judging: Sequence[str], choosing: Sequence[str]
    ) -> list[Validator]:
        """The looks at cases that judge, and at those that choose the `best` checkpoint."""

    def told(self, numbers: Mapping[str, float]) -> str:
        """The numbers of the validation, in words."""
