"""VoCo: from a part of a crop, how much of it lies in each of the boxes the crop is divided into.

Wu et al., arXiv:2402.17300, with the teacher of the authors' code. The crop is divided into a grid
of base crops; a window of their size lies anywhere in the grid, so the share of it that lies in
each of them is known exactly and is the label.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mim3d.config.data import Triple
from mim3d.config.objective import PretextConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import ConfigError
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment, Outcome, Task
from mim3d.objectives.contrastive import projector_logs
from mim3d.objectives.contrastive_losses import overlap_prediction, repulsion, unit
from mim3d.objectives.heads import Projector, crop_features
from mim3d.objectives.health import embedding_logs
from mim3d.objectives.momentum import Branch
from mim3d.objectives.teacher import Teacher
from mim3d.tokens.masking import noise
from mim3d.tokens.patches import patchify


@dataclass(frozen=True)
class BaseGrid:
    """How a crop is divided into base crops; flattened with z fastest.

    Args:
        counts: base crops along x, y, z.
        size: voxels of a base crop, and of a window, along x, y, z.
    """

    counts: Triple
    size: Triple

    @classmethod
    def over(cls, size: Triple, counts: Triple, patch: Triple) -> BaseGrid:
        """The largest base crops that fit into a crop of `size` voxels, from its first corner.

        Raises:
            ConfigError: there is one base crop alone, or one would be smaller than a patch.
        """
        if min(counts) < 1 or math.prod(counts) < 2:
            raise ConfigError(
                f"`objective.contrast.base_crops` is {counts}, expected at least two in all",
                code="range",
            )
        x, y, z = (side // count for side, count in zip(size, counts, strict=True))
        if any(side < edge for side, edge in zip((x, y, z), patch, strict=True)):
            raise ConfigError(
                f"`objective.contrast.base_crops` {counts} makes base crops of {x} x {y} x {z} "
                f"voxels, less than a patch of {patch[0]} x {patch[1]} x {patch[2]}",
                remedy="use a larger `data.crop_size` or fewer base crops",
                code="range",
            )
        return cls(counts, (x, y, z))

    @property
    def n(self) -> int:
        """Number of base crops."""
        return math.prod(self.counts)

    def bases(self, voxels: Tensor) -> Tensor:
        """The base crops, `b c x y z -> b n c x y z`."""
        b, c = voxels.shape[:2]
        x, y, z = (count * side for count, side in zip(self.counts, self.size, strict=True))
        boxes = patchify(voxels[:, :, :x, :y, :z], self.size)
        return boxes.reshape(b, self.n, c, *self.size)

    def starts(self, keys: Tensor, windows: int) -> Tensor:
        """First voxels of random windows, `b w 3` int64, each place in the grid alike.

        Args:
            keys: `b`, int64, one a crop.
            windows: w.
        """
        chance = noise(keys, 3 * windows).reshape(-1, windows, 3)
        places = [(count - 1) * s + 1 for count, s in zip(self.counts, self.size, strict=True)]
        most = torch.tensor(places).to(keys.device, non_blocking=True)
        return torch.minimum((chance * most).long(), most - 1)

    def windows(self, voxels: Tensor, starts: Tensor) -> Tensor:
        """The windows that begin at `starts`, `b w c x y z`."""
        b = len(voxels)
        axes = [
            starts[..., axis, None] + torch.arange(side, device=starts.device)
            for axis, side in enumerate(self.size)
        ]
        crop = torch.arange(b, device=starts.device)[:, None, None, None, None]
        x, y, z = axes[0][..., None, None], axes[1][:, :, None, :, None], axes[2][:, :, None, None]
        # Channels last, as the four indices lie side by side: `b w x y z c`.
        return voxels.permute(0, 2, 3, 4, 1)[crop, x, y, z].permute(0, 1, 5, 2, 3, 4)

    def overlaps(self, starts: Tensor) -> Tensor:
        """Share of each window that lies in each base crop, `b w n`, summing to 1.

        Args:
            starts: `b w 3`, in voxels.
        """
        shares = []
        for axis, (count, side) in enumerate(zip(self.counts, self.size, strict=True)):
            base = torch.arange(count, device=starts.device) * side
            apart = (starts[..., axis, None] - base).abs()
            shares.append((side - apart).clamp_min(0).float() / side)
        x, y, z = shares
        return torch.einsum("bwx,bwy,bwz->bwxyz", x, y, z).flatten(2)


class VoCo(Task):
    """Predicts where in a crop a window lies, by its likeness to base crops.

    Stores `encoder.*`, `projector.*` and `teacher.*`. A crop's windows are compared with its own
    base crops alone, so neither batch nor processes matter.

    Args:
        encoder: what is to learn.
        config: `contrast` says how.
    """

    def __init__(self, encoder: VolumeViT, config: PretextConfig) -> None:
        super().__init__()
        contrast = config.contrast
        if contrast.windows < 1:
            raise ConfigError(
                f"`objective.contrast.windows` is {contrast.windows}, expected 1 or more",
                code="range",
            )
        self.config = contrast
        self.encoder = encoder
        self.projector = Projector(
            encoder.width,
            contrast.projector_width,
            contrast.projector_depth,
            contrast.projector_out,
        )
        self.teacher = Teacher(Branch(encoder, self.projector), contrast.momentum)

    def forward(self, batch: CropBatch, moment: Moment) -> Outcome:
        """Error of the predicted overlaps, and how alike base crops of one crop are.

        Args:
            batch: crops; labels are not looked at.
            moment: windows follow from its keys and the crops' ids.
        """
        b, _, x, y, z = batch.voxels.shape
        grid = BaseGrid.over((x, y, z), self.config.base_crops, self.encoder.patch)
        starts = grid.starts(moment.keys(batch, "window"), self.config.windows)
        boxes = _Boxes.cut(batch, grid, starts)
        w = starts.shape[1]

        # The student sees windows and base crops, the teacher base crops.
        states = self.encoder(boxes.voxels, boxes.spacing_mm, valid=boxes.valid)
        features = crop_features(states)
        embedded = self.projector(features).reshape(b, w + grid.n, -1)
        taught = self.teacher(*boxes.bases()).reshape(b, grid.n, -1)

        with torch.autocast(batch.voxels.device.type, enabled=False):
            likeness = F.relu(unit(embedded[:, :w]) @ unit(taught).transpose(1, 2))
        overlap = grid.overlaps(starts)
        counts = boxes.there[:, :w, None] & boxes.there[:, None, w:]
        prediction = overlap_prediction(likeness, overlap, counts)
        apart = repulsion(embedded[:, w:], boxes.there[:, w:])
        loss = prediction + apart
        error = ((likeness - overlap).abs() * counts).sum() / counts.sum().clamp_min(1)
        logs = {
            "loss": loss.detach(),
            "prediction": prediction.detach(),
            "repulsion": apart.detach(),
            "overlap_error": error.detach(),
        }
        ours = features.reshape(b, w + grid.n, -1)[:, 0]
        return Outcome(loss, {**logs, **embedding_logs(ours), **projector_logs(embedded[:, 0])})

    def after_update(self, moment: Moment) -> None:
        """The teacher follows."""
        self.teacher.update(Branch(self.encoder, self.projector), moment)


@dataclass(frozen=True)
class _Boxes:
    """Windows and base crops of each crop, one after the other, as rows of one batch.

    Args:
        voxels: `(b (w n)) c x y z`.
        spacing_mm: `(b (w n)) 3`.
        valid: `(b (w n)) x y z` bool, or None.
        there: `b (w n)` bool, False where a box lies wholly in padding.
        count: n, the base crops.
    """

    voxels: Tensor
    spacing_mm: Tensor
    valid: Tensor | None
    there: Tensor
    count: int

    @classmethod
    def cut(cls, batch: CropBatch, grid: BaseGrid, starts: Tensor) -> _Boxes:
        voxels = _boxes(batch.voxels, grid, starts)
        spacing = batch.spacing_mm.repeat_interleave(voxels.shape[1], dim=0)
        if batch.valid is None:
            there = torch.ones(voxels.shape[:2], dtype=torch.bool, device=voxels.device)
            return cls(voxels.flatten(0, 1), spacing, None, there, grid.n)
        valid = _boxes(batch.valid[:, None], grid, starts)[:, :, 0]
        there = valid.flatten(2).any(dim=2)
        # Attention to nothing is not a number: a box of padding is encoded as 0 and not counted.
        voxels = torch.where(valid[:, :, None], voxels, voxels.new_zeros(()))
        valid = valid | ~there[..., None, None, None]
        return cls(voxels.flatten(0, 1), spacing, valid.flatten(0, 1), there, grid.n)

    def bases(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Voxels, spacing and validity of the base crops alone."""
        b, each = self.there.shape
        first = each - self.count

        def only(rows: Tensor) -> Tensor:
            return rows.reshape(b, each, *rows.shape[1:])[:, first:].flatten(0, 1)

        valid = None if self.valid is None else only(self.valid)
        return only(self.voxels), only(self.spacing_mm), valid


def _boxes(voxels: Tensor, grid: BaseGrid, starts: Tensor) -> Tensor:
    return torch.cat([grid.windows(voxels, starts), grid.bases(voxels)], dim=1)
