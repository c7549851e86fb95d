"""The process that opens pickles may do nothing else, and says what a pickle holds."""

from __future__ import annotations

import builtins
import os
import pickle
import sys
import tarfile
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from mim3d.models import unpickling
from mim3d.models.foreign_tables import Refusal
from mim3d.models.unpickling import first_global, told
from tests.reliability.killing import Say, life


class Planted:
    """Makes a folder where a pickle is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_of_any_protocol_is_refused_by_the_name_of_what_it_holds(
    protocol: int, tmp_path: Path
) -> None:
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"a": Planted(tmp_path / "executed")}, protocol=protocol))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception, match=".") as error:
            torch.load(path, weights_only=True)

    assert told(error.value, path) == "it holds more than tensors (`posix.mkdir`)"


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"(S'x'\nios\nmkdir\n.", "os.mkdir"),
        (b"\x80\x04\x8c\x02os\x94\x8c\x05mkdir\x94\x93.", "os.mkdir"),
        (b"co\x1b[2Js\nmk dir\n.", "o?[2Js.mk.dir"),
        (b"\x80\x04\x8c\x02os\x94\x8c\x05mkdir\x94h\x00\x93.", None),
        (b"ctorch._utils\n_rebuild_tensor_v2\n.", None),
        (b"nothing", None),
        (b"PK\x03\x04", None),
        (b"", None),
    ],
)
def test_names_in_a_pickle_are_read_without_running_it(
    content: bytes, name: str | None, tmp_path: Path
) -> None:
    (tmp_path / "w").write_bytes(content)

    assert first_global(tmp_path / "w") == name


@pytest.mark.parametrize(
    ("code", "event"),
    [
        ("import socket; socket.socket()", "socket"),
        ("import os; os.system('true')", "os.system"),
        ("import subprocess; subprocess.run(['true'])", "subprocess"),
        ("open('left', 'w')", "write a file"),
        ("import os; os.mkdir('left')", "os.mkdir"),
        ("eval('1')", "compile"),
    ],
)
def test_the_process_that_opens_pickles_may_do_nothing_else(
    code: str, event: str, tmp_path: Path
) -> None:
    compiled = compile(code, "x", "exec")

    def work(say: Say) -> None:
        os.chdir(tmp_path)
        sys.addaudithook(lambda event, values: unpickling._watch(event, values, set()))
        try:
            types.FunctionType(compiled, {"__builtins__": builtins})()
        except Refusal as reason:
            say(str(reason))

    found = life(work)  # a hook stays until its process ends

    assert found.fault is None
    (reason,) = found.said
    assert event in reason
    assert list(tmp_path.iterdir()) == []


def test_a_tar_is_said_to_be_one_before_torch_unpacks_it(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "w.pt", "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))

    with pytest.raises(Refusal, match="a tar of torch's first years"):
        unpickling._loaded(torch, tmp_path / "w.pt")
