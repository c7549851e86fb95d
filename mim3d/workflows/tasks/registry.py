"""The tasks of a fine-tuning by the config's word."""

from __future__ import annotations

from mim3d.workflows.tasks.classification import ClassificationTraining, RegressionTraining
from mim3d.workflows.tasks.face import Training
from mim3d.workflows.tasks.segmentation import SegmentationTraining

TRAININGS: dict[str, type[Training]] = {
    "segmentation": SegmentationTraining,
    "classification": ClassificationTraining,
    "regression": RegressionTraining,
}
"""Each is made of a config and a store."""
