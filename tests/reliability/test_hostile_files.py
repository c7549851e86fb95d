"""The hostile files are armed: a careless reader does what they say."""

from __future__ import annotations

import contextlib
import io
import pickle
import tarfile
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from mim3d.foundation.randomness import generator
from tests.reliability.child import judged
from tests.reliability.hostile_files import KINDS, PICKLES, kind_of


def _careless(content: bytes) -> None:
    """Reads as code of this field does: pickles are loaded, archives unpacked."""
    with contextlib.suppress(Exception):
        pickle.loads(content)
    with contextlib.suppress(Exception):
        torch.load(io.BytesIO(content), weights_only=False)
    with contextlib.suppress(Exception), np.load(io.BytesIO(content), allow_pickle=True) as arrays:
        list(arrays.values())
    with contextlib.suppress(Exception):
        np.load(io.BytesIO(content), allow_pickle=True)


def test_most_files_run_their_code_in_a_careless_reader(tmp_path: Path) -> None:
    def judge(trial: int) -> str:
        warnings.simplefilter("ignore")
        marker = tmp_path / f"executed-{trial}"
        kinds = [name for name in KINDS if name.startswith(("protocol", "torch", "numpy"))]
        _careless(KINDS[kinds[trial % len(kinds)]](generator(trial, "armed"), marker))
        return "executed" if marker.exists() else "not"

    outcomes = [one.outcome for one in judged(range(60), judge, seconds=60, spare_bytes=None)]

    # Some opcodes only prepare a call, and a lazy `map` is never asked.
    assert outcomes.count("executed") >= 40


def test_archives_hold_names_that_lead_out_of_the_folder(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(KINDS["tar"](generator(1), tmp_path / "m"))) as tar:
        assert "../m" in tar.getnames()
        assert tar.getmember("link").issym()
    names: set[str] = set()
    for trial in range(8):
        content = KINDS["archive"](generator(trial), tmp_path / "m")
        names |= set(zipfile.ZipFile(io.BytesIO(content)).namelist())
    assert "../../m" in names


def test_two_hundred_files_hold_a_hundred_pickles_of_every_form() -> None:
    counts = Counter(kind_of(trial) for trial in range(200))
    forms = {"protocol-0", "protocol-5", "opcodes-reduce", "opcodes-build", "opcodes-memo",
             "torch-zip", "torch-legacy", "tar"}  # fmt: skip

    assert counts.keys() == KINDS.keys()
    assert sum(counts[kind] for kind in PICKLES) >= 100
    assert forms <= PICKLES.keys()
