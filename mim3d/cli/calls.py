"""A command as it was typed, and for each verb the call of the workflow that does it.

Each imports its workflow only when it is called, so that `mim3d --help` loads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mim3d.foundation.reporting import Reporter

if TYPE_CHECKING:
    from mim3d.workflows.result import Result


@dataclass(frozen=True)
class Call:
    """One command as it was typed, ready for its workflow.

    Args:
        words: the positional arguments by name, each a list.
        config: the resolved config, or None for a verb without one.
        name: the name of the config, for the run's folder.
        said: the settings that file and line name.
        out: what `--out` says.
        flags: the switches that were set: `overwrite`, `dry_run`, `json`.
        reporter: where messages go.
        assumed: what was assumed to come to this config.
    """

    words: dict[str, list[str]]
    config: Any
    name: str
    said: frozenset[str]
    out: str | None
    flags: frozenset[str]
    reporter: Reporter
    assumed: tuple[str, ...] = ()

    def word(self, name: str) -> str:
        """A positional argument that must be there."""
        return self.words[name][0]

    @property
    def writing(self) -> dict[str, Any]:
        """The keywords of every verb that writes and can say beforehand what."""
        return {"reporter": self.reporter, "overwrite": "overwrite" in self.flags,
                "dry_run": "dry_run" in self.flags}  # fmt: skip


def run_demo(call: Call) -> Result:
    """`mim3d demo`."""
    from mim3d.workflows.demo import demo

    overwrite = "overwrite" in call.flags
    return demo(out=call.out, config=call.config, reporter=call.reporter, overwrite=overwrite)


def run_doctor(call: Call) -> Result:
    """`mim3d doctor`."""
    from mim3d.workflows.doctor import doctor

    path = next(iter(call.words["PATH"]), None)
    return doctor(path, reporter=call.reporter)


def run_prepare(call: Call) -> Result:
    """`mim3d prepare`."""
    from mim3d.workflows.prepare import prepare

    return prepare(call.word("SOURCE"), out=str(call.out), config=call.config, **call.writing)


def run_inspect(call: Call) -> Result:
    """`mim3d inspect`."""
    from mim3d.workflows.inspect.inspect import inspect

    return inspect(call.word("PATH"), config=call.config, reporter=call.reporter)


def run_pretrain(call: Call) -> Result:
    """`mim3d pretrain`."""
    from mim3d.workflows.pretrain import pretrain

    return pretrain(call.config, out=call.out, name=call.name, said=call.said, **call.writing)


def run_finetune(call: Call) -> Result:
    """`mim3d finetune`."""
    from mim3d.workflows.finetune import finetune

    return finetune(call.config, out=call.out, name=call.name, said=call.said, **call.writing)


def run_predict(call: Call) -> Result:
    """`mim3d predict`."""
    from mim3d.workflows.predict import predict

    inputs = call.words["INPUT"]
    return predict(call.word("RUN"), inputs, out=str(call.out), config=call.config, **call.writing)


def run_evaluate(call: Call) -> Result:
    """`mim3d evaluate`."""
    from mim3d.workflows.evaluate import evaluate

    predictions, labels = call.word("PREDICTIONS"), call.word("LABELS")
    return evaluate(predictions, labels, out=call.out, config=call.config, reporter=call.reporter)


def run_info(call: Call) -> Result:
    """`mim3d info`."""
    from mim3d.workflows.info import info

    return info(call.word("PATH"), reporter=call.reporter)


def run_convert(call: Call) -> Result:
    """`mim3d convert`."""
    from mim3d.workflows.convert import convert

    checkpoint, out = call.word("CHECKPOINT"), str(call.out)
    return convert(checkpoint, out=out, config=call.config, said=call.said, **call.writing)


def run_export(call: Call) -> Result:
    """`mim3d export`."""
    from mim3d.workflows.export.export import export

    return export(call.word("PATH"), out=str(call.out), config=call.config, **call.writing)


def run_embed(call: Call) -> Result:
    """`mim3d embed`."""
    from mim3d.workflows.embed import embed

    inputs = call.words["INPUT"]
    return embed(call.word("RUN"), inputs, out=str(call.out), config=call.config, **call.writing)


def run_probe(call: Call) -> Result:
    """`mim3d probe`."""
    from mim3d.workflows.probing.probe import probe

    return probe(call.word("RUN"), out=call.out, config=call.config, said=call.said, **call.writing)


def run_report(call: Call) -> Result:
    """`mim3d report`."""
    from mim3d.workflows.report.report import report

    return report(call.words["PATH"], out=str(call.out), config=call.config, **call.writing)


def run_view(call: Call) -> Result:
    """`mim3d view`."""
    from mim3d.workflows.view.view import view

    is_dry = "dry_run" in call.flags
    return view(call.words["PATH"], config=call.config, reporter=call.reporter, dry_run=is_dry)


def run_plan(call: Call) -> Result:
    """`mim3d plan`."""
    from mim3d.workflows.plan.plan import plan

    return plan(call.config, out=call.out, reporter=call.reporter, assumed=call.assumed)


def run_benchmark(call: Call) -> Result:
    """`mim3d benchmark`."""
    from mim3d.workflows.benchmark import benchmark

    return benchmark(
        call.word("KIND"),
        source=next(iter(call.words["CONFIG"]), None),
        out=call.out,
        config=call.config,
        reporter=call.reporter,
        dry_run="dry_run" in call.flags,
    )
