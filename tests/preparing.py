"""Small cohorts to prepare, and what is looked at in the stores that come of them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from mim3d.config.verbs import PreparationConfig, PrepareConfig
from mim3d.data.phantom import PhantomRule
from mim3d.foundation.reporting import Silent

RULE = PhantomRule(shape=(27, 23, 14), spacing_mm=(1.5, 1.2, 3.0), organs=2, noise=0.03)

PLANTED = """
import os, signal, time
import mim3d.data.prepare.case as case
whole = case._read
def broken(item, *rest):
    name = item.case_id
    if name == "phantom_000":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "phantom_001":
        os._exit(3)
    if name == "phantom_002":
        raise MemoryError
    if name == "phantom_003":
        raise ZeroDivisionError("planted")
    return whole(item, *rest)
case._read = broken
"""
"""Readers that segfault, exit, eat memory, and have a bug."""


def config_with(**settings) -> PrepareConfig:
    """In this process unless a test says otherwise: the same code without the start of another."""
    return PrepareConfig(prepare=PreparationConfig(**{"workers": 0, **settings}))


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, np.diag([1.5, 1.2, 3, 1]) if affine is None else affine)
    nib.save(image, path)


def voxel_files(store: Path) -> dict[str, bytes]:
    """Content of all voxel files."""
    return {path.name: path.read_bytes() for path in sorted((store / "cases").glob("*.h5"))}


def quarantine(store: Path) -> dict[str, dict[str, str]]:
    lines = (store / "quarantine.tsv").read_text().splitlines()
    head = lines[0].split("\t")
    rows = [dict(zip(head, line.split("\t"), strict=True)) for line in lines[1:]]
    return {row["case"]: row for row in rows}


class Recorder(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def all_files(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
