"""A class of the whole case, told by a linear map beside a pretext task (MSMAE)."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim3d.config.objective import PretextConfig, SupervisedConfig
from mim3d.data.batch import CropBatch, Target
from mim3d.foundation.errors import ConfigError
from mim3d.models.blocks import initialise
from mim3d.models.hidden_states import HiddenStates
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Outcome
from mim3d.objectives.heads import crop_features

SUPPORTED = ("mae", "simmim")
"""Pretext tasks that take the term."""


class Supervision(nn.Module):
    """Weighted cross-entropy of the case's class, from what stands for the crop as a whole.

    Logits go into the cross-entropy, which takes its softmax once; cases whose class is unknown
    count nothing. The sum is divided by *all* crops, so that a labelled crop counts the same in
    whatever micro-batch and process it lies. Stores `head` (`k d`).

    Args:
        encoder: whose class token, or mean of patch tokens where it has none, is read.
        config: with the classes, which the store knows.

    Raises:
        ConfigError: fewer than two classes.
    """

    def __init__(self, encoder: VolumeViT, config: SupervisedConfig) -> None:
        super().__init__()
        if config.classes is None or len(config.classes) < 2:
            known = 0 if config.classes is None else len(config.classes)
            raise ConfigError(
                f"`objective.supervised.target {config.target}` has {known} classes, 2 are needed",
                remedy="`mim3d info STORE` lists its targets; name a classification there",
                code="supervised",
            )
        self.config = config
        self._told: frozenset[str] | None = None
        self.head = nn.Linear(encoder.width, len(config.classes))
        initialise(self.head, encoder.config.initialisation)

    @property
    def target(self) -> Target:
        """What is asked of the feed."""
        assert self.config.target is not None
        return Target(self.config.target, self.config.classes, is_optional=True)

    def tell_of(self, cases: Collection[str]) -> None:
        """From now on the classes of these cases alone are told; those of others are unknown.

        Args:
            cases: their ids, where few are to count as labelled.
        """
        self._told = frozenset(cases)

    def forward(self, states: Sequence[HiddenStates], batches: Sequence[CropBatch]) -> Outcome:
        """The weighted term, and what it says in the log.

        Args:
            states: of the crops as they were seen, of one size each.
            batches: the same crops with their `targets`.
        """
        features = torch.cat([crop_features(one) for one in states])
        classes = torch.cat([self._classes(batch) for batch in batches]).to(features.device)
        is_known = ~classes.isnan()
        logits = self.head(features.to(self.head.weight.dtype)).float()
        each = F.cross_entropy(logits, classes.nan_to_num().long(), reduction="none")
        # Not a product: an infinite error of a case without a class would become NaN.
        error = torch.where(is_known, each, 0.0).sum() / len(classes)
        share = is_known.float().mean()
        right = (logits.argmax(dim=1) == classes) & is_known
        logs = {
            "supervised_loss": error.detach(),
            "labelled_share": share,
            "supervised_right": right.float().mean(),
            # Of a head that has learnt nothing: all classes alike.
            "undecided": self.config.weight * share * math.log(self.head.out_features),
        }
        return Outcome(self.config.weight * error, logs)

    def _classes(self, batch: CropBatch) -> Tensor:
        """Place of each crop's class, NaN where unknown, `b`."""
        if batch.targets is None:
            return batch.voxels.new_full((len(batch.voxels),), math.nan)
        classes = batch.targets[:, 0]
        if self._told is None:
            return classes
        told = torch.tensor([case in self._told for case in batch.case_ids])
        return classes.masked_fill(~told.to(classes.device), math.nan)

    def added(
        self, outcome: Outcome, states: Sequence[HiddenStates], batches: Sequence[CropBatch]
    ) -> Outcome:
        """The outcome of the pretext task with the term beside it."""
        term = self(states, batches)
        logs = {**outcome.logs, **term.logs}
        loss = outcome.loss + term.loss
        logs["loss"] = loss.detach()
        logs["mean_predictor"] = outcome.logs["mean_predictor"] + logs.pop("undecided")
        return Outcome(loss, logs, outcome.pictures)


def supervision(encoder: VolumeViT, config: PretextConfig) -> Supervision | None:
    """The supervised term of a pretext task, or None where its config names no target.

    Raises:
        ConfigError: the task is none that takes it.
    """
    if config.supervised.target is None:
        return None
    check_supervised(config)
    return Supervision(encoder, config.supervised)


def check_supervised(config: PretextConfig) -> None:
    """Raises `ConfigError` where a pretext task does not take the term, or no such weight."""
    if config.name not in SUPPORTED:
        raise ConfigError(
            f"`objective.supervised` is not for `objective.name {config.name}`",
            remedy="use `objective.name mae` or `simmim`, or leave it out",
            code="supervised",
        )
    if not 0 <= config.supervised.weight < math.inf:
        raise ConfigError(
            f"`objective.supervised.weight` is {config.supervised.weight}, expected 0 or more",
            code="supervised",
        )
