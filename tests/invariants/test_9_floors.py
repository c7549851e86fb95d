"""Invariant 9: the floors hold.

Tried with these breaks: `import torch` in `mim3d/foundation/errors.py`, `import scipy` in
`mim3d/tokens/grid.py`, `from mim3d.data.volume import Volume` in `mim3d/tokens/grid.py`, `import
yaml` in `mim3d/cli/line.py`, `import rich` in `mim3d/foundation/reporting.py`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "monai", "jsonargparse", "rich", "yaml", "nibabel", "SimpleITK", "h5py", "scipy")
ABSENT = (
    "scipy", "h5py", "hdf5plugin", "monai", "nibabel", "SimpleITK", "jsonargparse", "rich", "yaml",
    "matplotlib", "tensorboard", "isal", "lightning", "lightning_fabric",
)  # fmt: skip


LOADED = (
    "import json, sys; json.dump(sorted({name.split('.')[0] for name in sys.modules}), sys.stderr)"
)


def loaded_by(code: str) -> set[str]:
    """The top-level packages that a fresh process has loaded after some code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{LOADED}"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr))


@pytest.mark.parametrize(
    "code",
    [
        "import mim3d; dir(mim3d); mim3d.__version__",
        "from mim3d.cli.main import main; assert main(['--help']) == 0",
        "from mim3d.cli.main import main; assert main(['--version']) == 0",
        "from mim3d import UserError, VolumeError, ShapeError",
        "import mim3d.config.verbs",
    ],
)
def test_the_front_door_loads_nothing_heavy(code):
    assert loaded_by(code).isdisjoint(HEAVY)


def test_the_help_of_a_verb_loads_neither_torch_nor_monai():
    code = "from mim3d.cli.main import main; assert main(['pretrain', '--help']) == 0"

    assert loaded_by(code).isdisjoint({"torch", "monai", "scipy", "nibabel"})


BLOCKED = """
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Blocker())
for room in sys.argv[2:]:
    folder = getattr(importlib.import_module(room), "__path__", [])
    for found in pkgutil.walk_packages(folder, room + "."):
        importlib.import_module(found.name)
        print(found.name)
"""


def test_rooms_of_tensors_and_what_they_share_with_data_need_torch_einops_and_numpy_only():
    rooms = ["mim3d.tokens", "mim3d.models", "mim3d.objectives"]
    shared = ["mim3d.data.batch", "mim3d.data.regions"]
    command = [sys.executable, "-c", BLOCKED, ",".join(ABSENT), *rooms, *shared]

    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    assert done.returncode == 0, done.stderr
    for module in ("mim3d.tokens.masking", "mim3d.models.vit", "mim3d.objectives.mae"):
        assert module in done.stdout.split()


def contracts(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [
        Path(sys.executable).with_name("lint-imports"),
        "--config",
        "setup.cfg",
        "--no-cache",
    ]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


@pytest.fixture
def copy(tmp_path):
    """A copy of the package that a test may break."""
    shutil.copytree(ROOT / "mim3d", tmp_path / "mim3d", ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    return tmp_path


def test_the_import_contracts_hold():
    done = contracts(ROOT)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_every_contract_breaks_when_the_code_does(copy):
    breaks = {
        "foundation/errors.py": "import torch, rich",
        "config/tree.py": "import yaml",
        "data/regions.py": "import scipy, lightning_fabric",
        "tokens/grid.py": "import mim3d.data.volume, matplotlib",
        "models/vit.py": "import mim3d.objectives.base",
        "objectives/base.py": "import mim3d.data.files",
        "training/optim.py": "import mim3d.inference.components, nibabel",
    }
    for name, line in breaks.items():
        path = copy / "mim3d" / name
        path.write_text(f"{path.read_text()}\n{line}\n")

    done = contracts(copy)

    verdicts = [line for line in done.stdout.splitlines() if line.endswith((" KEPT", " BROKEN"))]
    assert done.returncode != 0
    assert verdicts, done.stdout + done.stderr
    assert [line for line in verdicts if line.endswith(" KEPT")] == []
