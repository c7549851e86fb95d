"""The sbatch examples: the very commands of the files, run here in several processes.

`bash` runs each file as SLURM would, once a task, with SLURM's variables. What it calls is on its
path: `mim3d` and `torchrun` note how they were called, and end; the commands are then run at the
same time, in processes forked from this one, which has all libraries loaded. The test of `pretrain`
that is marked slow starts them for real.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from preparing import all_files
from small_benchmark import make_store, write_benchmark

from mim3d.cli.main import main
from mim3d.data.store import Store
from mim3d.foundation.errors import ExitCode
from mim3d.workflows.prediction_jobs import RECORD
from tests.reliability.killing import Child, Say
from tests.reliability.workbench import make_segmenter, make_source

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples" / "slurm"
PAGE = ROOT / "docs" / "slurm.md"
FILES = sorted(EXAMPLES.glob("*.sbatch"))
NOTED = 'printf "%s\\0" {name} "$@" > "$CALLS/$$-$SLURM_ARRAY_TASK_ID-$SLURM_NODEID"\nexit "$CODE"'
REAL = 'exec "$PYTHON" -m {module} "$@"'
SRUN = """
while [[ "$1" == --* ]]; do shift; done
for node in $(seq 0 $((SLURM_NNODES - 1))); do SLURM_NODEID=$node "$@" & pids="$pids $!"; done
for pid in $pids; do wait "$pid" || exit 1; done
"""
SCONTROL = """
case "$1" in
  show) for node in $(seq 1 "$SLURM_NNODES"); do echo localhost; done ;;
  requeue) echo "$2" >> "$CALLS/requeued" ;;
esac
"""

Call = tuple[list[str], dict[str, str]]


class Cluster:
    """Runs an sbatch file as SLURM would.

    Args:
        folder: empty; for programs and notes.
        is_real: start `mim3d` and `torchrun` instead of noting how they are called.
        code: with which they end when they only note it.
    """

    def __init__(self, folder: Path, *, is_real: bool = False, code: int = 0) -> None:
        self.calls = folder / "calls"
        self.calls.mkdir(parents=True)
        programs = {"srun": SRUN, "scontrol": SCONTROL}
        for name, module in (("mim3d", "mim3d"), ("torchrun", "torch.distributed.run")):
            programs[name] = REAL.format(module=module) if is_real else NOTED.format(name=name)
        for name, text in programs.items():
            path = folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/bash\n{text}\n")
            path.chmod(0o755)
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("SLURM_")},
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "CALLS": str(self.calls),
            "CODE": str(code),
        }

    def task(
        self, file: str, arguments: Sequence[str], number: int = 0, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """One task of a job; of an array the `number`-th."""
        environment = {
            **self._environment,
            "SLURM_JOB_ID": "4711",
            "SLURM_NNODES": "1",
            "SLURM_NODEID": "0",
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_CPUS_PER_TASK": "1",
            "SLURM_ARRAY_TASK_ID": str(number),
            "SLURM_ARRAY_TASK_COUNT": "1",  # as in an array submitted again for this task alone
            **variables,
        }
        return subprocess.run(
            ["bash", str(EXAMPLES / file), *map(str, arguments)],
            env=environment, check=False, capture_output=True, text=True, timeout=280,
        )  # fmt: skip

    def array(self, file: str, arguments: Sequence[str], tasks: int) -> list[list[str]]:
        """What the tasks of an array call, in their order."""
        for number in range(tasks):
            done = self.task(file, arguments, number, SHARDS=str(tasks),
                             SLURM_CPUS_PER_TASK="0")  # fmt: skip
            assert done.returncode == 0, done.stderr
        return self.called()

    def called(self) -> list[list[str]]:
        """Every call so far, by task and node."""
        notes = [path for path in self.calls.iterdir() if path.name != "requeued"]
        notes.sort(key=lambda path: [int(part) for part in path.name.split("-")[1:]])
        return [path.read_text().split("\0")[:-1] for path in notes]


def run(arguments: Sequence[str], environment: Mapping[str, str], say: Say) -> None:
    """A command as its own process would run it; says its exit code."""
    torch.set_num_threads(1)
    os.environ.update(environment)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(list(arguments))
    say(" ".join(said.getvalue().split()))
    say(str(code))


def at_once(calls: Sequence[Sequence[str]]) -> tuple[list[int], str]:
    """The exit codes of commands that run at the same time, and all they said."""
    assert all(call[0] == "mim3d" for call in calls)
    children = [
        Child(partial(run, call[1:], {"SLURM_ARRAY_TASK_ID": str(number)}))
        for number, call in enumerate(calls)
    ]
    lives = [child.wait() for child in children]
    assert [one.fault for one in lives] == [None] * len(calls)
    return [int(one.said[-1]) for one in lives], "\n".join(one.said[0] for one in lives)


def header(path: Path) -> dict[str, str]:
    """The #SBATCH lines of a file."""
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", path.read_text(), re.MULTILINE)
    return dict(found)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_is_sound_and_its_array_has_as_many_tasks_as_shards(path: Path) -> None:
    text, said = path.read_text(), header(path)

    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    # SLURM reads no #SBATCH line behind the first command.
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])
    assert "requeue" in said
    if "array" in said:
        shards = re.search(r"^SHARDS=\$\{SHARDS:-(\d+)\}$", text, re.MULTILINE)
        assert shards is not None
        assert said["array"] == f"0-{int(shards[1]) - 1}"


def test_the_page_names_every_example() -> None:
    page = PAGE.read_text()

    assert {path.stem for path in FILES} == {"prepare", "pretrain", "benchmark", "predict"}
    for path in FILES:
        assert f"examples/slurm/{path.name}" in page


def test_prepare_as_an_array(tmp_path: Path) -> None:
    source = make_source(tmp_path / "a source", 3)
    at = Cluster(tmp_path / "cluster")
    arguments = [source, tmp_path / "store", "--modality", "mr"]

    calls = at.array("prepare.sbatch", arguments, 3)
    codes, said = at_once(calls)

    assert [call[call.index("--shard") + 1] for call in calls] == ["0/3", "1/3", "2/3"]
    assert codes == [ExitCode.DONE] * 3, said
    alone = ["mim3d", "prepare", str(source), "--out", str(tmp_path / "one"), *calls[0][7:]]
    assert at_once([alone])[0] == [ExitCode.DONE]
    found, wanted = all_files(tmp_path / "store"), all_files(tmp_path / "one")
    assert found == wanted
    assert len(Store(tmp_path / "store").cases) == 4


def test_predict_as_an_array_with_an_input_that_is_refused(tmp_path: Path) -> None:
    source, model = make_segmenter(tmp_path / "made")
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no image")
    inputs = [source / "imagesTr", broken]
    arguments = [model, tmp_path / "out", *inputs, "--device", "cpu"]

    calls = Cluster(tmp_path / "cluster").array("predict.sbatch", arguments, 2)
    codes, said = at_once(calls)

    # The fifth of five cases is the first shard's.
    assert codes == [ExitCode.PARTIAL, ExitCode.DONE], said
    names = {path.name for path in (source / "imagesTr").iterdir()}
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == names
    assert set(json.loads((tmp_path / "out" / RECORD).read_text())) == names
    assert not (tmp_path / "out" / "shards").exists()


@pytest.mark.slow
def test_benchmark_as_an_array(tmp_path: Path) -> None:
    store = make_store(tmp_path, subjects=6)
    arms = "  scratch: {}\n"
    source = write_benchmark(tmp_path / "bench", store, arms, labels=[2, 1.0], points=2)

    calls = Cluster(tmp_path / "cluster").array("benchmark.sbatch", [source, tmp_path / "out"], 2)
    codes, said = at_once(calls)

    assert codes == [ExitCode.DONE] * 2, said
    records = sorted(path.name for path in (tmp_path / "out").rglob("*labels*.json"))
    assert len(records) == 2


@pytest.mark.parametrize(("code", "requeued"), [(75, ["4711"]), (0, []), (4, [])])
def test_an_interrupted_benchmark_goes_back_to_the_queue(
    tmp_path: Path, code: int, requeued: list[str]
) -> None:
    at = Cluster(tmp_path / "cluster", code=code)

    done = at.task("benchmark.sbatch", ["arms.yaml", "out", "--labels", "0.1"], 3)

    assert done.returncode == code
    path = at.calls / "requeued"
    assert (path.read_text().split() if path.exists() else []) == requeued
    (call,) = at.called()
    assert shlex.join(call) == (
        "mim3d benchmark convergence arms.yaml --out out --shard 3/8 --labels 0.1"
    )


@pytest.mark.parametrize(("state", "requeued"), [("interrupted", ["4711"]), ("done", [])])
def test_pretrain_starts_torchrun_on_every_node(
    tmp_path: Path, state: str, requeued: list[str]
) -> None:
    at, out = Cluster(tmp_path / "cluster"), tmp_path / "run"
    out.mkdir()
    (out / "status.json").write_text(json.dumps({"state": state}, indent=1))

    done = at.task("pretrain.sbatch", ["my.yaml", "store", out, "--optim.lr", "1e-4"],
                   SLURM_NNODES="2", SLURM_GPUS_ON_NODE="8")  # fmt: skip

    assert done.returncode == 0, done.stderr
    path = at.calls / "requeued"
    assert (path.read_text().split() if path.exists() else []) == requeued
    first, second = at.called()
    assert first == second
    assert shlex.join(first) == (
        "torchrun --nnodes=2 --nproc_per_node=8 --max-restarts=3 --rdzv_id=4711 "
        "--rdzv_backend=c10d --rdzv_endpoint=localhost:29500 -m mim3d pretrain my.yaml "
        f"--data.store store --out {out} --optim.lr 1e-4"
    )


@pytest.mark.slow
def test_pretrain_on_two_nodes(tmp_path: Path) -> None:
    """Two torchruns with a process each; did they not meet, the run would be in use for one."""
    store = make_store(tmp_path, subjects=4)
    write_benchmark(tmp_path / "bench", store, "  scratch: {}\n")
    config, out = tmp_path / "bench" / "pretrain.yaml", tmp_path / "run"
    at = Cluster(tmp_path / "cluster", is_real=True)

    done = at.task("pretrain.sbatch", [config, store, out, "--training.device", "cpu"],
                   SLURM_NNODES="2", PORT=str(29600 + os.getpid() % 300))  # fmt: skip

    assert done.returncode == 0, done.stderr
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["step"]) == ("done", 4)
