"""The face every objective shows to the loop."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mim3d.data.batch import BatchNeeds, CropBatch
from mim3d.foundation.randomness import RandomStream


@dataclass(frozen=True)
class Moment:
    """Where in a run a call takes place.

    Args:
        step: optimiser updates made so far.
        steps: optimiser updates of the whole run; schedules are functions of `step / steps`.
        random: the randomness of this step, to be keyed by `batch.crop_ids` and a purpose.
        wants_pictures: whether `Outcome.pictures` is to be filled.
    """

    step: int
    steps: int
    random: RandomStream
    wants_pictures: bool = False

    def keys(self, batch: CropBatch, purpose: str) -> Tensor:
        """One 64-bit key a crop on the batch's device, `b` int64."""
        keys = self.random.keys(batch.crop_ids.tolist(), purpose)
        return torch.from_numpy(keys).to(batch.voxels.device, non_blocking=True)


@dataclass(frozen=True)
class Outcome:
    """What one call of a task gives.

    Args:
        loss: scalar, to be minimised.
        logs: named scalars for the log, detached.
        pictures: arrays for a panel (`original`, `masked`, `reconstructed` `b c x y z`, `mask`
            `b x y z`, `spacing_mm` `b 3`; no `reconstructed` where what is predicted cannot be
            turned into voxels), filled only when the moment asks for it.
    """

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)
    pictures: dict[str, Tensor] | None = None


class Task(nn.Module):
    """Turns batches into losses: `task(batch, moment) -> Outcome`.

    The `state_dict` holds all that must survive an interruption (teachers, running maps).
    """

    needs = BatchNeeds()
    """What the task asks of its feed."""

    def weights(self) -> dict[str, Tensor]:
        """What prediction and `--init` use, by name in the `state_dict`: encoder and decoder."""
        state: dict[str, Tensor] = self.state_dict()
        return {k: v for k, v in state.items() if k.startswith(("encoder.", "decoder."))}

    def after_update(self, moment: Moment) -> None:
        """Called by the loop once after each optimiser step."""
