"""Row 34: names of patients that lie in the sources lie in nothing that mim3d writes."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from mim3d.cli.main import main
from mim3d.data.files import ReadWarning
from mim3d.foundation.errors import ExitCode
from mim3d.foundation.randomness import generator
from tests.reliability.planted import IMAGES, plant_cohort
from tests.reliability.proof import Tally, proof
from tests.reliability.searched import found_names, pack_check

LETTERS = "BCDFGHJKLMNPQRSTVWXZ"
"""No vowels: no word of a program is met by chance."""
TINY = [
    "--data.crop_size", "16,16,8", "--training.batch_size", "2", "--training.precision", "fp32",
    "--training.device", "cpu",
]  # fmt: skip
ENCODER = ["--encoder.preset", "tiny", "--encoder.depth", "4", "--encoder.width", "24",
           "--encoder.heads", "2", "--encoder.patch", "4,4,4"]  # fmt: skip
COMMANDS = (
    ["prepare", "cohort/cohort.csv", "--out", "out/store", "--workers", "0"],
    ["info", "out/store"],
    ["pretrain", "pretrain.yaml", "--data.store", "out/store", "--out", "out/pretrained",
     "--training.steps", "2", "--training.pictures_every", "1", *ENCODER, *TINY],
    ["finetune", "finetune.yaml", "--data.store", "out/store", "--init", "out/pretrained",
     "--out", "out/tuned", "--training.steps", "2", "--decoder.name", "light", *TINY],
    ["predict", "out/tuned", "cohort/cohort.csv", "--out", "out/predictions", "--device", "cpu",
     "--pictures", "--save_probabilities"],
    ["info", "out/tuned"],
)  # fmt: skip
CODES = {ExitCode.DONE, ExitCode.PARTIAL}


@proof(
    rows=(34,),
    trials="names planted in headers, extensions, tags, gzip fields, tables and folders",
    quick=10,
    full=50,
    stretch=10,
)
def names_stay_behind(trials: range, seed: int, folder: Path) -> Tally:
    """No planted name is in any byte of a store, run, log, picture or prediction.

    The whole main path runs on NIfTI-1 and -2, NRRD, MetaImage and DICOM, with files that are
    refused among them; looked for in several encodings, unpacked, and in what `info` prints. With
    `--keep_paths` the folders' names are there.
    """
    names = [_name(seed, trial) for trial in trials]
    work = folder / names[0]
    plant_cohort(work / "cohort", names)
    pack_check(names[0], work / "cohort")
    unseen = [name for name in names if name not in found_names(work / "cohort", names)]
    for packed in sorted((work / "cohort").glob("[abc].*")):
        alone = folder / "check" / packed.suffix
        alone.mkdir(parents=True)
        packed.rename(alone / "it")
        unseen += [f"{names[0]} in a container"] * (names[0] not in found_names(alone, names[:1]))
    said, failed = _walk(work)
    (work / "out" / "said.txt").write_text(said, encoding="utf-8")
    found = found_names(work / "out", names)
    kept = found_names(work / "kept", names)
    tally = Tally()
    for trial, name in zip(trials, names, strict=True):
        broken = found.get(name) or failed or (f"not found: {unseen}" if unseen else None)
        broken = broken or (None if name in kept else "--keep_paths did not keep its folder")
        tally.add(trial, "not found" if broken is None else "found", broken)
    return tally


def _name(seed: int, trial: int) -> str:
    random = generator(seed, trial, "planted name")
    letters = "".join(random.choice(list(LETTERS), 14))
    return f"{letters[:8]}^{letters[8:]}"


def _walk(work: Path) -> tuple[str, str | None]:
    """Runs the main path; what it printed as results, and which command failed."""
    (work / "pretrain.yaml").write_text(
        "probes: {every: 0}\nobjective: {decoder_width: 24, decoder_depth: 1, decoder_heads: 2}\n"
    )
    (work / "finetune.yaml").write_text("inference: {overlap: 0}\n")
    said = io.StringIO()
    for command in COMMANDS:
        with inside(work), contextlib.redirect_stdout(said):
            code = main([*command])
        if code not in CODES:
            return said.getvalue(), f"`mim3d {command[0]}` ended with {code}"
    made = {path.name for path in (work / "out" / "predictions").glob("*.nii.gz")}
    for number in range(len(IMAGES) + 1):
        if f"case_{number}.nii.gz" not in made:
            return said.getvalue(), f"case_{number} was not predicted"
    again = ["prepare", "cohort/cohort.csv", "--out", "kept", "--workers", "0", "--keep_paths"]
    with inside(work), contextlib.redirect_stdout(io.StringIO()):
        main(again)
    return said.getvalue(), _evaluated(work, said)


def _evaluated(work: Path, said: io.StringIO) -> str | None:
    """Scores the predictions against copies of the labels under the cases' names."""
    truths = work / "labels"
    truths.mkdir()
    predicted = work / "scored"
    predicted.mkdir()
    for number in range(len(IMAGES)):
        (label,) = (work / "cohort").glob(f"*/*/{number}_label.nii.gz")
        (truths / f"case_{number}.nii.gz").write_bytes(label.read_bytes())
        name = f"case_{number}.nii.gz"
        (predicted / name).write_bytes((work / "out" / "predictions" / name).read_bytes())
    command = ["evaluate", "scored", "labels", "--out", "out/results.json"]
    with inside(work), contextlib.redirect_stdout(said):
        code = main(command)
    return None if code == ExitCode.DONE else f"`mim3d evaluate` ended with {code}"


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Paths are typed as seen from a folder, whose own name nobody types; nothing is shown."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", ReadWarning)  # the suite makes errors of them
            yield
    finally:
        os.chdir(before)
