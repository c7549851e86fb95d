"""Self-distillation: the network learns to answer as its own running mean does elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mim3d.config.objective import PretextConfig
from mim3d.data.batch import BatchNeeds, CropBatch
from mim3d.models.hidden_states import HiddenStates
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment, Outcome, Task
from mim3d.objectives.contrastive import projector_logs
from mim3d.objectives.heads import crop_features
from mim3d.objectives.health import embedding_logs
from mim3d.objectives.prototypes import (
    PrototypeHead,
    check_teacher,
    disagreement,
    entropy,
    taught,
    temperature_at,
)
from mim3d.objectives.teacher import Teacher
from mim3d.tokens.gather import gather
from mim3d.tokens.patches import CutCrop


class Branch(nn.Module):
    """An encoder and a head on it: what the teacher is a running mean of.

    Args:
        encoder: of crops.
        prototypes: of its states.
    """

    def __init__(self, encoder: VolumeViT, prototypes: PrototypeHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.prototypes = prototypes

    def forward(
        self, batch: CropBatch, index: Tensor | None = None, cut: CutCrop | None = None
    ) -> Tensor:
        """Cosines at the tokens at `index` (`b q`) and, behind them, of the whole: `b (q 1) k`."""
        states = self.encoder(batch.voxels, batch.spacing_mm, valid=batch.valid, cut=cut)
        cosines: Tensor = self.prototypes(asked_of(states, index))
        return cosines


def asked_of(states: HiddenStates, index: Tensor | None) -> Tensor:
    """The states of the tokens at `index` and, behind them, that of the whole: `b (q 1) d`."""
    whole = crop_features(states)[:, None]
    if index is None:
        return whole
    return torch.cat([gather(states.tokens, index).to(whole.dtype), whole], dim=1)


def crossed(views: Tensor, count: int) -> Tensor:
    """Rows `(v b) ...` with each view's in the place of the next one's; one view stays."""
    return views.roll(len(views) // count, dims=0)


def health(features: Tensor, embedding: Tensor, views: int) -> dict[str, Tensor]:
    """Signs of life of the encoder and of the head, so that they are told apart.

    Args:
        features: `(v b) d`, pooled; the first view is looked at, as the other shows the same crops.
        embedding: `(v b) e`, what the head makes of them before the prototypes.
        views: v.
    """
    first = len(features) // views
    return {**embedding_logs(features[:first]), **projector_logs(embedding[:first])}


class DINO(Task):
    """DINO (arXiv:2104.14294) with two views: each is asked what the teacher says of the other.

    `1/2 sum_v H(softmax((t(x_v') - c) / T_t), softmax(s(x_v) / T_s))`, averaged over crops. There
    are no negatives, so a batch of any size will do, and micro-batches only add up.

    Stores `encoder.*`, `prototypes.*`, `teacher.*` and `centre.*`.

    Args:
        encoder: what is to learn.
        config: its `teacher` section, and `contrast.min_overlap`; none is the defaults.

    Raises:
        ConfigError: numbers with which nothing can be taught.
    """

    def __init__(self, encoder: VolumeViT, config: PretextConfig | None = None) -> None:
        super().__init__()
        config = config or PretextConfig(name="dino")
        check_teacher(config.teacher)
        self.needs = BatchNeeds(views=2, min_overlap=config.contrast.min_overlap)
        self.config = config
        self.encoder = encoder
        self.prototypes = PrototypeHead(encoder.width, config.teacher)
        self.teacher = Teacher(Branch(encoder, self.prototypes), config.teacher.momentum)
        self.centre = self.prototypes.centre(config.teacher)

    def forward(self, batch: CropBatch, moment: Moment) -> Outcome:
        """The mean cross-entropy over both views.

        Args:
            batch: both views, one after the other.
            moment: the teacher's temperature follows from it.
        """
        config = self.config.teacher
        states = self.encoder(batch.voxels, batch.spacing_mm, valid=batch.valid)
        features = crop_features(states)
        embedding = self.prototypes.embedded(features)
        cosines = self.prototypes.cosines(embedding)

        told = self.teacher(batch)
        answer = taught(told[:, 0], self.centre, temperature_at(moment, config))
        self.centre.note(told, None, moment)
        loss = disagreement(cosines, crossed(answer, 2), config.student_temperature).mean()
        logs = {"teacher_entropy": entropy(answer), **health(features, embedding, 2)}
        return Outcome(loss, logs)

    def after_update(self, moment: Moment) -> None:
        """The teacher and the centre follow."""
        self.teacher.update(Branch(self.encoder, self.prototypes), moment)
        self.centre.update()
