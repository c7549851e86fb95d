"""The supervised tasks of whole volumes: a class of each target, or a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mim3d.config.data import Triple
from mim3d.config.objective import GuideConfig, PretextConfig
from mim3d.config.task import ClassificationConfig
from mim3d.data.asked_target import AskedTarget
from mim3d.data.batch import BatchNeeds, CropBatch
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.models.classifier import VolumeClassifier
from mim3d.objectives.base import Moment, Outcome, Task
from mim3d.objectives.class_weights import class_weights, same_answer
from mim3d.objectives.learnt_guide import AttentionGuide
from mim3d.objectives.questions import is_air
from mim3d.objectives.weight_maps import VolumeGrid
from mim3d.tokens.patches import pad_to_patches, without_air

ERRORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "smooth_l1": F.smooth_l1_loss,
}
"""Losses of a number, by the config's word; of a difference in deviations."""


class Classification(Task):
    """A network of whole volumes and its loss.

    Stores `encoder.*` and `decoder.*` of the network, and `guide.*` where attention leads it.

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
        self.guide = attention_guide(network, config)
        for place, weights in enumerate(class_weights(config, table)):
            same = same_answer(table[place], weights, config.label_smoothing)
            self.register_buffer(f"class_weights_{place}", weights, persistent=False)
            self.register_buffer(f"same_answer_{place}", same, persistent=False)

    @property
    def network(self) -> VolumeClassifier:
        """The network, for prediction."""
        return self._network[0]

    def remember(self, grids: Mapping[str, VolumeGrid]) -> None:
        """Makes room for what is learnt of places in volumes; before training, once.

        Args:
            grids: of every case that crops can come from, by id.
        """
        if self.guide is not None:
            self.guide.remember(self, grids)

    def train(self, mode: bool = True) -> Classification:
        """Sets the mode of the network too."""
        self.network.train(mode)
        super().train(mode)
        return self

    def forward(self, batch: CropBatch, moment: Moment) -> Outcome:
        """The loss of crops with targets; logs the accuracy, or the mean error in its own unit.

        In training it also logs the loss that the best answer which is the same for all would have.

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
            if self.training:
                logs["same_answer"] = self._of_same_answer(aims)
        return Outcome(loss, logs)

    def after_update(self, moment: Moment) -> None:
        """What the step told of places in volumes, and of what is pooled, is taken in."""
        self.decoder.follow()
        if self.guide is not None:
            self.guide.after_update(self, moment)

    def _outputs(self, batch: CropBatch, moment: Moment) -> tuple[Tensor, ...]:
        """Of each target, `b k`."""
        if self.network.drop_air:
            batch = body_alone(batch, self.network.encoder.patch)
        keys, weights, wants_attention = None, None, False
        if self.training and self.network.keep < 1:
            keys = moment.keys(batch, "keep")
        if keys is not None and self.guide is not None:
            crop = pad_to_patches(batch.voxels, batch.valid, self.network.encoder.patch)
            weights = self.guide.weights(batch, crop, moment)
            wants_attention = self.guide.wants_attention(moment)
        looked = self.network.look(
            batch.voxels,
            batch.spacing_mm,
            batch.valid,
            batch.present,
            keys=keys,
            weights=weights,
            wants_attention=wants_attention,
        )
        if wants_attention and self.guide is not None and looked.split is not None:
            self.guide.note_attention(batch, looked.split, looked.states, moment)
        widths = [one.outputs for one in self.table]
        return tuple(torch.split(looked.outputs.float(), widths, dim=1))

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
        return self._entropy(place, _log_probabilities(asked, outputs), aim)

    def _entropy(self, place: int, log_probabilities: Tensor, aim: Tensor) -> Tensor:
        k, smoothing = aim.shape[1], self.config.label_smoothing
        aim = (1 - smoothing) * aim + smoothing / k
        weights = getattr(self, f"class_weights_{place}")
        terms = weights * aim * log_probabilities
        loss: Tensor = -terms.sum(dim=1).mean()
        return loss

    def _of_same_answer(self, aims: Sequence[Tensor]) -> Tensor:
        """The loss of answering the same whatever is seen."""
        losses = []
        for place, (asked, aim) in enumerate(zip(self.table, aims, strict=True)):
            same = getattr(self, f"same_answer_{place}").expand_as(aim)
            is_number = asked.classes is None
            losses.append(
                ERRORS[self.loss](same, aim) if is_number else self._entropy(place, same, aim)
            )
        return torch.stack(losses).mean()

    def _logs(self, outputs: Sequence[Tensor], truths: Sequence[Tensor]) -> dict[str, Tensor]:
        """Of the crops as they are without blending: the mean over the targets.

        The error of one number is in its own unit; of several, which have units of their own, in
        deviations of the training cases.
        """
        accuracies, errors = [], []
        for asked, answer, truth in zip(self.table, outputs, truths, strict=True):
            if asked.classes is None:
                unit = asked.deviation if len(self.table) == 1 else 1.0
                errors.append((answer - truth).abs().mean() * unit)
            else:
                guess = _log_probabilities(asked, answer).argmax(dim=1)
                accuracies.append((guess == truth.argmax(dim=1)).float().mean())
        if accuracies:
            return {"accuracy": torch.stack(accuracies).mean()}
        return {"error": torch.stack(errors).mean()}


def attention_guide(
    network: VolumeClassifier, config: ClassificationConfig
) -> AttentionGuide | None:
    """What leads the draw of the tokens that training sees; None where chance does.

    Raises:
        ConfigError: crops are blended, so that they are of no one case.
    """
    if config.keep_by == "chance":
        return None
    if config.mixup > 0:
        raise ConfigError(
            "`classification.keep_by attention` goes by a map of each case, and "
            "`classification.mixup` blends cases",
            remedy="leave one of them out",
            code="keep",
        )
    # MSMAE's masking of pre-training, of which nothing but the guide is read here.
    masking = PretextConfig(guide=GuideConfig(by="attention", queries=network.queries))
    return AttentionGuide(network.encoder, masking)


def body_alone(batch: CropBatch, patch: Triple) -> CropBatch:
    """The crops with patches that hold no body as padding.

    Raises:
        UserError: it is not known what is air.
    """
    if batch.air is None:
        raise UserError(
            "`classification.drop_air` is on and the store does not know what is air in some case",
            remedy="leave it out, or prepare the cohort again",
            code="no-air",
        )
    body = ~is_air(batch.voxels, batch.air)
    return replace(batch, valid=without_air(batch.valid, body, patch))


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
    if config.mixup > 0 and config.drop_air:
        raise ConfigError(
            "`classification.mixup` blends crops, and where two lie on each other "
            "`classification.drop_air` cannot tell air",
            remedy="leave one of them out",
            code="mixup-air",
        )
    if config.mixup < 0:
        raise ConfigError(
            f"`classification.mixup` is {config.mixup}, expected 0 or more", code="range"
        )
    return loss


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
