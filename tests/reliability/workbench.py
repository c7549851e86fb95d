"""A small cohort and a small segmenter, made by the commands, for proofs that write results."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from mim3d.cli.main import main
from mim3d.data.phantom import PhantomRule, make_cohort

SMALL = PhantomRule(shape=(23, 19, 12), spacing_mm=(1.5, 1.2, 2.5), organs=2)
NETWORK = ["--encoder.preset", "tiny", "--encoder.depth", "4", "--encoder.patch", "8,8,4",
           "--data.crop_size", "16,16,12", "--decoder.name", "light"]  # fmt: skip
SHORT = ["--init", "none", "--training.steps", "1", "--training.batch_size", "1",
         "--training.precision", "fp32", "--device", "cpu"]  # fmt: skip


def make_source(folder: Path, cases: int = 3, seed: int = 0) -> Path:
    """A cohort in MSD form: `cases` labelled cases to train on, one that judges."""
    return make_cohort(folder, seed, training=cases, validation=1, rule=SMALL)


def make_segmenter(folder: Path) -> tuple[Path, Path]:
    """A cohort, and a run that knows nothing of it yet can predict it."""
    source, store, run = make_source(folder / "source", 4), folder / "store", folder / "run"
    (folder / "finetune.yaml").write_text("data:\n  placement: label\n")
    command(["prepare", str(source), "--out", str(store), "--workers", "0"])
    command(["finetune", str(folder / "finetune.yaml"), "--data.store", str(store), "--out",
             str(run), *NETWORK, *SHORT])  # fmt: skip
    return source, run


def command(arguments: list[str]) -> str:
    """Runs a command in this process and returns what it said.

    Raises:
        RuntimeError: it did not end well.
    """
    code, said = attempt(arguments)
    if code != 0:
        raise RuntimeError(f"mim3d {arguments[0]} ended with {code}: {said}")
    return said


def attempt(arguments: list[str]) -> tuple[int, str]:
    """Runs a command in this process; its exit code, and what it said on both streams."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(arguments)
    return code, said.getvalue()
