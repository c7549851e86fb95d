"""The process that opens another program's checkpoint, seen from here."""

from __future__ import annotations

from pathlib import Path

import pytest

from mim3d.config.convert import ConversionConfig
from mim3d.foundation.errors import WeightsError
from mim3d.models.unpickling import REFUSED
from mim3d.workflows.foreign import reason_of, unpickled


def test_a_process_that_dies_or_stalls_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(b"x")
    monkeypatch.setattr("mim3d.foundation.child.START", "import os; os.kill(os.getpid(), 11)")
    with pytest.raises(WeightsError, match="ended by signal 11"):
        unpickled(path, ConversionConfig())

    monkeypatch.setattr("mim3d.foundation.child.START", "import time; time.sleep(600)")
    with pytest.raises(WeightsError, match="not read within"):
        unpickled(path, ConversionConfig(seconds=-59.5))


def test_the_reason_is_the_last_line_whatever_a_library_prints_before_it() -> None:
    warned = b"/a/b.py:3: UserWarning: {x}\n  warnings.warn(\n"

    assert reason_of(REFUSED, warned + b'\n{"refused": "it is damaged"}') == "it is damaged"
    assert reason_of(REFUSED, warned) == "it cannot be read"
    assert reason_of(REFUSED, b"") == "it cannot be read"
