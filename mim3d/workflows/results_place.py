"""Where results of an evaluation may go."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mim3d.foundation.errors import ConfigError, UserError


def results_place(out: str, inputs: Iterable[Path]) -> Path:
    """The file that results go to.

    Args:
        out: as it was typed; a CSV and a picture are written beside it.
        inputs: what is read, none of which may be replaced.

    Raises:
        UserError: `out` is no `.json`; or results would take the place of what was read.
    """
    path, beside = Path(out), "a CSV and a picture are written beside it"
    if path.suffix != ".json":
        raise ConfigError(
            f"`--out` is `{out}`, expected a name that ends in `.json`",
            remedy=f"`--out results.json`; {beside}",
            code="out",
        )
    written = {path.with_suffix(ending).resolve() for ending in (".json", ".csv", ".png")}
    taken = next((place for place in inputs if place.resolve() in written), None)
    if taken is not None:
        raise UserError(
            f"results would take the place of `{taken.name}`",
            where=out,
            remedy=f"choose another name for `--out`; {beside}",
            code="over-input",
        )
    return path
