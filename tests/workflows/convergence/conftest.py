"""A small benchmark that is run once for all tests of the harness."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_benchmark import ARMS, make_store, run, write_benchmark


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    return write_benchmark(tmp_path_factory.mktemp("bench"), store, ARMS)


@pytest.fixture(scope="session")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a benchmark that one process ran without a break."""
    out = tmp_path_factory.mktemp("whole")
    run(source, out)
    return out
