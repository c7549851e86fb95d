"""`mim3d convert`: from another program's checkpoint to weights without code, key by key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mim3d.config.convert import ConvertConfig
from mim3d.config.reading import Section, parse, text_of, to_mapping, typed_node
from mim3d.config.sections import EncoderConfig
from mim3d.config.verbs import PretrainConfig
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.reporting import PlainReporter, Reporter
from mim3d.models.key_map import KeyMap
from mim3d.models.vit import VolumeViT
from mim3d.models.weights import (
    encoder_metadata,
    encoder_tensors,
    save_weights,
    transfer_encoder,
)
from mim3d.training.checkpoints import Saved, weights_digest
from mim3d.training.run import Run
from mim3d.workflows.foreign import ENDING, Converted, read_foreign
from mim3d.workflows.loading import PREPARATION, RECORD_FORMAT
from mim3d.workflows.result import Result


def convert(
    checkpoint: str,
    *,
    out: str,
    config: ConvertConfig | None = None,
    said: Collection[str] = (),
    reporter: Reporter | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Result:
    """Takes the tensors out of a checkpoint, and nothing else.

    `.pt`, `.pth`, `.ckpt` and `.bin` are opened with `weights_only` in a process of its own,
    without network; `.safetensors` needs none.

    Args:
        checkpoint: the file.
        out: a file that ends in `.safetensors` takes all tensors under their new keys; anything
            else is a run folder for `--init`, which takes the whole encoder of `config.encoder`.
        config: section, key map and the encoder.
        said: dotted settings that were written down; a file takes the encoder's header, and is
            checked against it, where one of them is `encoder.*`.
        reporter: where progress goes.
        overwrite: replace a file, or a run, that is there.
        dry_run: report, and write nothing.

    Returns:
        The report, key by key.

    Raises:
        WeightsError: the file holds more than tensors, is damaged, or does not fit the encoder.
        ConfigError: something stands at `out`, or the key map is none.
    """
    config = config or ConvertConfig()
    reporter = reporter or PlainReporter()
    key_map = KeyMap() if config.convert.key_map is None else read_key_map(config.convert.key_map)
    reporter.say(f"converting `{checkpoint}` into `{out}`")
    converted = read_foreign(checkpoint, config.convert, key_map)
    is_run = not out.endswith(ENDING)
    encoder = replace(config.encoder, channels=config.encoder.channels or 1)
    is_checked = is_run or any(key.startswith("encoder.") for key in said)
    taken = _whole_encoder(encoder, converted, checkpoint) if is_checked else converted.tensors
    text = "\n".join([*_report(converted, taken), _summary(converted, taken, is_checked)])
    facts = {"keys": converted.names, "left_out": converted.left, "tensors": len(taken),
             "sha256": converted.digest, "digest": weights_digest(taken)}  # fmt: skip
    if dry_run:
        return Result(f"{text}\nnothing was written (--dry_run)", facts)
    if is_run:
        _write_run(Path(out), encoder, taken, converted.digest, overwrite=overwrite)
    else:
        _write_file(Path(out), taken, encoder if is_checked else None, overwrite=overwrite)
    return Result(text, facts, (Path(out),))


def read_key_map(path: str | Path) -> KeyMap:
    """The key map of a YAML or JSON file.

    Raises:
        ConfigError: unknown lines, or values of another type.
    """
    section = Section(KeyMap, f"`{path}`")
    root = parse(text_of(Path(path)), f"`{path}`")
    said: dict[str, Any] = {}
    for name, place, node in [] if root is None else section.pairs(root):
        if name in ("strip", "drop"):
            said[name] = typed_node(name, place, node, tuple[str, ...])
        elif name == "rename":
            said[name] = {old: typed_node(old, where, new, str)
                          for old, where, new in section.pairs(node)}  # fmt: skip
        else:
            raise ConfigError(
                f"`{name[:60]}`{place} is not part of a key map",
                remedy="a key map has `strip`, `drop` and `rename`",
                code="unknown-key",
            )
    return KeyMap(**said)


def _whole_encoder(config: EncoderConfig, converted: Converted, source: str) -> dict[str, Tensor]:
    encoder = VolumeViT(config)
    transfer_encoder(encoder, converted.tensors, source=source)
    return {f"encoder.{key}": tensor for key, tensor in encoder.state_dict().items()}


def _report(converted: Converted, taken: Mapping[str, Tensor]) -> list[str]:
    """One line a key of the table that was taken, and one a place beside it that holds tensors."""
    inside, _ = encoder_tensors(converted.tensors)
    lines = []
    for old, new in converted.names.items():
        if new is None:
            lines.append(f"left out  {_shown(old)}, by the key map")
            continue
        ours = new if new in taken else f"encoder.{new}"
        is_taken = ours in taken and (new in taken or new in inside)
        shape = " x ".join(map(str, converted.tensors[new].shape)) or "a number"
        arrow = "" if old == ours else f" as {_shown(ours)}"
        lines.append(f"taken     {_shown(old)}{arrow}, {shape}" if is_taken
                     else f"left out  {_shown(old)}, {shape}, no part of the encoder")  # fmt: skip
    for place, count in converted.left.items():
        several = f"{count} tensors" if count > 1 else "a tensor"
        lines.append(f"left out  {_shown(place)}, {several} under no name of the table taken")
    return lines


def _shown(key: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in key[:120])


def _summary(converted: Converted, taken: Mapping[str, Tensor], is_checked: bool) -> str:
    whole = "; the encoder is whole" if is_checked else ""
    others = sum(converted.left.values())
    beside = f"; {others} beside the table left out" if others else ""
    return f"{len(taken)} of {len(converted.names)} tensors taken{whole}{beside}"


def _write_file(
    path: Path, tensors: Mapping[str, Tensor], encoder: EncoderConfig | None, *, overwrite: bool
) -> None:
    if path.exists() and not overwrite:
        raise ConfigError(
            f"`{path}` is there already", remedy="add `--overwrite`, or choose another --out",
            code="out",
        )  # fmt: skip
    save_weights(path, tensors, {} if encoder is None else encoder_metadata(encoder))


def _write_run(
    folder: Path,
    encoder: EncoderConfig,
    tensors: Mapping[str, Tensor],
    digest: str,
    *,
    overwrite: bool,
) -> None:
    """A run of no steps: what `--init` and `info` look for."""
    config = to_mapping(PretrainConfig(encoder=encoder))
    run = Run.create_or_continue(folder, config, overwrite=overwrite)
    if run.is_done:
        raise UserError(
            f"`{folder}` holds a finished run",
            remedy="add `--overwrite`, or choose another --out",
            code="out",
        )
    with run:
        record = {"format": RECORD_FORMAT, "verb": "convert", "preparation": {}, "modalities": [],
                  "channel_names": [], "classes": None, "trained_on": {},
                  "converted_from": digest}  # fmt: skip
        run.write_sealed(PREPARATION, record)
        run.checkpoints.write(
            0,
            weights=tensors,
            header=encoder_metadata(encoder),
            saved=Saved({}, {"step": 0}),
            is_best=True,
        )
        run.finish({"digest": weights_digest(tensors), "converted_from": digest})
