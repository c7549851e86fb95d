"""SimCLR and VICReg: two views of a crop shall have one answer, different crops different ones."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from mim3d.config.objective import PretextConfig
from mim3d.data.batch import BatchNeeds, CropBatch
from mim3d.foundation.errors import ConfigError
from mim3d.models.gathering import gathered, rank_offset, world
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment, Outcome, Task
from mim3d.objectives.contrastive_losses import chance, nt_xent, vicreg
from mim3d.objectives.heads import Projector, crop_features
from mim3d.objectives.health import embedding_logs
from mim3d.objectives.views import split_views

UNKNOWN = -1
"""Number of a case without a name, which is no other's."""


class TwoViews(Task):
    """What all that compare two views share: the feed's needs, the encoder, signs of life.

    A loss spans the processes of a training, and of each the present micro-batch: gradients add up
    over micro-batches, comparisons do not. Outside of training it is this process's alone, as the
    first one validates by itself. Stores `encoder.*` and `projector.*`.

    Args:
        encoder: what is to learn.
        config: `contrast` says how.
    """

    compares = True
    """Whether crops are compared with each other, not only with their other view."""

    def __init__(self, encoder: VolumeViT, config: PretextConfig) -> None:
        super().__init__()
        _check_range(config)
        self.name, self.config = config.name, config.contrast
        self.needs = BatchNeeds(views=2, min_overlap=self.config.min_overlap)
        self.encoder = encoder
        self.projector = self._projector()

    def loss(
        self, features: Tensor, batch: CropBatch, moment: Moment
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what is to be logged of it.

        Args:
            features: `2b d`, pooled, first views then second.
            batch: the same crops.
            moment: where in the run.
        """
        raise NotImplementedError

    def forward(self, batch: CropBatch, moment: Moment) -> Outcome:
        """The loss of both views of every crop.

        Args:
            batch: two views, the first of all crops before the second; labels are not looked at.
            moment: where in the run.

        Raises:
            ConfigError: too few crops to compare.
        """
        features = self.features(batch)
        self._require_crops(len(features) // 2 * (world() if self.training else 1))
        loss, logs = self.loss(features, batch, moment)
        return Outcome(loss, {"loss": loss.detach(), **embedding_logs(_first(features)), **logs})

    def features(self, batch: CropBatch) -> Tensor:
        """What the encoder says of every crop of both views, `2b d`."""
        return crop_features(self.encoder(batch.voxels, batch.spacing_mm, valid=batch.valid))

    def _projector(self) -> Projector:
        config = self.config
        return Projector(
            self.encoder.width,
            config.projector_width,
            config.projector_depth,
            config.projector_out,
            norm=config.projector_norm,
        )

    def _projected(self, features: Tensor) -> Tensor:
        return self.projector(features, together=self.training)  # type: ignore[no-any-return]

    def _require_crops(self, crops: int) -> None:
        """Refuses a micro-batch in which there is nothing that a crop can be compared with."""
        if crops >= 2:
            return
        if self.compares:
            raise ConfigError(
                f"`objective.name {self.name}` compares the crops of a micro-batch, which has one "
                "alone",
                remedy="use a larger `training.batch_size`, less `training.accumulation`, or "
                "`objective.name byol` with `--objective.contrast.projector_norm layer`",
                code="batch-size",
            )
        if self.config.projector_norm == "batch":
            raise ConfigError(
                "`objective.contrast.projector_norm batch` is over the crops of a micro-batch, "
                "which has one alone",
                remedy="use a larger `training.batch_size`, less `training.accumulation`, or "
                "`--objective.contrast.projector_norm layer`",
                code="batch-size",
            )

    def _every(self, rows: Tensor) -> Tensor:
        return gathered(rows) if self.training else rows

    def _first_row(self, b: int) -> int:
        return rank_offset(b) if self.training else 0

    def _same_case(self, batch: CropBatch) -> Tensor:
        """Which crops show the same case, `b n` for n crops of all processes; bool.

        They look alike for a reason that has nothing to do with the views: no negatives.
        """
        names = split_views(batch, 2)[0].case_ids
        numbers = torch.tensor([_number(name) for name in names])
        ours = numbers.to(batch.voxels.device, non_blocking=True)
        every = self._every(ours)
        return (ours[:, None] == every) & (ours[:, None] != UNKNOWN)

    def _itself(self, same: Tensor) -> Tensor:
        """Where each of our crops stands among those of all processes, `b n` bool."""
        b, n = same.shape
        rows = torch.arange(b, device=same.device) + self._first_row(b)
        return rows[:, None] == torch.arange(n, device=same.device)


class SimCLR(TwoViews):
    """NT-Xent between all views of the global batch (Chen et al., arXiv:2002.05709).

    Crops of the same case are not taken for negatives of each other.
    """

    def loss(
        self, features: Tensor, batch: CropBatch, moment: Moment
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """NT-Xent, that of guessing, and how far embeddings are from collapse."""
        one, two = self._projected(features).chunk(2)
        every_one, every_two = self._every(one), self._every(two)
        same = self._same_case(batch)
        loss = nt_xent(
            one,
            two,
            self.config.temperature,
            every_one=every_one,
            every_two=every_two,
            first=self._first_row(len(one)),
            same=same,
        )
        # The other view of the crop, and both views of each that is told from it.
        others = (~(same | self._itself(same))).sum(dim=1)
        return loss, {"chance": chance(2 * others + 1), **projector_logs(one)}


class VICReg(TwoViews):
    """Variance, invariance and covariance of the global batch (arXiv:2105.04906)."""

    def loss(
        self, features: Tensor, batch: CropBatch, moment: Moment
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of VICReg's terms, each of which is logged."""
        one, two = self._projected(features).chunk(2)
        terms, config = vicreg(self._every(one), self._every(two)), self.config
        loss = (
            config.invariance_weight * terms.invariance
            + config.variance_weight * terms.variance
            + config.covariance_weight * terms.covariance
        )
        logs = {
            "invariance": terms.invariance.detach(),
            "variance": terms.variance.detach(),
            "covariance": terms.covariance.detach(),
        }
        return loss, {**logs, **projector_logs(one)}


def projector_logs(z: Tensor) -> dict[str, Tensor]:
    """Signs of life of what the projector gives, named `projector_...`."""
    return {f"projector_{name}": value for name, value in embedding_logs(z).items()}


def _first(rows: Tensor) -> Tensor:
    # Of one view: both views of a crop are alike in health too.
    return rows[: len(rows) // 2]


def _number(case_id: str) -> int:
    """A number that stands for a case in every process."""
    if not case_id:
        return UNKNOWN
    return int.from_bytes(
        hashlib.blake2b(case_id.encode("utf-8", "surrogatepass"), digest_size=7).digest(), "little"
    )


def _check_range(config: PretextConfig) -> None:
    contrast = config.contrast
    if contrast.temperature <= 0:
        raise ConfigError(
            f"`objective.contrast.temperature` is {contrast.temperature}, expected above 0",
            code="range",
        )
    if not 0 <= contrast.min_overlap <= 1:
        raise ConfigError(
            f"`objective.contrast.min_overlap` is {contrast.min_overlap}, expected 0 to 1",
            code="range",
        )
