"""What a run folder gives back: its encoder's weights, or the whole segmenter or classifier."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import nn

from mim3d.config.reading import read_config
from mim3d.config.sections import EncoderConfig
from mim3d.config.tree import hints
from mim3d.config.values import convert
from mim3d.config.verbs import FinetuneConfig
from mim3d.data.asked_target import AskedTarget
from mim3d.data.classes import ClassTable
from mim3d.data.prepare import VolumeRule
from mim3d.data.regions import RegionScheme, region_scheme
from mim3d.foundation.digests import file_digest
from mim3d.foundation.documents import DocumentError, bounded, versioned
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.reporting import Reporter
from mim3d.inference.classifier import Classifier
from mim3d.inference.segmenter import Segmenter
from mim3d.inference.sliding_window import Spacing
from mim3d.models.adaptation import Adapted, adapted_tensors
from mim3d.models.classifier import VolumeClassifier
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.models.weights import encoder_config, encoder_tensors, load_whole, transfer_encoder
from mim3d.training.checkpoints import (
    WEIGHTS,
    Checkpoints,
    read_weights,
    weights_digest,
)
from mim3d.training.fabric import choose_device, choose_precision
from mim3d.training.run import Run, differing_keys

Which = Literal["last", "best"]
PREPARATION = "preparation.json"
"""What a run keeps of its store."""
RECORD_FORMAT = 2
"""Of `preparation.json`: the first version had neither a format nor a checksum."""
TARGETS = "targets"
"""What the record of a run of whole volumes says of its outputs."""
INIT = "init.json"
"""What a run keeps of the one it started from."""


def checkpoint_of(run: str | Path, which: Which = "last") -> Path:
    """The folder of a run's checkpoint.

    Raises:
        UserError: there is no run, or it has no such checkpoint.
    """
    folder = Path(run)
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"`{run}` is not a run folder",
            remedy="give the folder that `mim3d pretrain` or `mim3d finetune` wrote",
            code="no-run",
        )
    found = Checkpoints(folder / "checkpoints").find(which)
    if found is None:
        raise UserError(
            f"run `{run}` has no `{which}` checkpoint yet",
            remedy="the command that began it goes on when it is typed again",
            code="no-checkpoint",
        )
    return found


def encoder_of(run: str | Path, which: Which = "last") -> EncoderConfig:
    """The config of a run's encoder, from the header of its weights."""
    _, metadata = read_weights(checkpoint_of(run, which))
    return encoder_config(metadata, source=str(run))


def start_from(
    encoder: VolumeViT,
    run: str,
    which: Which,
    reporter: Reporter,
    adapt: Collection[str] | None = None,
) -> None:
    """Puts a run's encoder into `encoder`, whole or not at all.

    Args:
        encoder: what the weights are for.
        run: whose they are.
        which: of its checkpoints.
        reporter: is told what was taken, left and adapted.
        adapt: what may be adapted: `patch`, `channels`, `positions`; None is nothing.

    Raises:
        WeightsError: anything does not fit; every key is listed.
    """
    tensors, metadata = read_weights(checkpoint_of(run, which))
    found = encoder_config(metadata, source=run)
    report = transfer_encoder(encoder, tensors, source=run, found=found, adapt=adapt or ())
    left = f"; {len(report.left)} others (decoder, head) start afresh" if report.left else ""
    reporter.say(f"loaded all {len(report.loaded)} encoder tensors of `{run}`{left}")
    for adapted in report.adapted:
        reporter.say(f"adapted {adapted}")


RECORD: dict[str, type] = {
    "verb": str,
    "preparation": dict,
    "modalities": list,
    "channel_names": list,
    "trained_on": dict,
}
"""What a run keeps of its store has at least."""


def initial_record(
    run: str,
    which: Which = "last",
    *,
    asked: EncoderConfig | None = None,
    adapt: Collection[str] | None = None,
) -> dict[str, Any]:
    """What a run that starts from another keeps of it: the step, and a digest of the encoder.

    The digest is `weights_digest` of the encoder's tensors by their own keys: equal exactly where
    every number is. It is of the tensors as the other run has them, before any is adapted.

    Args:
        run: the other one.
        which: of its checkpoints.
        asked: the encoder that the run itself has; needed to say what was adapted.
        adapt: as `start_from`'s.
    """
    folder = checkpoint_of(run, which)
    tensors, metadata = read_weights(folder)
    inside, left = encoder_tensors(tensors)
    changes: tuple[Adapted, ...] = ()
    if asked is not None and adapt:
        found = encoder_config(metadata, source=run)
        _, changes = adapted_tensors(inside, found, asked, parts=adapt, source=run)
    return {
        "init": run,
        "checkpoint": which,
        "step": int(folder.name),
        "encoder_digest": weights_digest(inside),
        "loaded": sorted(inside),
        "left": list(left),
        # Only where there is any: a run that adapts nothing keeps the same record as ever.
        **({"adapted": [asdict(one) for one in changes]} if changes else {}),
    }


def load_preparation(run: str | Path) -> dict[str, Any]:
    """What a run keeps of its store.

    Raises:
        UserError: it is missing, damaged or of a later version.
    """
    path = Path(run) / PREPARATION
    try:
        record = versioned(bounded(path), {"format": RECORD_FORMAT}, _is_first)
        absent = [name for name, kind in RECORD.items() if not isinstance(record.get(name), kind)]
        if absent:
            raise DocumentError(f"it has no `{absent[0]}`")
    except (OSError, DocumentError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _damaged(run, str(reason)) from error
    return record


def _is_first(record: Mapping[str, Any]) -> bool:
    """The first version began with the verb and had neither format nor checksum."""
    return "format" not in record and next(iter(record), None) == "verb"


def keep_preparation(run: Run, record: Mapping[str, Any]) -> None:
    """Writes `preparation.json` of a run, or finds that it goes on with the store it began with.

    Raises:
        ConfigError: the store has other cases, voxels or preparation than when the run began.
        UserError: what the run keeps is damaged.
    """
    if run.checkpoints.find() is not None and (run.folder / PREPARATION).is_file():
        there = load_preparation(run.folder)
        differing = {
            key: values
            for key, values in differing_keys(there, json.loads(json.dumps(record))).items()
            # What an older version did not write down was not another one.
            if values[0] is not None and key != "format"
        }
        if differing:
            first, (was, now) = next(iter(differing.items()))
            others = f" and {len(differing) - 1} more differ" if len(differing) > 1 else " differs"
            raise ConfigError(
                f"the store is not the one that run `{run.folder}` began with: `{first}`{others} "
                f"({_short(was)} then, {_short(now)} now)",
                remedy="choose another --out, or add `--overwrite` to start again",
                code="store-differs",
            )
    run.write_sealed(PREPARATION, record)


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."


def _damaged(run: str | Path, reason: str) -> UserError:
    return UserError(
        f"`{PREPARATION}` of run `{run}` cannot be used: {reason}",
        remedy="restore the file; it says what the run was trained on",
        code="run-damaged",
    )


def classes_of(record: dict[str, Any], run: str | Path = "") -> ClassTable:
    """The class table of a run's record.

    Raises:
        UserError: it has none.
    """
    try:
        return ClassTable.from_json(record["classes"])
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _damaged(run, "its classes are no table") from error


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
    said = config.classification
    return VolumeClassifier(
        VolumeViT(config.encoder),
        sum(one.outputs for one in table),
        pool=said.pool,
        dropout=said.dropout,
        keep=said.keep,
        keep_at_test=said.keep_at_test,
    )


def scheme_of(config: FinetuneConfig, classes: ClassTable) -> RegionScheme | None:
    """The scheme of overlapping regions, checked against the classes; None for a softmax."""
    if config.objective.regions is None:
        return None
    scheme = region_scheme(config.objective.regions)
    scheme.check_values(classes.values)
    return scheme


def load_segmenter(
    run: str | Path,
    *,
    checkpoint: Which = "last",
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
) -> Segmenter:
    """A fine-tuned run, ready to predict. Needs the run folder alone.

    Args:
        run: the folder `mim3d finetune` wrote.
        checkpoint: which of its checkpoints.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        precision: `auto` is bf16 where the device does it in hardware.

    Raises:
        UserError: no such run or checkpoint, or a run that is no segmenter.
    """
    found = _trained(run, checkpoint)
    config = found.config
    if config.task != "segmentation":
        raise UserError(
            f"`{run}` says one answer for a whole volume (`task {config.task}`) and no label maps",
            remedy="`mim3d predict` writes its answers as a CSV",
            code="no-segmenter",
        )
    classes = classes_of(found.record, run)
    network = network_of(config, classes)
    load_whole(network, read_weights(found.folder)[0], source=str(run))
    regions = scheme_of(config, classes)
    return replace(
        _model(network, found, run, device, precision),
        classes=classes,
        regions=regions,
        swap_on_flip=config.augmentation.swap_on_flip,
        # Of crops of several sizes training cut all padding away.
        pads=not config.data.crop_sizes,
        spacings_mm=_spacings(found.record),
    )


def load_classifier(
    run: str | Path,
    *,
    checkpoint: Which = "last",
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
) -> Classifier:
    """A run that was fine-tuned on targets of whole volumes, ready to predict.

    Args:
        run: the folder `mim3d finetune` wrote.
        checkpoint: which of its checkpoints.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        precision: `auto` is bf16 where the device does it in hardware.

    Raises:
        UserError: no such run or checkpoint, or a run that is no classifier.
    """
    found = _trained(run, checkpoint)
    if found.config.task == "segmentation":
        raise UserError(
            f"`{run}` segments, and says no answer for a whole volume",
            remedy="average runs of one task only",
            code="no-classifier",
        )
    table = targets_of(found.record, run)
    network = classifier_network(found.config, table)
    load_whole(network, read_weights(found.folder)[0], source=str(run))
    return Classifier(_model(network, found, run, device, precision), table)


def task_of(run: str | Path) -> str:
    """The task of a fine-tuned run, by the config's word.

    Raises:
        UserError: no such run.
    """
    return _trained(run, "last").config.task


class _Trained(NamedTuple):
    """A fine-tuned run."""

    folder: Path
    config: FinetuneConfig
    record: dict[str, Any]


def _trained(run: str | Path, checkpoint: Which) -> _Trained:
    folder = checkpoint_of(run, checkpoint)
    record = load_preparation(run)
    if record["verb"] != "finetune":
        raise UserError(
            f"`{run}` is a pre-training run: it has no decoder and cannot segment",
            remedy=f"`mim3d finetune CONFIG --init {run}` makes a segmenter of it",
            code="no-segmenter",
        )
    return _Trained(folder, read_config(Path(run) / "config.yaml", FinetuneConfig), record)


def _model(
    network: nn.Module,
    found: _Trained,
    run: str | Path,
    device: str,
    precision: Literal["auto", "fp32", "bf16"],
) -> Segmenter:
    """A network with its window and how its input is made."""
    config, chosen = found.config, choose_device(device)
    return Segmenter(
        network,
        config.inference.window or config.data.crop_size,
        rule=_rule(config, found.record, run),
        channel_names=tuple(found.record["channel_names"]),
        device=chosen,
        precision=choose_precision(precision, chosen),
    )


def targets_of(record: dict[str, Any], run: str | Path = "") -> tuple[AskedTarget, ...]:
    """What the outputs of a run of whole volumes stand for.

    Raises:
        UserError: its record does not say.
    """
    try:
        table = tuple(AskedTarget.from_json(one) for one in record[TARGETS])
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _damaged(run, "its targets are none") from error
    if not table:
        raise _damaged(run, "it has no targets")
    return table


def run_digest(run: str | Path, which: Which = "last") -> str:
    """SHA-256 of the file of weights that a run predicts with."""
    return file_digest(checkpoint_of(run, which) / WEIGHTS)


def _spacings(record: dict[str, Any]) -> tuple[Spacing, Spacing] | None:
    """The smallest and the largest spacing of the store; None in records that do not say."""
    stored = record.get("fingerprint", {}).get("stored", {}).get("spacing_mm")
    if not isinstance(stored, dict):
        return None
    (lx, ly, lz), (hx, hy, hz) = stored["min"], stored["max"]
    return (lx, ly, lz), (hx, hy, hz)


def _rule(config: FinetuneConfig, record: dict[str, Any], run: str | Path) -> VolumeRule:
    """What training did to a volume: the store's rule, with the run's own window if it has one."""
    fields = hints(VolumeRule)
    try:
        stored = {name: convert(value, fields[name])
                  for name, value in record["preparation"].items() if name in fields}  # fmt: skip
        modalities = convert(record["modalities"], fields["modalities"])
    except ValueError as error:
        raise _damaged(run, f"its preparation is none ({error})") from error
    rule = VolumeRule.from_json(stored)
    if config.data.window_hu is None:
        return replace(rule, modalities=modalities)
    return replace(rule, modalities=modalities, window_hu=config.data.window_hu)
