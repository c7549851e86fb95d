"""A run of a whole foreign segmenter: what `predict` needs beside its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mim3d.config.convert import ConvertConfig, ForeignSegmenterConfig
from mim3d.config.data import DataConfig
from mim3d.config.task import SegmentationConfig
from mim3d.config.verbs import FinetuneConfig, PretrainConfig
from mim3d.data.classes import ClassTable
from mim3d.data.prepare import VolumeRule
from mim3d.data.regions import region_scheme
from mim3d.foundation.errors import ConfigError
from mim3d.models.weights import PREFIX
from mim3d.workflows.foreign_layouts import Taken
from mim3d.workflows.initial import SCRATCH
from mim3d.workflows.run_record import RECORD_FORMAT


@dataclass(frozen=True)
class ForeignRun:
    """The config and the record of a run that was never trained here."""

    config: PretrainConfig | FinetuneConfig
    record: dict[str, Any]


def segmenter_run(taken: Taken, config: ConvertConfig) -> ForeignRun | str:
    """The run of a whole segmenter; or what is missing to it, in half a sentence.

    Args:
        taken: of the checkpoint.
        config: of the verb; its `segmenter` says what no weight does.

    Raises:
        ConfigError: what is said does not fit the outputs or the channels, or nothing is there
            that it could be said of.
    """
    said = config.segmenter
    if not taken.has_decoder or taken.encoder is None or taken.translated is None:
        if said != ForeignSegmenterConfig():
            raise ConfigError(
                f"`segmenter.*` says what a decoder is for, and none is taken: {_why_none(taken)}",
                remedy="leave `segmenter.*` out to take the encoder alone",
                code="no-decoder",
            )
        return ""
    if said.modality is None:
        return "`--segmenter.modality ct` (with `--segmenter.window_hu -175,250` or the like), " \
               "`mr` or `other`"  # fmt: skip
    if said.modality == "ct" and said.window_hu is None and said.intensity_range is None:
        return "`--segmenter.window_hu`: the HU that became 0 and 1 in its training"
    _check_different("classes", said.classes)
    _check_different("channels", said.channels)
    encoder, translated = taken.encoder, taken.translated
    channels = encoder.channels or 1
    names = said.channels or tuple(f"channel {i + 1}" for i in range(channels))
    if len(names) != channels:
        raise _unfitting("channels", len(names), f"the encoder has {channels}")
    classes = _classes(said, translated.outputs)
    grid = translated.config.learned_grid or (1, 1, 1)
    x, y, z = (count * edge for count, edge in zip(grid, encoder.patch, strict=True))
    assert translated.decoder_config is not None
    run = FinetuneConfig(
        data=DataConfig(crop_size=(x, y, z)),
        encoder=encoder,
        decoder=translated.decoder_config,
        objective=SegmentationConfig(regions=said.regions),
        init=SCRATCH,
    )
    record = {
        "format": RECORD_FORMAT,
        "verb": "finetune",
        "preparation": _preparation(said),
        "modalities": [said.modality] * channels,
        "channel_names": list(names),
        "classes": classes.as_json(),
        "trained_on": {},
    }
    return ForeignRun(run, record)


def _why_none(taken: Taken) -> str:
    """Why no decoder is taken, in half a sentence."""
    if taken.translated is None:
        return "the keys belong to no known UNETR"
    told = [*taken.lines, *taken.translated.reasons.values()]
    left = ("its decoder is left out: ", "the decoder is not taken: ")
    return next(
        (line.split(": ", 1)[1] for line in told if line.startswith(left)),
        "the checkpoint has none of ours",
    )


def without_decoder(taken: Taken) -> Taken:
    """The encoder alone."""
    kept = {key: tensor for key, tensor in taken.tensors.items() if key.startswith(PREFIX)}
    return replace(taken, tensors=kept)


def _classes(said: ForeignSegmenterConfig, outputs: int) -> ClassTable:
    if said.regions is not None:
        scheme = region_scheme(said.regions)
        if said.classes:
            raise ConfigError(
                "`segmenter.classes` and `segmenter.regions` are both set", code="classes"
            )
        if scheme.count != outputs:
            raise _unfitting("regions", scheme.count, f"the network has {outputs} outputs")
        return ClassTable.from_values(scheme.known_values, scheme.tissues)
    if said.classes and len(said.classes) != outputs:
        raise _unfitting("classes", len(said.classes), f"the network has {outputs} outputs")
    return ClassTable.from_values(range(outputs), dict(enumerate(said.classes)))


def _preparation(said: ForeignSegmenterConfig) -> dict[str, Any]:
    plain = VolumeRule()
    return {
        "spacing_mm": None if said.spacing_mm is None else list(said.spacing_mm),
        "interpolation": plain.interpolation,
        "window_hu": list(said.window_hu or plain.window_hu),
        "clip_percentiles": list(said.clip_percentiles),
        "intensity_range": None if said.intensity_range is None else list(said.intensity_range),
        "crop_to_body": said.crop_to_body,
        "body_margin_mm": plain.body_margin_mm,
    }


def _check_different(name: str, given: tuple[str, ...]) -> None:
    twice = next((one for one in given if given.count(one) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"`segmenter.{name}` has more than one `{twice}`",
            remedy="give each a name of its own, in the order of the checkpoint's own",
            code="same-name",
        )


def _unfitting(name: str, found: int, expected: str) -> ConfigError:
    return ConfigError(
        f"`segmenter.{name}` has {found} entries, but {expected}",
        remedy="name them all, in the order of the checkpoint's own",
        code="segmenter",
    )
