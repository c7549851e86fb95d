"""What tests share: one thread a process, and the real data where they lie beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Two test processes on two cores: a second thread in each makes both wait for the other.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data; tests that need it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the real data are not beside this checkout")
    return folder
