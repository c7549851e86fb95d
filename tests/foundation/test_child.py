from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mim3d.foundation.child import child_command

PROGRAM = "import sys\ndef main():\n    print(sys.argv[2:], sys.flags.isolated)\n"


def test_a_child_imports_from_where_this_process_does_and_takes_its_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, foreign = tmp_path / "mine", tmp_path / "foreign"
    for folder, program in ((mine, PROGRAM), (foreign, "raise SystemExit('foreign')")):
        folder.mkdir()
        (folder / "planned_work.py").write_text(program)
    monkeypatch.setattr(sys, "path", [str(mine), *sys.path])

    command = child_command("planned_work", "a b", "{c}")
    done = subprocess.run(command, cwd=foreign, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(foreign)})  # fmt: skip

    assert done.stdout == "['a b', '{c}'] 1\n", done.stderr
