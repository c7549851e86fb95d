"""Weights on disk and from one model to another: whole or not at all.

A file is safetensors: a JSON header and raw numbers, so that reading runs no code of the file's.
Its header is checked here before a byte is mapped, and each complaint says what is wrong.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from mim3d.config.encoder import EncoderConfig
from mim3d.config.tree import hints
from mim3d.config.values import convert
from mim3d.foundation.documents import DocumentError, parsed
from mim3d.foundation.errors import WeightsError
from mim3d.models.adaptation import Adapted, adapted_tensors
from mim3d.models.presets import PRESETS
from mim3d.models.tensor_file import write_tensors
from mim3d.models.vit import VolumeViT

PREFIX = "encoder."
"""What the keys of the encoder begin with in the files of runs."""
LONGEST_HEADER = 16 * 2**20
"""Bytes: a hundred thousand tensors. The format would allow 100 MB, parsed to gigabytes."""
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Types of numbers that mim3d writes or reads."""


class Weights(NamedTuple):
    """What a file holds."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


@dataclass(frozen=True)
class Misfit:
    """One tensor that does not fit; None stands for a tensor that is not there."""

    key: str
    found: tuple[int, ...] | None
    expected: tuple[int, ...] | None
    is_finite: bool = True
    is_exact: bool = True

    def __str__(self) -> str:
        if self.found is None:
            return f"`{self.key}` is missing, expected {_shape(self.expected)}"
        if self.expected is None:
            return f"`{self.key}` is {_shape(self.found)}, not expected"
        if not self.is_finite:
            return f"`{self.key}` holds NaN, infinities or no real numbers"
        if not self.is_exact:
            return f"`{self.key}` holds numbers that the encoder's type would round"
        return f"`{self.key}` is {_shape(self.found)}, expected {_shape(self.expected)}"


@dataclass(frozen=True)
class TransferReport:
    """What a transfer did.

    Args:
        source: where the weights came from.
        loaded: the encoder's keys, every one of which now equals the source's or is `adapted`.
        left: keys of the source that are no encoder's: its decoder, its mask token.
        adapted: the tensors that were changed on the way, with old and new shape.
    """

    source: str
    loaded: tuple[str, ...]
    left: tuple[str, ...]
    adapted: tuple[Adapted, ...] = ()


def encoder_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The encoder's tensors without their prefix, and the keys that are left.

    A state without any `encoder.` key is taken as the encoder's own.
    """
    inside = {k.removeprefix(PREFIX): v for k, v in tensors.items() if k.startswith(PREFIX)}
    if not inside:
        return dict(tensors), ()
    return inside, tuple(sorted(k for k in tensors if not k.startswith(PREFIX)))


def misfits(encoder: VolumeViT, tensors: Mapping[str, Tensor]) -> list[Misfit]:
    """Every tensor that is missing, not expected, of another shape, not finite or not exact.

    Args:
        encoder: what the tensors are for.
        tensors: by the encoder's own keys.
    """
    return module_misfits(encoder, tensors)


def module_misfits(module: nn.Module, tensors: Mapping[str, Tensor]) -> list[Misfit]:
    """`misfits` of any module; empty if its whole state would equal the tensors."""
    wanted = module.state_dict()
    found = []
    for key in [*wanted, *sorted(set(tensors) - set(wanted))]:
        have, want = tensors.get(key), wanted.get(key)
        shape = None if have is None else tuple(have.shape)
        expected = None if want is None else tuple(want.shape)
        if have is None or shape != expected:
            found.append(Misfit(key, shape, expected))
        elif not have.is_floating_point() or not bool(have.isfinite().all()):
            found.append(Misfit(key, shape, expected, is_finite=False))
        elif want is not None and not torch.equal(have.to(want.dtype).to(have.dtype), have):
            found.append(Misfit(key, shape, expected, is_exact=False))
    return found


def transfer_encoder(
    encoder: VolumeViT,
    tensors: Mapping[str, Tensor],
    *,
    source: str = "the weights",
    found: EncoderConfig | None = None,
    adapt: Collection[str] = (),
) -> TransferReport:
    """Puts all encoder tensors of a checkpoint into an encoder, or none and says why.

    Args:
        encoder: is changed only if every tensor fits.
        tensors: a run's (`encoder.*` beside others) or an encoder's own state.
        source: its name in messages.
        found: the encoder that the tensors belong to; needed to adapt them.
        adapt: what of them may be adapted to the encoder: `patch`, `channels`, `positions`.

    Raises:
        WeightsError: anything is missing, left over, of another shape or not finite, and is not
            to be adapted; every such key is listed.
    """
    inside, left = encoder_tensors(tensors)
    adapted: tuple[Adapted, ...] = ()
    if found is not None and adapt:
        inside, adapted = adapted_tensors(inside, found, encoder.config, parts=adapt, source=source)
    wrong = misfits(encoder, inside)
    if wrong:
        wanted = len(encoder.state_dict())
        listed = "\n".join(f"  {one}" for one in wrong)
        advice = _fitting_preset(encoder, inside)
        raise WeightsError(
            f"{len(wrong)} of {wanted} encoder tensors of `{source}` do not fit{_name(encoder)}",
            remedy=f"first: {wrong[0]}{advice}\n{listed}",
            code="weights-misfit",
        )
    encoder.load_state_dict(inside, strict=True)
    return TransferReport(source, tuple(encoder.state_dict()), left, adapted)


def load_whole(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Puts all tensors of a checkpoint into a module, or none and says why.

    Args:
        module: is changed only if every tensor fits.
        tensors: by the module's own keys.
        source: their name in messages.

    Raises:
        WeightsError: anything is missing, left over, of another shape, not finite or not exact.
    """
    wrong = module_misfits(module, tensors)
    if wrong:
        listed = "\n".join(f"  {one}" for one in wrong)
        raise WeightsError(
            f"{len(wrong)} tensors of `{source}` do not fit the network that its config describes",
            remedy=f"restore its `config.yaml`, or take another run; first: {wrong[0]}\n{listed}",
            code="weights-misfit",
        )
    module.load_state_dict(tensors, strict=True)


def _name(encoder: VolumeViT) -> str:
    preset = encoder.config.preset
    is_it = PRESETS[preset] == (encoder.width, encoder.depth, encoder.heads)
    return f" `encoder.preset {preset}`" if is_it else " the encoder"


def _fitting_preset(encoder: VolumeViT, tensors: Mapping[str, Tensor]) -> str:
    norm = tensors.get("norm.weight")
    blocks = {key.split(".")[1] for key in tensors if key.startswith("blocks.")}
    if norm is None or (len(norm), len(blocks)) == (encoder.width, encoder.depth):
        return ""
    for name, size in PRESETS.items():
        if (size.width, size.depth) == (len(norm), len(blocks)):
            return f"; use `--encoder.preset {name}`"
    return f"; use `--encoder.width {len(norm)} --encoder.depth {len(blocks)}`"


def encoder_metadata(config: EncoderConfig) -> dict[str, str]:
    """What the header of every file of weights says of its encoder."""
    return {"encoder": json.dumps(asdict(config))}


def encoder_config(metadata: Mapping[str, str], *, source: str = "the weights") -> EncoderConfig:
    """The encoder's config from a file's header.

    Raises:
        WeightsError: there is none, or it is of another version.
    """
    known = hints(EncoderConfig)
    try:
        values = dict(parsed(metadata["encoder"]))
        foreign = sorted(set(values) - set(known))
        typed = {key: convert(value, known[key]) for key, value in values.items() if key in known}
    except (KeyError, ValueError, TypeError) as error:
        raise WeightsError(
            f"`{source}` does not say which encoder its weights belong to",
            remedy="take a file that mim3d wrote",
            code="no-encoder-config",
        ) from error
    if foreign:
        raise WeightsError(
            f"`{source}` was written by another version: its encoder has `{foreign[0]}`",
            code="other-version",
        )
    return EncoderConfig(**typed)


def save_weights(
    path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> str:
    """Writes a whole safetensors file and returns its SHA-256.

    Args:
        path: where.
        tensors: by key.
        metadata: `encoder_metadata` and more, words only.

    Raises:
        DiskError: it cannot be written; the older file is untouched.
    """
    return write_tensors(path, tensors, metadata)


def load_weights(path: Path | str) -> Weights:
    """Reads a safetensors file whose header is sound.

    Raises:
        WeightsError: the file is missing, cut short or not what it says.
    """
    check_header(path)
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return Weights(tensors, dict(file.metadata() or {}))


def check_header(path: Path | str) -> None:
    """Checks that a safetensors file is whole: header, types, shapes and offsets.

    Raises:
        WeightsError: saying which of these is wrong.
    """
    path = Path(path)
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, LONGEST_HEADER):
                raise _unsound(path, f"its {size} bytes do not hold the header it announces")
            raw = file.read(length)
    except OSError as error:
        raise WeightsError(
            f"weights `{path}` cannot be opened: {error.strerror}",
            remedy="give the folder of a run that has a checkpoint",
            code="no-weights",
        ) from error
    try:
        header = parsed(raw)
    except DocumentError as error:
        raise _unsound(path, f"its header cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise _unsound(path, "its header is no table")
    metadata = header.pop("__metadata__", {})
    if not _is_words(metadata):
        raise _unsound(path, "its metadata are not words")
    end = 0
    for key, entry in sorted(header.items(), key=_by_offsets):
        start, stop = _extent(path, key, entry)
        if start != end:
            raise _unsound(path, f"tensor `{key}` begins at byte {start}, expected {end}")
        end = stop
    if end != size - 8 - length:
        raise _unsound(path, f"it holds {size - 8 - length} bytes of numbers, expected {end}")


def _by_offsets(item: tuple[str, Any]) -> list[int]:
    offsets = item[1].get("data_offsets") if isinstance(item[1], dict) else None
    return offsets if _is_sizes(offsets) else []


def _extent(path: Path, key: str, entry: Any) -> tuple[int, int]:
    shape, offsets = (entry.get(part) if isinstance(entry, dict) else None for part in _PARTS)
    if not (_is_sizes(shape) and _is_sizes(offsets) and len(offsets) == 2):
        raise _unsound(path, f"tensor `{key}` has no sound shape and offsets")
    kind = str(entry.get("dtype"))
    if kind not in ITEM_BYTES:
        raise _unsound(path, f"tensor `{key}` has the unknown type `{kind}`")
    expected = math.prod(shape) * ITEM_BYTES[kind]
    if offsets[1] - offsets[0] != expected:
        have = offsets[1] - offsets[0]
        raise _unsound(path, f"tensor `{key}` has {have} bytes, its shape needs {expected}")
    return offsets[0], offsets[1]


_PARTS = ("shape", "data_offsets")


def _is_sizes(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(one) is int and one >= 0 for one in values)


def _is_words(values: Any) -> bool:
    return isinstance(values, dict) and all(isinstance(one, str) for one in values.values())


def _unsound(path: Path, why: str) -> WeightsError:
    return WeightsError(
        f"`{path}` is damaged or no safetensors file: {why}",
        remedy="copy it again, or take another checkpoint of the run",
        code="weights-damaged",
    )


def _shape(shape: tuple[int, ...] | None) -> str:
    return " x ".join(map(str, shape)) if shape else "a number"
