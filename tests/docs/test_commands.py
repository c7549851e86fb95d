"""Every command of the site, as it stands in `docs/examples`, on phantoms.

Trainings get the settings of `SHORT`, in place of their own where they have them; what would serve
until Ctrl-C or take minutes is read to its config.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mim3d.cli.main import main
from mim3d.cli.verbs import VERBS
from mim3d.data.phantom import PhantomRule, make_cohort
from mim3d.foundation.errors import ExitCode
from tests.data.files.making import dicom_slice
from tests.docs.pages import DOCS, EXAMPLES, ROOT, SCRIPTS, commands

RULE = PhantomRule(shape=(24, 20, 16), spacing_mm=(1.5, 1.2, 2.0), organs=1)
TRAINING = ("--data.crop_size", "16,16,16", "--training.steps", "2", "--training.batch_size", "2",
            "--training.checkpoint_every", "2", "--optim.warmup_steps", "1",
            "--encoder.depth", "4")  # fmt: skip
SHORT = {
    "prepare": ("--workers", "0"),
    "pretrain": (*TRAINING, "--probes.every", "0", "--training.pictures_every", "0"),
    "finetune": TRAINING,
    "inspect": ("--inspect.tried", "1", "--workers", "0"),
}
READ = ("demo", "view", "plan", "benchmark")
"""Verbs that are only read to their config here; tests of their own run them."""
UNMADE = "runs/convergence"
"""What `benchmark` would have made."""
FROM_START = ("nnunet", "monai", "totalsegmentator", "laptop", "data", "loops", "convergence")
OF_CLUSTERS = ("scale", "chain")


def run(words: list[str]) -> int:
    """What a command ends with."""
    verb = words[1]
    if verb in READ or UNMADE in words or "onnx" in words:  # ONNX takes half a minute
        words = [*words, "--print_config"]
    line = [*words[1:]]
    for option, value in zip(SHORT.get(verb, ())[::2], SHORT.get(verb, ())[1::2], strict=True):
        if option == "--encoder.depth" and "runs/unetr" in words:
            continue  # its encoder is that of the other program
        if option in line:
            line[line.index(option) + 1] = value
        else:
            line += [option, value]
    with contextlib.redirect_stdout(io.StringIO()):
        return main(line)


def run_script(name: str) -> None:
    """Runs the commands of one script in the present folder, in their order."""
    for words in commands(EXAMPLES / f"{name}.sh"):
        if words[0] == "mim3d":
            assert run(words) == ExitCode.DONE, " ".join(words)
        else:
            check_other(words)


def check_other(words: list[str]) -> None:
    """Commands of other programs: names of extras, files and configs that they mention."""
    assert words[0] in ("pip", "python3", "torchrun"), words
    for extra in re.findall(r"\[(\w+)\]", " ".join(words)):
        project = (ROOT / "pyproject.toml").read_text()
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra
    if words[0] == "torchrun":
        line = words[words.index("mim3d") + 1 :]
        assert main([*line, "--print_config"]) == ExitCode.DONE


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all that the commands take, where `start.sh` has run."""
    folder = tmp_path_factory.mktemp("workplace")
    before = Path.cwd()
    os.chdir(folder)
    make_cohort("scans", seed=1, training=4, validation=2, test=1, rule=RULE)
    shutil.copytree("scans", "hippocampus_msd")
    shutil.copy(next(Path("scans/imagesTs").iterdir()), "scan.nii.gz")
    shutil.copy(EXAMPLES / "ct100k.yaml", "ct100k.yaml")
    Path("my.yaml").write_text("data:\n  placement: label\n")
    _other_sources()
    run_script("start")
    try:
        yield folder
    finally:
        os.chdir(before)


def _other_sources() -> None:
    """The same scans as nnU-Net, BIDS and a CSV lay them, and a DICOM folder."""
    raw = Path("nnUNet_raw/Dataset004_Hippocampus")
    for folder, to in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz"),
                       ("imagesTs", "_0000.nii.gz")):  # fmt: skip
        (raw / folder).mkdir(parents=True)
        for path in Path("scans", folder).iterdir():
            shutil.copy(path, raw / folder / path.name.replace(".nii.gz", to))
    (raw / "dataset.json").write_text(
        '{"channel_names": {"0": "MR"}, "numTraining": 4, "file_ending": ".nii.gz",'
        ' "labels": {"background": 0, "organ": 1, "tumour": 2}}'
    )
    rows = ["case,image,label"]
    for number, path in enumerate(sorted(Path("scans/imagesTr").iterdir())):
        for contrast in ("T1w", "FLAIR"):
            to = Path(f"bids/sub-{number}/anat/sub-{number}_{contrast}.nii.gz")
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
        rows.append(f"case{number},{path},scans/labelsTr/{path.name}")
    Path("cases.csv").write_text("\n".join(rows) + "\n")
    Path("dicom").mkdir()
    for k in range(5):
        pixels = torch.arange(72).reshape(9, 8).numpy().astype("int16") + 10 * k
        Path(f"dicom/{k}.dcm").write_bytes(dicom_slice(pixels, (0, 0, 2.5 * k)))


def test_the_start_page_leads_from_scans_to_a_prediction_and_a_report(workplace: Path) -> None:
    for path in ("predictions/scan.nii.gz", "results.json", "report.html", "runs/scratch"):
        assert (workplace / path).exists(), path


@pytest.mark.filterwarnings("ignore")  # MONAI's and the exporters' own
@pytest.mark.parametrize("name", FROM_START)
def test_commands_of_a_page_run_after_those_of_the_start_page(name: str, workplace: Path) -> None:
    if name == "monai":
        from monai.networks.nets import UNETR

        theirs = UNETR(1, 3, (32, 32, 32), 4, hidden_size=64, num_heads=1, mlp_dim=96)
        torch.save(theirs.state_dict(), "unetr.pt")

    run_script(name)


def test_commands_for_many_machines_are_read_to_their_config(workplace: Path) -> None:
    run_script("scale")


def test_submitted_jobs_name_files_that_ship(workplace: Path) -> None:
    for words in commands(EXAMPLES / "slurm" / "chain.sh"):
        named = [word for word in words if word.endswith(".sbatch")]
        assert len(named) == 1
        assert (EXAMPLES / "slurm" / named[0]).is_file()


def test_every_script_is_run_by_one_of_these_tests() -> None:
    assert {path.stem for path in SCRIPTS} == {"start", *FROM_START, *OF_CLUSTERS}


def test_the_python_of_the_pages_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {}
    exec((EXAMPLES / "first.py").read_text(), namespace)

    labels, logits = namespace["use"]("scan.nii.gz", "runs/tuned", torch.zeros(1, 1, 16, 16, 8))
    namespace["workflows"]("scans", "stores/by-python")
    settings = namespace["parse"]("hippocampus", "stores/mine")

    assert labels.shape == RULE.shape
    assert tuple(logits.shape) == (1, 14, 16, 16, 8)
    assert settings.training.steps == 200
    assert "stores/by-python" in capsys.readouterr().out


def test_the_readme_and_the_start_page_name_the_same_verbs() -> None:
    readme = (ROOT / "README.md").read_text()
    typed = [words[:2] for words in commands(EXAMPLES / "start.sh")]
    for verb in ("prepare", "pretrain", "finetune", "predict", "evaluate", "demo"):
        assert f"mim3d {verb}" in readme
        assert ["mim3d", verb] in typed
        assert verb in VERBS
    assert (DOCS / "index.md").is_file()
