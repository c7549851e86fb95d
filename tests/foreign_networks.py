"""The networks of `benchmarks/parity`, which tests of several rooms are held to."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

PARITY = Path(__file__).resolve().parents[1] / "benchmarks" / "parity"


def parity_module(name: str) -> ModuleType:
    """A script of `benchmarks/parity` as a module, loaded once."""
    known = f"parity_{name}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, PARITY / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[known] = module
        spec.loader.exec_module(module)
    return sys.modules[known]


networks = parity_module("networks")
