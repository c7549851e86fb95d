"""A run as an ONNX program, compared with the network where ONNX Runtime is there."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mim3d.config.export import ExportConfig
from mim3d.foundation.atomic import whole_file
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.reporting import Reporter
from mim3d.workflows.export.program import (
    Program,
    assigned,
    described,
    interface,
    made_program,
)
from mim3d.workflows.export.subject import Subject
from mim3d.workflows.result import Result

NEEDED = ("onnx", "onnxscript")
RUNTIME = "onnxruntime"
LARGEST = 2**31 - 2**24
"""Bytes that one ONNX file can hold, with room for the graph: the limit of protocol buffers."""


def write(subject: Subject, out: Path, config: ExportConfig, reporter: Reporter) -> Result:
    """Writes `out`, with the facts of the run among its metadata (`mim3d`).

    Raises:
        ConfigError: onnx is not installed, or the weights do not fit into one file.
        UserError: as `made_program`.
        WeightsError: it answers otherwise than the network.
    """
    _check_installed()
    _check_bytes(subject)
    made = made_program(subject, config)
    facts = {**subject.facts(), **interface(made), "opset": config.graph.opset}
    with whole_file(out) as temporary:
        with _quietly():
            program = torch.onnx.export(
                made.graph,
                made.example,
                dynamo=True,
                opset_version=config.graph.opset,
                input_names=list(made.inputs),
                output_names=list(made.module.names),
                dynamic_shapes=made.shapes,
                verbose=False,
            )
        assert program is not None
        program.model.metadata_props["mim3d"] = json.dumps(facts)
        program.save(str(temporary), external_data=False)
        compared = _compared(temporary, made, config.graph.tolerance)
    if not compared:
        reporter.warn("not compared with the network: ONNX Runtime is not installed "
                      f"(`pip install {RUNTIME}`)")  # fmt: skip
    lines = [
        *described(made, compared),
        "to run it:",
        f"  session = onnxruntime.InferenceSession({str(out)!r})",
        f"  {assigned(made)} = session.run(None, "
        f"{{{', '.join(f'{name!r}: {name}' for name in made.inputs)}}})",
    ]
    return Result("\n".join(lines), {**facts, "compared": compared}, (out,))


def _compared(path: Path, made: Program, tolerance: float) -> list[dict[str, Any]]:
    """`Program.difference` in ONNX Runtime on the CPU; empty where it is not installed."""
    if importlib.util.find_spec(RUNTIME) is None:
        return []
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(inputs: tuple[Tensor, ...]) -> Sequence[Tensor]:
        feed = {name: one.numpy() for name, one in zip(made.inputs, inputs, strict=True)}
        return [torch.from_numpy(one) for one in session.run(list(made.module.names), feed)]

    return made.difference(run, tolerance)


def _check_installed() -> None:
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        raise ConfigError(
            f"`--format onnx` needs {' and '.join(f'`{name}`' for name in absent)}, which is not "
            "installed",
            remedy=f"`pip install {' '.join(NEEDED)} {RUNTIME}`, or in a clone "
            "`pip install -e '.[export]'`; `--format torch-export` needs nothing more",
            code="not-installed",
        )


def _check_bytes(subject: Subject) -> None:
    size = sum(tensor.nbytes for tensor in subject.weights.tensors.values())
    if size > LARGEST:
        raise ConfigError(
            f"the weights have {size / 2**30:.1f} GiB, and one ONNX file holds 2",
            remedy="take `--graph.part encoder` or `--format torch-export`",
            code="too-large",
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter says of its own steps and of libraries that it could use."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
