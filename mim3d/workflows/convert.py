"""`mim3d convert`: from another program's checkpoint to weights without code, key by key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mim3d.config.convert import ConvertConfig, ForeignSegmenterConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.entries import Section, typed_node
from mim3d.config.nodes import parse, text_of
from mim3d.config.verbs import PretrainConfig
from mim3d.config.writing import to_mapping
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
from mim3d.workflows.foreign_layouts import Taken, by_layout, layout_for
from mim3d.workflows.foreign_segmenter import ForeignRun, segmenter_run, without_decoder
from mim3d.workflows.result import Result
from mim3d.workflows.run_record import PREPARATION, RECORD_FORMAT


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
    taken = _taken(converted, config, said, checkpoint, is_run=is_run)
    if not is_run and config.segmenter != ForeignSegmenterConfig():
        raise ConfigError(
            "`segmenter.*` is kept beside the weights of a run, and a file has no room for it",
            remedy="give a folder as --out, or leave `segmenter.*` out",
            code="segmenter",
        )
    run = segmenter_run(taken, config) if is_run else ""
    lines = [*taken.lines]
    if run and isinstance(run, str):
        taken = without_decoder(taken)
        lines.append(f"only its encoder goes into the run; for `predict` say also {run}")
    text = "\n".join([*_report(converted, taken), *lines, _summary(converted, taken)])
    facts = {"keys": _names(converted, taken), "left_out": converted.left,
             "tensors": len(taken.tensors), "sha256": converted.digest,
             "digest": weights_digest(taken.tensors)}  # fmt: skip
    if taken.translated is not None:
        facts |= {"layout": taken.translated.layout.layout, "reasons": taken.translated.reasons}
    if dry_run:
        return Result(f"{text}\nnothing was written (--dry_run)", facts)
    if is_run:
        assert taken.encoder is not None
        about = run if isinstance(run, ForeignRun) else _encoder_run(taken.encoder)
        _write_run(Path(out), about, taken, converted.digest, overwrite=overwrite)
    else:
        _write_file(Path(out), taken.tensors, taken.encoder, overwrite=overwrite)
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


def _taken(
    converted: Converted,
    config: ConvertConfig,
    said: Collection[str],
    source: str,
    *,
    is_run: bool,
) -> Taken:
    """What is taken: by the layout, or by our own keys."""
    layout = layout_for(converted, config, source)
    if layout is not None:
        return by_layout(converted, layout, config, said, source)
    if config.convert.inflate is not None:
        raise ConfigError(
            "`convert.inflate` needs a layout, which says where the kernel is",
            remedy="name it with `--convert.layout`",
            code="inflate",
        )
    encoder = replace(config.encoder, channels=config.encoder.channels or 1)
    if is_run or any(key.startswith("encoder.") for key in said):
        return Taken(_whole_encoder(encoder, converted, source), encoder)
    return Taken(converted.tensors, None)


def _whole_encoder(config: EncoderConfig, converted: Converted, source: str) -> dict[str, Tensor]:
    encoder = VolumeViT(config)
    transfer_encoder(encoder, converted.tensors, source=source)
    return {f"encoder.{key}": tensor for key, tensor in encoder.state_dict().items()}


def _names(converted: Converted, taken: Taken) -> dict[str, str | None]:
    """Every key of the table, and what it is called now."""
    if taken.translated is None:
        return converted.names
    ours = taken.translated.names
    return {old: None if new is None else ours[new] for old, new in converted.names.items()}


def _report(converted: Converted, taken: Taken) -> list[str]:
    """One line a key of the table that was taken, and one a place beside it that holds tensors."""
    lines = [
        f"left out  {_shown(old)}, by the key map"
        if new is None
        else _line(old, new, converted, taken)
        for old, new in converted.names.items()
    ]
    for place, count in converted.left.items():
        several = f"{count} tensors" if count > 1 else "a tensor"
        lines.append(f"left out  {_shown(place)}, {several} under no name of the table taken")
    return lines


def _line(old: str, new: str, converted: Converted, taken: Taken) -> str:
    """What became of a key."""
    tensor = converted.tensors[new]
    shape = " x ".join(map(str, tensor.shape)) or "a number"
    if taken.translated is not None:
        ours = taken.translated.names[new]
        why = taken.translated.reasons.get(new, "no part of what was asked for")
        is_taken = ours is not None and ours in taken.tensors
    else:
        inside, _ = encoder_tensors(converted.tensors)
        ours, why = new if new in taken.tensors else f"encoder.{new}", "no part of the encoder"
        is_taken = ours in taken.tensors and (new in taken.tensors or new in inside)
    if not is_taken or ours is None:
        return f"left out  {_shown(old)}, {shape}, {why}"
    arrow = "" if old == ours else f" as {_shown(ours)}"
    return f"taken     {_shown(old)}{arrow}, {shape}"


def _shown(key: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in key[:120])


def _summary(converted: Converted, taken: Taken) -> str:
    whole = "" if taken.encoder is None else "; the encoder is whole"
    if taken.has_decoder and taken.encoder is not None:
        whole += ", and its decoder"
    others = sum(converted.left.values())
    beside = f"; {others} beside the table left out" if others else ""
    count = len(taken.tensors)
    if taken.translated is not None:  # of theirs: some are joined
        count = sum(name in taken.tensors for name in taken.translated.names.values())
    return f"{count} of {len(converted.names)} tensors taken{whole}{beside}"


def _encoder_run(encoder: EncoderConfig) -> ForeignRun:
    record = {"format": RECORD_FORMAT, "verb": "convert", "preparation": {}, "modalities": [],
              "channel_names": [], "classes": None, "trained_on": {}}  # fmt: skip
    return ForeignRun(PretrainConfig(encoder=encoder), record)


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
    folder: Path, about: ForeignRun, taken: Taken, digest: str, *, overwrite: bool
) -> None:
    """A run of no steps: what `--init`, `info` and, with a decoder, `predict` look for."""
    run = Run.create_or_continue(folder, to_mapping(about.config), overwrite=overwrite)
    if run.is_done:
        raise UserError(
            f"`{folder}` holds a finished run",
            remedy="add `--overwrite`, or choose another --out",
            code="out",
        )
    with run:
        run.write_sealed(PREPARATION, {**about.record, "converted_from": digest})
        run.checkpoints.write(
            0,
            weights=taken.tensors,
            header=encoder_metadata(about.config.encoder),
            saved=Saved({}, {"step": 0}),
            is_best=True,
        )
        run.finish({"digest": weights_digest(taken.tensors), "converted_from": digest})
