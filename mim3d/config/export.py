"""The config of `mim3d export`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mim3d.config.data import Triple

ExportFormat = Literal["monai", "onnx", "torch-export", "hub-folder", "nnunet"]


@dataclass(frozen=True)
class GraphConfig:
    """What of a run becomes a program of its own (`onnx`, `torch-export`), and for which sizes."""

    part: Literal["auto", "encoder", "network"] = "auto"
    """The whole network, voxels to answers, or the encoder alone, voxels to hidden states; `auto`
    is the whole network where the run was fine-tuned."""
    size: Triple | None = None
    """Voxels of a crop that the program is made with; none takes the run's window, or its crop.
    With `dynamic` it takes others too."""
    dynamic: bool = True
    """Any batch, and any sides that are whole patches; false is this one `size`, and any batch."""
    taps: tuple[int, ...] | None = None
    """Encoder alone: blocks whose hidden states are handed out (1 is the first); none is a quarter,
    half, three quarters and all of them."""
    opset: int = 18
    """ONNX operator set."""
    check_sizes: tuple[Triple, ...] = ()
    """Sizes at which the program is compared with the network; empty takes `size` and two more."""
    tolerance: float = 1e-3
    """Largest difference from the network that is taken, as a share of its largest answer."""


@dataclass(frozen=True)
class ExportConfig:
    """From what mim3d made to what other programs read."""

    format: ExportFormat | None = None
    """Of a run: `monai`, `onnx`, `torch-export`, `hub-folder`. Of a store: `nnunet`."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint of a run."""
    graph: GraphConfig = field(default_factory=GraphConfig)
