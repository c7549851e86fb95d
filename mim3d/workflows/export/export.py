"""`mim3d export`: from a run or a store to what other programs read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import get_args

from mim3d.config.export import ExportConfig, ExportFormat, GraphConfig
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.reporting import PlainReporter, Reporter
from mim3d.workflows.result import Result

STORE_FORMATS = ("nnunet",)
"""What a store becomes; everything else is of runs."""
RUN_FORMATS = tuple(name for name in get_args(ExportFormat) if name not in STORE_FORMATS)


def export(
    path: str,
    *,
    out: str,
    config: ExportConfig | None = None,
    reporter: Reporter | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Result:
    """Writes a run or a store in another program's form.

    Args:
        path: a run folder (`monai`, `onnx`, `torch-export`, `hub-folder`) or a store (`nnunet`).
        out: where it goes.
        config: the format, and what it is made with.
        reporter: where progress goes.
        overwrite: replace what is there.
        dry_run: say what would be written, and write nothing.

    Returns:
        What was written, and how far it agrees with the original.

    Raises:
        UserError: the path is neither a run nor a store, or cannot be had in that format.
        ConfigError: no format, one of the other kind, or a setting that it has no use for; or
            something stands at `out`.
    """
    config, reporter = config or ExportConfig(), reporter or PlainReporter()
    place = Path(path)
    if (place / "manifest.json").is_file():
        _check_format(config.format, STORE_FORMATS, f"the store `{path}`")
        from mim3d.workflows.export.store import export_store

        work = export_store
    elif (place / "config.yaml").is_file():
        _check_format(config.format, RUN_FORMATS, f"the run `{path}`")
        from mim3d.workflows.export.run import export_run

        work = export_run
    else:
        raise UserError(
            f"`{path}` is neither a run nor a store",
            remedy="give a folder that `mim3d prepare`, `pretrain`, `finetune` or `convert` wrote",
            code="not-ours",
        )
    _check_settings(config)
    return work(path, out=out, config=config, reporter=reporter, overwrite=overwrite,
                dry_run=dry_run)  # fmt: skip


GRAPH = frozenset(one.name for one in fields(GraphConfig))
USED = {"monai": {"part", "size", "tolerance"}, "torch-export": GRAPH - {"opset"}, "onnx": GRAPH}
"""Settings of `graph` that a format has a use for; the others have none for any."""


def _check_settings(config: ExportConfig) -> None:
    """Refuses settings that the format would leave unread."""
    used, plain = USED.get(str(config.format), set()), GraphConfig()
    unread = [f"graph.{name}" for name in sorted(GRAPH - used)
              if getattr(config.graph, name) != getattr(plain, name)]  # fmt: skip
    if config.format in STORE_FORMATS and config.checkpoint != ExportConfig().checkpoint:
        unread.append("checkpoint")
    if unread:
        raise ConfigError(
            f"`{unread[0]}` says nothing of `--format {config.format}`",
            remedy="leave it out",
            code="unused",
        )


def _check_format(asked: str | None, possible: Collection[str], what: str) -> None:
    if asked in possible:
        return
    listed = ", ".join(f"`--format {name}`" for name in possible)
    said = "no format is named" if asked is None else f"there is no format `{asked}`"
    raise ConfigError(
        f"{said} for {what}",
        remedy=f"it becomes {listed}",
        code="format",
    )
