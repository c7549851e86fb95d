"""BYOL and MoCo v3: one view predicts what a running mean of the network says of the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mim3d.config.objective import PretextConfig
from mim3d.data.batch import CropBatch
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.objectives.contrastive import TwoViews, projector_logs
from mim3d.objectives.contrastive_losses import byol, chance, info_nce
from mim3d.objectives.heads import Predictor, Projector, crop_features
from mim3d.objectives.teacher import Teacher


class Branch(nn.Module):
    """Encoder and projector, which the teacher copies as one. Stores nothing of its own."""

    def __init__(self, encoder: VolumeViT, projector: Projector) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def forward(
        self, voxels: Tensor, spacing_mm: Tensor, valid: Tensor | None, *, together: bool = False
    ) -> Tensor:
        """Projections of the crops, `b d`; arguments as the encoder's and the projector's."""
        states = self.encoder(voxels, spacing_mm, valid=valid)
        projected: Tensor = self.projector(crop_features(states), together=together)
        return projected


class Momentum(TwoViews):
    """What BYOL and MoCo v3 share: a predictor, and a teacher of encoder and projector.

    Stores `encoder.*`, `projector.*`, `predictor.*` and `teacher.*`.

    Args:
        encoder: what is to learn.
        config: `contrast` says how.
    """

    def __init__(self, encoder: VolumeViT, config: PretextConfig) -> None:
        super().__init__(encoder, config)
        contrast = self.config
        self.predictor = Predictor(
            contrast.projector_out, contrast.projector_width, norm=contrast.projector_norm
        )
        self.teacher = Teacher(Branch(encoder, self.projector), contrast.momentum)

    def after_update(self, moment: Moment) -> None:
        """The teacher follows."""
        self.teacher.update(Branch(self.encoder, self.projector), moment)

    def _predicted_and_taught(
        self, features: Tensor, batch: CropBatch
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Predictions of both views, the teacher's answers on both, `2b d` each, and logs."""
        projected, together = self._projected(features), self.training
        taught: Tensor = self.teacher(
            batch.voxels, batch.spacing_mm, batch.valid, together=together
        )
        predicted = self.predictor(projected, together=together)
        return predicted, taught, projector_logs(projected.chunk(2)[0])


class BYOL(Momentum):
    """Each view predicts the teacher's answer on the other; no negatives (arXiv:2006.07733).

    BatchNorm in the heads keeps it alive, as in the paper: with LayerNorm all answers are the same
    within fifty steps.
    """

    compares = False

    def loss(
        self, features: Tensor, batch: CropBatch, moment: Moment
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over both directions, 0 to 8."""
        predicted, taught, logs = self._predicted_and_taught(features, batch)
        (one, two), (first, second) = predicted.chunk(2), taught.chunk(2)
        return byol(one, second) + byol(two, first), logs


class MoCoV3(Momentum):
    """Each view finds the teacher's answer on the other among all crops' (arXiv:2104.02057).

    The patch embedding stays as it was drawn: its gradients made training unstable (section 4.2).
    Crops of the same case are not taken for negatives of each other.
    """

    def __init__(self, encoder: VolumeViT, config: PretextConfig) -> None:
        encoder.embedding.requires_grad_(False)
        super().__init__(encoder, config)

    def loss(
        self, features: Tensor, batch: CropBatch, moment: Moment
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """InfoNCE in both directions, each times 2 T as in the authors' code; that of guessing."""
        predicted, taught, logs = self._predicted_and_taught(features, batch)
        (one, two), (first, second) = predicted.chunk(2), taught.chunk(2)
        b, temperature = len(one), self.config.temperature
        keys = self._every(first), self._every(second)
        positive = torch.arange(b, device=one.device) + self._first_row(b)
        same = self._same_case(batch)
        excluded = same & ~self._itself(same)
        found = info_nce(one, keys[1], positive, temperature, excluded)
        found = found + info_nce(two, keys[0], positive, temperature, excluded)
        guessed = 2 * chance((~excluded).sum(dim=1))
        logs["chance"] = 2 * temperature * guessed
        return 2 * temperature * found, logs
