"""The networks that fine-tuning configs describe, freshly initialised."""

from __future__ import annotations

from collections.abc import Sequence

from mim3d.config.verbs import FinetuneConfig
from mim3d.data.asked_target import AskedTarget
from mim3d.data.classes import ClassTable
from mim3d.data.regions import RegionScheme, region_scheme
from mim3d.models.classifier import MEMORY, VolumeClassifier
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT


def network_of(config: FinetuneConfig, classes: ClassTable) -> UNETR:
    """The network a fine-tuning config describes, freshly initialised.

    Raises:
        UserError: the regions asked for do not fit the classes.
    """
    scheme = scheme_of(config, classes)
    outputs = classes.count if scheme is None else scheme.count
    return UNETR(VolumeViT(config.encoder), outputs, config.decoder)


def classifier_network(config: FinetuneConfig, table: Sequence[AskedTarget]) -> VolumeClassifier:
    """The network of whole volumes that a fine-tuning config describes, freshly initialised.

    Raises:
        ConfigError: a number that cannot be, or a class token that the encoder lacks.
    """
    said, optim = config.classification, config.optim
    is_fixed = said.start == "linear" and optim.adapt == "frozen"
    return VolumeClassifier(
        VolumeViT(config.encoder),
        sum(one.outputs for one in table),
        pool=said.pool,
        dropout=said.dropout,
        standardises=said.norm == "batch",
        memory=optim.ema or MEMORY,
        is_fixed=is_fixed,
        drop_air=said.drop_air,
        keep=said.keep,
        keep_by=said.keep_by,
        keep_polarity=said.keep_polarity,
        keep_at_test=said.keep_at_test,
    )


def scheme_of(config: FinetuneConfig, classes: ClassTable) -> RegionScheme | None:
    """The scheme of overlapping regions, checked against the classes; None for a softmax."""
    if config.objective.regions is None:
        return None
    scheme = region_scheme(config.objective.regions)
    scheme.check_values(classes.values)
    return scheme
