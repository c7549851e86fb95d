"""Where memory runs out during a prediction, it goes on with less: smaller batches, then the CPU.

First fewer windows pass the network together. Where a single one still does not fit beside the sums
of logits, those move from the GPU to the machine's memory. Both are said once, and stay so for the
volumes that follow.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mim3d.foundation.errors import ResourceError
from mim3d.foundation.memory import is_out_of_memory

logger = logging.getLogger(__name__)


@dataclass
class Relief:
    """How much memory a prediction takes at once.

    Attributes:
        device: where windows pass the network.
        at_once: windows, mirrored ones too, that pass together.
        sums_on: where voxels and sums of logits lie.
    """

    device: torch.device
    at_once: int
    sums_on: torch.device = field(init=False)
    said: set[str] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        self.sums_on = self.device

    def after(self, error: Exception) -> None:
        """Takes less from now on, or gives up.

        Args:
            error: what was raised; anything but a lack of memory is raised again.

        Raises:
            ResourceError: one window at a time is too much already.
        """
        if not is_out_of_memory(error):
            raise error
        if self.at_once > 1:
            self.at_once //= 2
            self._say("memory ran out: fewer windows pass the network at once from here on")
        elif self.sums_on.type != "cpu":
            self.sums_on = torch.device("cpu")
            self._say("memory ran out: logits are added up in the machine's memory from here on")
        else:
            raise ResourceError(
                "memory does not suffice for a single window",
                remedy="take a smaller `--inference.window`, `--device cpu`, or a machine with "
                "more memory",
                code="out-of-memory",
            ) from error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def placed(self, voxels: Tensor) -> Tensor:
        """A volume where sums lie; in the machine's memory if the device has no room for it."""
        try:
            return voxels.to(self.sums_on)
        except Exception as error:
            self.at_once = 1 if is_out_of_memory(error) else self.at_once
            self.after(error)
        return voxels.to(self.sums_on)

    def _say(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            logger.warning(text)
