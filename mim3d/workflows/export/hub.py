"""A run as a folder in the Hugging Face layout: weights, config and a model card. Offline."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mim3d
from mim3d.config.export import ExportConfig
from mim3d.config.verbs import FinetuneConfig, PretrainConfig
from mim3d.config.writing import dump, to_mapping
from mim3d.foundation.atomic import whole_folder, write_json, write_text
from mim3d.foundation.documents import write_sealed
from mim3d.foundation.errors import WeightsError
from mim3d.foundation.reporting import Reporter
from mim3d.models.saved import (
    HUB_CARD,
    HUB_CONFIG,
    HUB_FORMAT,
    HUB_RUN,
    HUB_WEIGHTS,
    load_encoder,
    load_unetr,
)
from mim3d.models.unetr import UNETR
from mim3d.models.weights import save_weights
from mim3d.training.checkpoints import weights_digest
from mim3d.workflows.export.card import model_card
from mim3d.workflows.export.subject import Subject
from mim3d.workflows.result import Result
from mim3d.workflows.run_record import PREPARATION

KEPT = ("format", "verb", "preparation", "modalities", "channel_names", "classes", "targets",
        "median_spacing_mm", "fingerprint", "converted_from")  # fmt: skip
"""Of the run's record, what may leave the house: no case id and no path is among it."""


def write(subject: Subject, out: Path, config: ExportConfig, reporter: Reporter) -> Result:
    """Writes the folder `out`, and loads it once by its path.

    Raises:
        WeightsError: what was written does not load as the same numbers.
    """
    with whole_folder(out) as folder:
        header = {**subject.weights.metadata, "format": "pt"}
        digest = save_weights(folder / HUB_WEIGHTS, subject.weights.tensors, header)
        write_json(folder / HUB_CONFIG, hub_config(subject, digest))
        write_text(folder / HUB_RUN, dump(to_mapping(_anonymous(subject.config))))
        write_sealed(folder / PREPARATION, public_record(subject.record))
        write_text(folder / HUB_CARD, model_card(subject))
        _check(subject, folder)
    kind = "UNETR" if isinstance(subject.network, UNETR) else "VolumeViT"
    facts = {**subject.facts(), "sha256": digest, "architecture": _architecture(subject)}
    lines = [
        f"{len(subject.weights.tensors)} tensors, config and model card; loads as the same numbers",
        f"`{HUB_CARD}` is filled from the run; licence and citation are yours to add",
        "to load it, by its path alone:",
        f"  mim3d.{kind}.load({str(out)!r})",
        f"  mim3d finetune CONFIG --init {out}",
    ]
    if subject.network is not None:
        lines.append(f"  mim3d predict {out} scan.nii.gz --out predictions")
    return Result("\n".join(lines), facts, (out / HUB_CARD, out / HUB_WEIGHTS, out / HUB_CONFIG))


def hub_config(subject: Subject, digest: str) -> dict[str, Any]:
    """What stands in `config.json`.

    Args:
        subject: the run.
        digest: SHA-256 of the file of weights.
    """
    config = subject.config
    decoder = asdict(config.decoder) if isinstance(subject.network, UNETR) else None  # type: ignore[union-attr]
    return {
        "model_type": "mim3d",
        "architectures": [_architecture(subject)],
        "format": HUB_FORMAT,
        "mim3d_version": mim3d.__version__,
        "sha256": digest,
        **subject.facts(),
        "encoder": asdict(subject.encoder.config),
        "decoder": decoder,
    }


def public_record(record: dict[str, Any]) -> dict[str, Any]:
    """What a run keeps of its store, without the names of cases.

    The hashes of the images stay, under numbers: by them `predict` and `evaluate` say that a case
    was trained on, and nobody learns which case it was.
    """
    hashes = sorted(set(record["trained_on"].values()))
    numbered = {f"case-{number:05d}": one for number, one in enumerate(hashes)}
    kept = {name: record[name] for name in KEPT if name in record}
    return {**kept, "trained_on": numbered}


def _anonymous(config: PretrainConfig | FinetuneConfig) -> PretrainConfig | FinetuneConfig:
    """Without the paths of whoever trained it."""
    data = replace(config.data, store=None, stores=(), store_weights=None)
    config = replace(config, data=data, init="none" if config.init else None)
    if isinstance(config, PretrainConfig):
        guide = replace(config.objective.guide, priors=None)
        config = replace(config, objective=replace(config.objective, guide=guide))
    return config


def _architecture(subject: Subject) -> str:
    return type(subject.network or subject.encoder).__name__


def _check(subject: Subject, folder: Path) -> None:
    whole = isinstance(subject.network, UNETR)
    loaded = load_unetr(folder) if whole else load_encoder(folder)
    own = subject.network if whole else subject.encoder
    assert own is not None
    if weights_digest(loaded.state_dict()) != weights_digest(own.state_dict()):
        raise WeightsError(
            "the hub folder loads as other numbers than the run has",
            remedy="report it, with the run's `config.yaml`",
            code="differs",
        )
