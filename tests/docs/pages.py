"""The pages of the site and the commands they show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
EXAMPLES = DOCS / "examples"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "tutorials" not in path.parts)
SCRIPTS = sorted(EXAMPLES.rglob("*.sh"))
FENCE = re.compile(r"^ *(`{3,})(\w*)\n(.*?)^ *\1 *$", re.MULTILINE | re.DOTALL)
SNIPPET = re.compile(r'--8<-- "([^":]+)(?::(\w+))?"')
PROGRAMS = ("mim3d", "pip", "python", "python3", "torchrun", "sbatch", "srun", "export", "cd")


def fences(page: Path) -> Iterator[tuple[str, str]]:
    """Language and content of each block of code of a page."""
    for found in FENCE.finditer(page.read_text()):
        yield found[2], found[3]


def snippets(page: Path) -> Iterator[tuple[str, str]]:
    """File and section of each example that a page shows."""
    for found in SNIPPET.finditer(page.read_text()):
        yield found[1], found[2] or ""


def sections(script: Path) -> list[str]:
    """Sections of a script, in its order."""
    return re.findall(r"# --8<-- \[start:(\w+)\]", script.read_text())


def commands(script: Path) -> list[list[str]]:
    """The commands of a script as words, comments left out."""
    text = script.read_text().replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [words for words in lines if words]
