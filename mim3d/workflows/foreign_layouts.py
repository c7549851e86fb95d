"""From another program's checkpoint, by its layout, to an encoder that was asked for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from torch import Tensor

from mim3d.config.convert import ConvertConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.foundation.errors import ConfigError
from mim3d.models.adaptation import PARTS, part_of
from mim3d.models.layouts.layout import Layout, guessed, layout_of, unwrapped
from mim3d.models.layouts.shapes import Said
from mim3d.models.layouts.translated import Translated, translate
from mim3d.models.presets import size_of
from mim3d.models.vit import VolumeViT
from mim3d.models.weights import PREFIX, transfer_encoder
from mim3d.workflows.foreign import Converted
from mim3d.workflows.initial import LEARNING_FIELDS

SIZES = ("preset", "width", "depth", "heads")
FIXED_BY_USE = (*LEARNING_FIELDS, "initialisation")
"""Settings of the encoder that say nothing of its weights."""


@dataclass(frozen=True)
class Taken:
    """What is taken of a checkpoint.

    Args:
        tensors: by `encoder.*`, and `decoder.*` where the decoder is taken too.
        encoder: their encoder; None where nobody knows it.
        translated: how they were found; None where no layout was used.
        lines: what else is told: what was adapted, taken for granted and left out.
    """

    tensors: dict[str, Tensor]
    encoder: EncoderConfig | None
    translated: Translated | None = None
    lines: tuple[str, ...] = ()

    @property
    def has_decoder(self) -> bool:
        """Whether a whole segmenter is here."""
        return any(not key.startswith(PREFIX) for key in self.tensors)


def layout_for(converted: Converted, config: ConvertConfig, source: str) -> Layout | None:
    """The layout of a checkpoint; None where its keys are taken as they are.

    Raises:
        WeightsError: the layout that was named does not fit.
    """
    name = config.convert.layout
    if name == "plain":
        return None
    keys = unwrapped(converted.tensors).values()
    return guessed(keys) if name == "auto" else layout_of(name, keys, source=source)


def by_layout(
    converted: Converted, layout: Layout, config: ConvertConfig, said: Collection[str], source: str
) -> Taken:
    """An encoder that was asked for, and the decoder where it fits it, from a foreign checkpoint.

    Patch, channels, positions and their grid may differ from the checkpoint's: they are adapted as
    everywhere (`models.adaptation`). Anything else that is said has to agree with it.

    Args:
        converted: the checkpoint.
        layout: whose it is.
        config: of the verb.
        said: dotted settings that were written down.
        source: the checkpoint, in messages.

    Raises:
        ConfigError: what was said contradicts the checkpoint.
        WeightsError: it cannot be read, or not be adapted to what was asked.
    """
    asked = {field for field in vars(config.encoder) if _is_said(field, config.encoder, said)}
    translated = translate(converted.tensors, layout, _said(config, asked))
    wanted = _wanted(translated.config, config.encoder, asked, source)
    encoder = VolumeViT(wanted)
    report = transfer_encoder(
        encoder, translated.encoder, source=source, found=translated.config, adapt=tuple(PARTS)
    )
    tensors = {f"{PREFIX}{key}": tensor for key, tensor in encoder.state_dict().items()}
    lines = [*translated.remarks, *(f"adapted {one}" for one in report.adapted)]
    if translated.decoder:
        why = _decoder_left(translated.config, wanted, config)
        if why:
            lines.append(f"its decoder is left out: {why}")
        else:
            tensors |= translated.decoder
    return Taken(tensors, encoder.config, translated, tuple(lines))


def _is_said(field: str, encoder: EncoderConfig, said: Collection[str]) -> bool:
    return f"encoder.{field}" in said or getattr(encoder, field) != getattr(EncoderConfig(), field)


def _said(config: ConvertConfig, asked: Collection[str]) -> Said:
    """What the user says of the checkpoint itself."""
    encoder = config.encoder
    patch = encoder.patch if "patch" in asked else None
    deep = None
    if config.convert.inflate is not None:
        if patch is not None and patch[2] == 1:
            raise ConfigError(
                f"`--convert.inflate {config.convert.inflate}` makes patches deeper than one voxel,"
                " but `encoder.patch` ends in 1",
                remedy="leave one of the two out",
                code="inflate",
            )
        deep = encoder.patch[2]
    return Said(patch, encoder.channels, encoder.heads, encoder.learned_grid, deep)


def _wanted(
    found: EncoderConfig, config: EncoderConfig, asked: Collection[str], source: str
) -> EncoderConfig:
    """The checkpoint's encoder with what was asked of it in place."""
    fields = {name: getattr(config, name) for name in asked if name not in SIZES}
    for name, value in fields.items():
        is_free = name in FIXED_BY_USE or part_of(name) is not None
        if not is_free and value != getattr(found, name):
            raise _contradiction(name, value, getattr(found, name), source)
    sizes = size_of(found)._asdict()
    if "preset" in asked:
        preset = size_of(EncoderConfig(preset=config.preset))._asdict()
        sizes_asked = {name: preset[name] for name in sizes if name not in asked}
    else:
        sizes_asked = {}
    sizes_asked |= {name: getattr(config, name) for name in sizes if name in asked}
    for name, value in sizes_asked.items():
        if value not in (None, sizes[name]):
            raise _contradiction(name, value, sizes[name], source)
    return replace(found, **fields)


def _contradiction(name: str, value: object, there: object, source: str) -> ConfigError:
    return ConfigError(
        f"`encoder.{name}` is {value}, but `{source}` has {there}",
        remedy=f"leave `encoder.{name}` out: the checkpoint says it",
        code="encoder-differs",
    )


def _decoder_left(found: EncoderConfig, wanted: EncoderConfig, config: ConvertConfig) -> str | None:
    """Why a decoder is not taken; None if it is."""
    if config.convert.take == "encoder":
        return "`--convert.take encoder`"
    for name in ("patch", "channels", "embedding"):
        if getattr(found, name) != getattr(wanted, name):
            return f"it belongs to `encoder.{name}` {getattr(found, name)}"
    return None
