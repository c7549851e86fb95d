"""Masked image modelling joined with self-distillation, as in SMIT and iBOT."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mim3d.config.objective import PretextConfig
from mim3d.data.batch import BatchNeeds, CropBatch
from mim3d.foundation.errors import ConfigError
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment, Outcome
from mim3d.objectives.prototypes import (
    PrototypeHead,
    check_teacher,
    disagreement,
    entropy,
    taught,
    temperature_at,
)
from mim3d.objectives.questions import Question
from mim3d.objectives.self_distillation import Branch, asked_of, crossed, health
from mim3d.objectives.simmim import SimMIM
from mim3d.objectives.targets import weighted_mean
from mim3d.objectives.teacher import Teacher
from mim3d.objectives.views import split_views


class SMIT(SimMIM):
    """SMIT (arXiv:2205.10342): SimMIM whose masked tokens and whole crops a teacher answers too.

    The student sees crops with mask tokens, the teacher the same crops whole. The loss is

        w_v voxel error + w_t H(teacher's token, student's token) + w_g H(teacher's other view,
        student's view)

    with H the cross-entropy over prototypes. Tokens count as their voxels do in the voxel error:
    by the share of them that is valid, by `air_weight` and by `visible_weight`. Tokens and wholes
    share a head, which reads states behind the final norm, and have a centre each, as in iBOT
    (arXiv:2111.07832). Crops are not compared with each other, so micro-batches only add up.

    Stores what SimMIM stores, and `prototypes.*`, `teacher.*`, `token_centre.*` and
    `whole_centre.*`.

    Args:
        encoder: what is to learn.
        config: the pretext task with its `teacher` section; none is the defaults.

    Raises:
        ConfigError: numbers with which nothing can be taught, or both weights of the teacher 0.
    """

    def __init__(self, encoder: VolumeViT, config: PretextConfig | None = None) -> None:
        config = config or PretextConfig(name="smit")
        super().__init__(encoder, config)
        teacher = config.teacher
        check_teacher(teacher)
        if teacher.token_weight == 0 == teacher.global_weight:
            raise ConfigError(
                "`objective.teacher` has `token_weight` and `global_weight` 0: it teaches nothing",
                remedy="use `--objective.name simmim`",
                code="range",
            )
        if teacher.voxel_weight == 0:
            self.head.requires_grad_(False)  # without gradient it would stop distributed training
        overlap = config.contrast.min_overlap if teacher.views > 1 else 1.0
        self.needs = BatchNeeds(
            views=teacher.views, min_overlap=overlap, labels=self.masks.needs_labels
        )
        self.prototypes = PrototypeHead(encoder.width, teacher)
        self.teacher = Teacher(Branch(encoder, self.prototypes), teacher.momentum)
        self.token_centre = self.prototypes.centre(teacher)
        self.whole_centre = self.prototypes.centre(teacher)

    def forward(  # type: ignore[override]  # of one size: `needs` asks for no more
        self, batch: CropBatch, moment: Moment
    ) -> Outcome:
        """The weighted sum of voxel error and both cross-entropies.

        Args:
            batch: all views, one after the other.
            moment: masks and the teacher's temperature follow from it.
        """
        question = self.question(batch, moment)
        states = self.noted_states(batch, question, moment)
        voxels = self.judged(self.read(states, question), question, batch, moment)

        # One pass of the head for tokens and wholes, the whole behind its tokens.
        index = question.index if self.config.teacher.token_weight > 0 else None
        features = asked_of(states, index)
        embedding = self.prototypes.embedded(features)
        cosines = self.prototypes.cosines(embedding)
        told = self.teacher(batch, index, question.cut)
        loss, logs = self._taught(cosines, told, question, moment)
        config = self.config.teacher
        logs |= {**voxels.logs, **health(features[:, -1], embedding[:, -1], config.views)}
        if config.voxel_weight > 0:
            loss = loss + config.voxel_weight * voxels.loss
        logs["voxel_loss"] = voxels.loss.detach()
        logs["loss"] = loss.detach()
        # Of a network that has learnt nothing: the mean of all voxels, and all prototypes alike.
        undecided = math.log(config.prototypes) * (config.token_weight + config.global_weight)
        logs["mean_predictor"] = config.voxel_weight * logs["mean_predictor"] + undecided
        return Outcome(loss, logs, voxels.pictures)

    def after_update(self, moment: Moment) -> None:
        """The teacher and its centres follow."""
        super().after_update(moment)
        self.teacher.update(Branch(self.encoder, self.prototypes), moment)
        self.token_centre.update()
        self.whole_centre.update()

    def _taught(
        self, cosines: Tensor, told: Tensor, question: Question, moment: Moment
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The teacher's part of the loss; cosines of both `b (q 1) k`."""
        config, temperature = self.config.teacher, temperature_at(moment, self.config.teacher)
        terms: list[Tensor] = []
        logs: dict[str, Tensor] = {}
        if config.token_weight > 0:
            asked, weights = told[:, :-1], token_weights(question)
            answer = taught(asked, self.token_centre, temperature)
            self.token_centre.note(asked, weights, moment)
            errors = disagreement(cosines[:, :-1], answer, config.student_temperature)
            logs["token_loss"] = weighted_mean(errors, weights)
            logs["token_entropy"] = entropy(answer)
            terms.append(config.token_weight * logs["token_loss"])
        if config.global_weight > 0:
            whole = told[:, -1:]
            answer = taught(whole, self.whole_centre, temperature)
            self.whole_centre.note(whole, None, moment)
            other = crossed(answer, config.views)
            errors = disagreement(cosines[:, -1:], other, config.student_temperature)
            logs["whole_loss"] = errors.mean()
            logs["teacher_entropy"] = entropy(answer)
            terms.append(config.global_weight * logs["whole_loss"])
        return sum(terms[1:], start=terms[0]), {k: v.detach() for k, v in logs.items()}

    def _mask_keys(self, batch: CropBatch, moment: Moment) -> Tensor:
        """One view's masks are SimMIM's; the other's are drawn by themselves."""
        views = split_views(batch, self.config.teacher.views)
        purposes = ("mask", "mask/1")
        return torch.cat([moment.keys(*each) for each in zip(views, purposes, strict=False)])


def token_weights(question: Question) -> Tensor | None:
    """What each token asked for counts, its voxels' mean, `b q`; None is all alike."""
    if question.weights is None:
        return None
    return question.weights.mean(dim=-1).expand(question.index.shape)
