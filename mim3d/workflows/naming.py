"""How runs, results and benchmarks are called where several are shown together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

BENCHMARK = "convergence.json"
"""In the folder of a benchmark."""


def names_of(paths: Sequence[Path]) -> dict[Path, str]:
    """A short name for each path, no two alike: its last part, and more of it where needed."""
    ends = {path: _parts(path) for path in paths}
    most = max((len(parts) for parts in ends.values()), default=0)
    for depth in range(1, most + 1):
        names = {path: "/".join(parts[-depth:]) for path, parts in ends.items()}
        if len(set(names.values())) == len(names):
            return names
    return {path: str(path) for path in paths}


def _parts(path: Path) -> tuple[str, ...]:
    """The parts of a path; a file that is called like all others goes by its folder."""
    whole = path.absolute()
    if whole.name in (BENCHMARK, "results.json"):
        return whole.parent.parts[1:]
    return (whole.with_suffix("") if whole.suffix == ".json" else whole).parts[1:]
