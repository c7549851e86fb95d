"""The `prepare` command that fits what was found."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mim3d.config.tree import value_of
from mim3d.config.verbs import PrepareConfig
from mim3d.config.writing import differences
from mim3d.data.cohort import Cohort
from mim3d.data.cohort.cases import stem
from mim3d.workflows.inspect.headers import Problem

CURES = {"channel-grids": "align_channels", "label-no-orientation": "trust_image_grid"}
"""Problems that a setting of `prepare` settles, by their codes."""


def cured(config: PrepareConfig, problems: Sequence[Problem]) -> PrepareConfig:
    """The settings with those that the problems call for."""
    wanted = {CURES[problem.code] for problem in problems if problem.code in CURES}
    asked = config.prepare
    return replace(
        config,
        prepare=replace(
            asked,
            align_channels=asked.align_channels or "align_channels" in wanted,
            trust_image_grid=asked.trust_image_grid or "trust_image_grid" in wanted,
        ),
    )


def next_command(source: str, cohort: Cohort, config: PrepareConfig) -> str:
    """What to type next: the source, a folder that is free, and the settings that are needed.

    Args:
        source: as it was typed.
        cohort: what it holds.
        config: the settings that differ from the defaults are said.
    """
    out = _free(Path("stores") / _name(source, cohort))
    words = ["mim3d", "prepare", source, "--out", str(out)]
    for key in differences(config, PrepareConfig()):
        words += [f"--{key}", _text(value_of(config, key))]
    return shlex.join(words)


def _name(source: str, cohort: Cohort) -> str:
    """A plain name: the source's own, else its folder's."""
    said = cohort.name or stem(Path(source).resolve()).removesuffix(".npz")
    if said == "dataset.json":
        said = Path(source).resolve().parent.name
    name = re.sub(r"[^a-z0-9]+", "_", said.lower()).strip("_")
    return name[:40] or "cohort"


def _free(folder: Path) -> Path:
    """The folder, with a number behind its name where something stands there already."""
    number, found = 1, folder
    while found.exists():
        number += 1
        found = folder.with_name(f"{folder.name}_{number}")
    return found


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
    return str(value)
