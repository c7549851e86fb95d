"""A run in another program's form: whichever was asked for, written whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mim3d.config.export import ExportConfig
from mim3d.foundation.documents import read_object
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.reporting import Reporter
from mim3d.models.saved import HUB_CARD, HUB_CONFIG, HUB_RUN, HUB_WEIGHTS, is_hub
from mim3d.workflows.export.subject import Subject, load_subject
from mim3d.workflows.result import Result
from mim3d.workflows.run_record import PREPARATION

Write = Callable[[Subject, Path, ExportConfig, Reporter], Result]


class Form(NamedTuple):
    """One format of a run."""

    ending: str | None
    """Of the file; None is a folder."""
    story: str
    module: str
    """The one of this room that writes it, in its function `write`."""
    also: str | None = None
    """Ending of a second file beside the first."""


FORMS = {
    "monai": Form(".safetensors", "a state dict that MONAI loads strictly", "monai", ".json"),
    "onnx": Form(".onnx", "an ONNX program", "onnx"),
    "torch-export": Form(".pt2", "a program of `torch.export`", "program"),
    "hub-folder": Form(None, "a folder in the Hugging Face layout", "hub"),
}


def export_run(
    path: str,
    *,
    out: str,
    config: ExportConfig,
    reporter: Reporter,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Result:
    """Writes a run in the format that was asked for.

    Args:
        path: the run folder.
        out: a file with the format's ending, or a folder.
        config: the format, and what it is made with.
        reporter: where progress goes.
        overwrite: replace what is there.
        dry_run: say what would be written, and write nothing.

    Returns:
        What was written, and how far it agrees with the network.

    Raises:
        UserError: there is no such run, or the format has no place for its network.
        ConfigError: `out` has another ending, or something stands there.
    """
    form, target = FORMS[str(config.format)], Path(out)
    _check_place(target, form, overwrite=overwrite)
    subject = load_subject(path, config)
    if dry_run:
        subject.part(config)
        if form.module == "monai":
            from mim3d.workflows.export.monai import check

            check(subject, config)
        told = f"{form.story} of `{path}`, step {subject.step:,}, would be written to `{out}`"
        return Result(f"{told}\nnothing was written (--dry_run)", {"format": config.format})
    reporter.say(f"exporting `{path}`, step {subject.step:,}, as {form.story}")
    return _writers()[form.module](subject, target, config, reporter)


def _check_place(target: Path, form: Form, *, overwrite: bool) -> None:
    """Refuses a place with another ending, or where something stands that is not to be replaced."""
    if form.ending is not None and target.suffix != form.ending:
        raise ConfigError(
            f"`--out {target}` does not end in `{form.ending}`, which {form.story} does",
            remedy=f"for example `--out {target.with_suffix(form.ending)}`",
            code="ending",
        )
    places = [target] if form.also is None else [target, target.with_suffix(form.also)]
    there = [place for place in places if place.exists()]
    if there and not overwrite:
        raise ConfigError(
            f"`{there[0]}` is there already", remedy="add `--overwrite`, or choose another --out",
            code="out",
        )  # fmt: skip
    # A folder is replaced whole: never one that holds something else.
    is_alike = _is_export(target) if form.ending is None else target.is_file()
    is_ours = not target.exists() or is_alike
    if not is_ours:
        raise ConfigError(
            f"`{target}` is there and is not {form.story} that `mim3d` wrote, and no more",
            remedy="choose another --out",
            code="out",
        )


def _is_export(folder: Path) -> bool:
    """Whether an earlier export wrote all that is there: not a clone with its `.git`, say."""
    names = {one.name for one in folder.iterdir()} if folder.is_dir() else {""}
    if not names:
        return True
    if not is_hub(folder) or not names <= {HUB_CONFIG, HUB_WEIGHTS, HUB_CARD, HUB_RUN, PREPARATION}:
        return False
    try:
        return read_object(folder / HUB_CONFIG).get("model_type") == "mim3d"
    except UserError:
        return False


def _writers() -> dict[str, Write]:
    """By module; imported late, for each has libraries of its own."""
    from mim3d.workflows.export import hub, monai, onnx, program

    return {"hub": hub.write, "monai": monai.write, "onnx": onnx.write, "program": program.write}
