"""The supervised tasks of whole volumes: a class of each target, or a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mim3d.config.sections import ClassificationConfig
from mim3d.data.asked_target import AskedTarget
from mim3d.data.batch import BatchNeeds, CropBatch
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.models.classifier import VolumeClassifier
from mim3d.objectives.base import Moment, Outcome, Task

ERRORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "smooth_l1": F.smooth_l1_loss,
}
"""Losses of a number, by the config's word; of a difference in deviations."""


class Classification(Task):
    """A network of whole volumes and its loss. The `state_dict` is the network's.

    The loss of a crop is the mean over its targets; that of a batch the mean over its crops, so
    that it does not depend on how a batch is divided. Class weights multiply the terms of a class,
    and `balanced` ones have the mean 1 over the training cases.

    Args:
        network: with as many outputs as the targets have together.
        config: loss, smoothing, blending, weights.
        table: what is learned.

    Raises:
        ConfigError: settings that do not go together, or numbers that cannot be.
        UserError: weights are to balance classes, of which one has no training case.
    """

    def __init__(
        self,
        network: VolumeClassifier,
        config: ClassificationConfig,
        table: Sequence[AskedTarget],
    ) -> None:
        super().__init__()
        # In a tuple the network is no submodule, so that its parts keep their own names.
        self._network = (network,)
        self.encoder, self.decoder = network.encoder, network.decoder
        self.config, self.table = config, tuple(table)
        is_regression = all(one.classes is None for one in table)
        self.loss = checked_loss(config, is_regression=is_regression)
        self.needs = BatchNeeds(targets=tuple(one.target for one in table))
        for place, weights in enumerate(class_weights(config, table)):
            self.register_buffer(f"class_weights_{place}", weights, persistent=False)

    @property
    def network(self) -> VolumeClassifier:
        """The network, for prediction."""
        return self._network[0]

    def train(self, mode: bool = True) -> Classification:
        """Sets the mode of the network too."""
        self.network.train(mode)
        super().train(mode)
        return self

    def forward(self, batch: CropBatch, moment: Moment) -> Outcome:
        """The loss of crops with targets; logs the accuracy, or the mean error in its own unit.

        Args:
            batch: crops; in training they are blended where the config says so.
            moment: the keys of what is blended, and of the tokens that are seen, follow from it and
                the crops' ids.
        """
        truths = self._truths(batch)
        shown, aims = batch, truths
        if self.training and self.config.mixup > 0:
            share = own_shares(batch, moment, self.config.mixup)
            shown = blended(batch, share)
            aims = [_blend(truth, share) for truth in truths]
        outputs = self._outputs(shown, moment)
        losses = [
            self._loss(place, answer, aim)
            for place, (answer, aim) in enumerate(zip(outputs, aims, strict=True))
        ]
        loss = torch.stack(losses).mean()
        with torch.no_grad():
            logs = self._logs(outputs, truths)
        return Outcome(loss, logs)

    def _outputs(self, batch: CropBatch, moment: Moment) -> tuple[Tensor, ...]:
        """Of each target, `b k`."""
        keeps_some = self.training and self.network.keep < 1
        keys = moment.keys(batch, "keep") if keeps_some else None
        outputs: Tensor = self.network(
            batch.voxels, batch.spacing_mm, batch.valid, batch.present, keys=keys
        )
        widths = [one.outputs for one in self.table]
        return tuple(torch.split(outputs.float(), widths, dim=1))

    def _truths(self, batch: CropBatch) -> list[Tensor]:
        """Of each target, `b k`: shares of the classes, or the number in deviations (`b 1`)."""
        if batch.targets is None:
            raise ValueError("classification needs a batch with targets")
        columns = batch.targets.unbind(dim=1)
        return [_truth(one, column) for one, column in zip(self.table, columns, strict=True)]

    def _loss(self, place: int, outputs: Tensor, aim: Tensor) -> Tensor:
        """Of one target, a scalar."""
        asked = self.table[place]
        if asked.classes is None:
            return ERRORS[self.loss](outputs, aim)
        k, smoothing = aim.shape[1], self.config.label_smoothing
        aim = (1 - smoothing) * aim + smoothing / k
        weights = getattr(self, f"class_weights_{place}")
        terms = weights * aim * _log_probabilities(asked, outputs)
        loss: Tensor = -terms.sum(dim=1).mean()
        return loss

    def _logs(self, outputs: Sequence[Tensor], truths: Sequence[Tensor]) -> dict[str, Tensor]:
        """Of the crops as they are without blending: the mean over the targets."""
        accuracies, errors = [], []
        for asked, answer, truth in zip(self.table, outputs, truths, strict=True):
            if asked.classes is None:
                errors.append((answer - truth).abs().mean() * asked.deviation)
            else:
                guess = _log_probabilities(asked, answer).argmax(dim=1)
                accuracies.append((guess == truth.argmax(dim=1)).float().mean())
        if accuracies:
            return {"accuracy": torch.stack(accuracies).mean()}
        return {"error": torch.stack(errors).mean()}


def checked_loss(config: ClassificationConfig, *, is_regression: bool) -> str:
    """The word of the loss, where the settings go together.

    Raises:
        ConfigError: they do not.
    """
    loss = config.loss or ("smooth_l1" if is_regression else "ce")
    task = "regression" if is_regression else "classification"
    if (loss in ERRORS) != is_regression:
        fitting = ", ".join(ERRORS) if is_regression else "ce, bce"
        raise ConfigError(
            f"`classification.loss {loss}` is not for `task {task}`",
            remedy=f"take one of {fitting}, or leave it out",
            code="loss",
        )
    if is_regression and (config.label_smoothing or config.class_weights != "none"):
        asked = "label_smoothing" if config.label_smoothing else "class_weights"
        raise ConfigError(
            f"`classification.{asked}` is for classes, and numbers have none",
            remedy="leave it out, or take `--task classification`",
            code="loss",
        )
    if not 0 <= config.label_smoothing < 1:
        raise ConfigError(
            f"`classification.label_smoothing` is {config.label_smoothing}, expected 0 to below 1",
            code="range",
        )
    if config.mixup < 0:
        raise ConfigError(
            f"`classification.mixup` is {config.mixup}, expected 0 or more", code="range"
        )
    return loss


def class_weights(config: ClassificationConfig, table: Sequence[AskedTarget]) -> list[Tensor]:
    """The weight of each class of each target, `k` float32; of a number one that is not used.

    `balanced` is `n / (k n_c)` for `n_c` of `n` training cases with class c (King and Zeng 2001).

    Raises:
        ConfigError: not one number above 0 for each class.
        UserError: a class has no training case to be balanced by.
    """
    return [_weights(config, one) for one in table]


def _weights(config: ClassificationConfig, asked: AskedTarget) -> Tensor:
    k, said = len(asked.classes or (0.0,)), config.class_weights
    if asked.classes is None or said == "none":
        return torch.ones(k)
    if said == "balanced":
        if not all(asked.counts):
            empty = asked.classes[asked.counts.index(0)]
            raise UserError(
                f"class {empty:g} of the target `{asked.name}` has no training case, so that no "
                "weight balances it",
                remedy="train on more subjects, or leave `classification.class_weights` out",
                code="no-class",
            )
        return torch.tensor([sum(asked.counts) / (k * count) for count in asked.counts])
    if len(said) != k or not all(weight > 0 for weight in said):
        raise ConfigError(
            f"`classification.class_weights` is {', '.join(map(str, said))}; the target "
            f"`{asked.name}` needs one number above 0 for each of its {k} classes",
            remedy="give them in the order of the classes, or take `balanced`",
            code="class-weights",
        )
    return torch.tensor(said)


def own_shares(batch: CropBatch, moment: Moment, alpha: float) -> Tensor:
    """The share of each crop in its own blend, `b`, from a half to 1.

    The larger part of a draw from Beta(alpha, alpha): spacing and padding of a blend are the own
    crop's (Berthelot et al., arXiv:1905.02249, eq. 9).
    """
    drawn = [
        float(moment.random.generator(int(index), "mixup").beta(alpha, alpha))
        for index in batch.crop_ids.tolist()
    ]
    shares = torch.tensor([max(one, 1 - one) for one in drawn])
    return shares.to(batch.voxels.device, non_blocking=True)


def blended(batch: CropBatch, share: Tensor) -> CropBatch:
    """Each crop with the next one of its micro-batch, the last with the first.

    What is padding in one of the two and valid in the other is valid, and a contrast that only one
    has is there.

    Args:
        batch: crops of one size.
        share: of the own crop, `b`.
    """
    voxels = batch.voxels
    if batch.valid is not None:
        voxels = voxels.masked_fill(~batch.valid[:, None], 0)
    if batch.present is not None:
        voxels = voxels.masked_fill(~batch.present[:, :, None, None, None], 0)
    return replace(
        batch,
        voxels=_blend(voxels, share),
        valid=_either(batch.valid),
        present=_either(batch.present),
    )


def _blend(rows: Tensor, share: Tensor) -> Tensor:
    own = share.to(rows.dtype).reshape(-1, *(1,) * (rows.ndim - 1))
    return own * rows + (1 - own) * rows.roll(-1, dims=0)


def _either(known: Tensor | None) -> Tensor | None:
    return None if known is None else known | known.roll(-1, dims=0)


def _truth(asked: AskedTarget, column: Tensor) -> Tensor:
    if asked.classes is None:
        return ((column - asked.mean) / asked.deviation)[:, None]
    places = torch.arange(len(asked.classes), device=column.device)
    return (column[:, None] == places).float()


def _log_probabilities(asked: AskedTarget, outputs: Tensor) -> Tensor:
    """Of each class, `b k`; a sigmoid is a softmax over 0 and its one output."""
    if asked.is_sigmoid:
        return torch.cat([F.logsigmoid(-outputs), F.logsigmoid(outputs)], dim=1)
    return outputs.log_softmax(dim=1)
