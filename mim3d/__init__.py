"""3D masked image modelling on CT and MRI.

Every public name is loaded from its room when it is first asked for, so that `import mim3d` costs
nothing: torch and the readers come with the names that need them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mim3d.data.batch import CropBatch
    from mim3d.data.cohort import Case
    from mim3d.data.files import ReadWarning, read_label, read_volume, write_label
    from mim3d.data.store import open_store
    from mim3d.data.volume import Volume
    from mim3d.foundation.errors import ShapeError, UserError, VolumeError
    from mim3d.inference.predict import predict_volume
    from mim3d.inference.segmenter import Segmenter
    from mim3d.models.hidden_states import HiddenStates
    from mim3d.models.unetr import UNETR
    from mim3d.models.vit import VolumeViT
    from mim3d.objectives.base import Moment, Outcome, Task
    from mim3d.objectives.mae import MaskedAutoencoder
    from mim3d.objectives.simmim import SimMIM
    from mim3d.tokens.grid import TokenGrid
    from mim3d.tokens.masking import TokenSplit
    from mim3d.workflows.loading import load_segmenter

__version__ = "0.1.0"

_ROOMS = {
    "Case": "mim3d.data.cohort",
    "CropBatch": "mim3d.data.batch",
    "HiddenStates": "mim3d.models.hidden_states",
    "MaskedAutoencoder": "mim3d.objectives.mae",
    "Moment": "mim3d.objectives.base",
    "Outcome": "mim3d.objectives.base",
    "ReadWarning": "mim3d.data.files",
    "Segmenter": "mim3d.inference.segmenter",
    "ShapeError": "mim3d.foundation.errors",
    "SimMIM": "mim3d.objectives.simmim",
    "Task": "mim3d.objectives.base",
    "TokenGrid": "mim3d.tokens.grid",
    "TokenSplit": "mim3d.tokens.masking",
    "UNETR": "mim3d.models.unetr",
    "UserError": "mim3d.foundation.errors",
    "Volume": "mim3d.data.volume",
    "VolumeError": "mim3d.foundation.errors",
    "VolumeViT": "mim3d.models.vit",
    "load_segmenter": "mim3d.workflows.loading",
    "open_store": "mim3d.data.store",
    "predict_volume": "mim3d.inference.predict",
    "read_label": "mim3d.data.files",
    "read_volume": "mim3d.data.files",
    "write_label": "mim3d.data.files",
}

__all__ = [
    "UNETR",
    "Case",
    "CropBatch",
    "HiddenStates",
    "MaskedAutoencoder",
    "Moment",
    "Outcome",
    "ReadWarning",
    "Segmenter",
    "ShapeError",
    "SimMIM",
    "Task",
    "TokenGrid",
    "TokenSplit",
    "UserError",
    "Volume",
    "VolumeError",
    "VolumeViT",
    "__version__",
    "load_segmenter",
    "open_store",
    "predict_volume",
    "read_label",
    "read_volume",
    "write_label",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module `mim3d` has no attribute `{name}`")
    value = getattr(importlib.import_module(_ROOMS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
