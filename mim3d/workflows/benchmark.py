"""`mim3d benchmark`: what this machine does, and how fast; which pre-training pays."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from mim3d.config.shipped import locate
from mim3d.config.tree import similar
from mim3d.config.verbs import BenchmarkConfig, StageName, ThroughputConfig
from mim3d.foundation.atomic import write_json, write_text
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.reporting import PlainReporter, Reporter, duration
from mim3d.workflows.result import Result


def benchmark(
    kind: str,
    *,
    source: str | None = None,
    out: str | None = None,
    config: BenchmarkConfig | None = None,
    reporter: Reporter | None = None,
    dry_run: bool = False,
) -> Result:
    """Measures this machine, or compares ways of pre-training.

    Args:
        kind: what: `throughput` or `convergence`.
        source: `convergence`: the file that lists the arms; `config` holds its settings.
        out: `throughput`: a file for the results, written as JSON and, beside it, as Markdown; none
            writes none. `convergence`: the folder of all runs; `runs/convergence-<file's name>` if
            left out.
        config: the settings of all kinds.
        reporter: where progress goes.
        dry_run: say what would be done and stop.

    Raises:
        ConfigError: another kind, or settings with which nothing can be measured.
    """
    if kind not in KINDS:
        meant = similar(kind, KINDS)
        remedy = f"did you mean `{meant}`?" if meant else f"it is one of {', '.join(KINDS)}"
        raise ConfigError(f"`{kind}` is no benchmark", remedy=remedy, code="unknown-benchmark")
    return KINDS[kind](
        Asked(
            config or BenchmarkConfig(),
            None if source is None else Path(source),
            None if out is None else Path(out),
            reporter or PlainReporter(),
            dry_run,
        )
    )


@dataclass(frozen=True)
class Asked:
    """What `benchmark` was called with.

    Args:
        config: the settings of all kinds.
        source: the file that they came from, or None.
        out: where results go, or None.
        reporter: where progress goes.
        dry_run: only say what would be done.
    """

    config: BenchmarkConfig
    source: Path | None
    out: Path | None
    reporter: Reporter
    dry_run: bool


def _convergence(asked: Asked) -> Result:
    if asked.source is None:
        raise ConfigError(
            "`convergence` needs a file that lists the arms",
            remedy="for example `mim3d benchmark convergence convergence.yaml --out DIR`",
            code="no-config",
        )
    from mim3d.workflows.convergence.harness import convergence

    out = asked.out or Path("runs") / f"convergence-{asked.source.stem}"
    return convergence(
        locate(asked.source, "benchmark"),
        asked.config.convergence,
        out=out,
        reporter=asked.reporter,
        dry_run=asked.dry_run,
    )


def _throughput(asked: Asked) -> Result:
    config, out, reporter = asked.config, asked.out, asked.reporter
    settings = _checked(config.throughput)
    from mim3d.workflows.throughput.monai import has_monai
    from mim3d.workflows.throughput.profile import expected_seconds

    against_monai = settings.monai and has_monai()
    seconds = expected_seconds(settings.stages, quick=settings.quick)
    other = "and MONAI's side" if against_monai else "without MONAI"
    written = "" if out is None else f"; writes `{_twin(out)[0]}` and `{_twin(out)[1]}`"
    plan = (
        f"times {', '.join(settings.stages)}, {other}, on a synthetic cohort in a temporary "
        f"folder: about {duration(seconds)} on one core of a server{written}"
    )
    if asked.dry_run:
        return Result(text=plan, facts={"stages": settings.stages, "seconds": seconds})
    reporter.say(plan)
    return _measured(settings, out, reporter, against_monai=against_monai)


def _measured(
    settings: ThroughputConfig, out: Path | None, reporter: Reporter, *, against_monai: bool
) -> Result:
    from mim3d.training.fabric import choose_device, choose_precision, threads
    from mim3d.workflows.throughput.ceilings import measure_ceilings
    from mim3d.workflows.throughput.profile import as_json, as_markdown, profile
    from mim3d.workflows.throughput.stage import FULL, QUICK, Scene

    device = choose_device(settings.device)
    scale = QUICK if settings.quick else FULL
    repeats = settings.repeats or scale.repeats
    bf16 = choose_precision("auto", device) == "bf16"
    with threads(settings.threads), tempfile.TemporaryDirectory() as folder:
        ceilings = measure_ceilings(device)
        scene = Scene(Path(folder), device, scale, bf16=bf16, against_monai=against_monai)
        lines = profile(scene, ceilings, settings.stages, reporter, repeats=repeats)
        content = as_json(lines, ceilings, device, repeats)
    text = as_markdown(content, lines)
    files: tuple[Path, ...] = ()
    if out is not None:
        files = _twin(out)
        write_json(files[0], content)
        write_text(files[1], text)
    return Result(text=text.rstrip(), facts=content, files=files)


def _checked(settings: ThroughputConfig) -> ThroughputConfig:
    """The settings with all stages spelled out, in the order of a project.

    Raises:
        ConfigError: nothing can be measured so.
    """
    for key in ("repeats", "threads"):
        value = getattr(settings, key)
        if value is not None and value < 1:
            raise ConfigError(f"`throughput.{key}` is {value}, expected 1 or more", code="range")
    every: tuple[StageName, ...] = get_args(StageName)
    chosen = settings.stages or every
    return replace(settings, stages=tuple(stage for stage in every if stage in chosen))


def _twin(out: Path) -> tuple[Path, Path]:
    """Where the numbers go, and where the table for people goes."""
    return out.with_suffix(".json"), out.with_suffix(".md")


KINDS: dict[str, Callable[[Asked], Result]] = {
    "throughput": _throughput,
    "convergence": _convergence,
}
"""By the word on the command line; a new kind is a function here and a section of its config."""
