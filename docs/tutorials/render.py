"""Runs the notebooks of this folder and writes each as a page with what it printed and drew.

    python docs/tutorials/render.py [NAME...]

The notebooks are kept without outputs, so that a change of theirs can be read; the pages, which the
site and the repository's host show, are made of them by this script alone.
"""

from __future__ import annotations

import base64
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
PICTURES = "pictures"
TERMINAL = re.compile(r"\x1b\[[0-9;]*m")


def executed(notebook: Path, folder: Path) -> Any:
    """The notebook with the outputs of a run in `folder`, by this Python.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the traceback is in it.
    """
    book = nbformat.read(notebook, as_version=4)
    # No limit a cell: a slow machine is no failure.
    client = NotebookClient(
        book, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    return client.execute()


def page_of(book: Any, name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by file name."""
    blocks: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in book.cells:
        blocks.append(source_of(cell))
        for output in cell.get("outputs", ()):
            drawn = output.get("data", {}).get("image/png")
            if drawn is not None:
                file = f"{name}_{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode(drawn)
                blocks.append(f"![{file}]({PICTURES}/{file})")
            elif printed := _printed(output):
                blocks.append(f"```text\n{printed}\n```")
    blocks.insert(1, f"[The notebook]({name}.ipynb) of this page, to run yourself.")
    return "\n\n".join(blocks) + "\n", pictures


def source_of(cell: Any) -> str:
    """What a cell says, as it stands on the page."""
    if cell.cell_type == "code":
        return f"```python\n{cell.source}\n```"
    # Notebooks link each other; so do pages.
    return re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.md)", str(cell.source))


def _printed(output: Any) -> str:
    is_stdout = output.output_type == "stream" and output.name == "stdout"
    text = output.text if is_stdout else output.get("data", {}).get("text/plain", "")
    return TERMINAL.sub("", text).rstrip()


def render(notebook: Path, folder: Path) -> None:
    """Runs a notebook in `folder` and writes its page and pictures beside it."""
    text, pictures = page_of(executed(notebook, folder), notebook.stem)
    beside = notebook.parent / PICTURES
    beside.mkdir(exist_ok=True)
    for old in beside.glob(f"{notebook.stem}_*.png"):
        old.unlink()
    for file, content in pictures.items():
        (beside / file).write_bytes(content)
    notebook.with_suffix(".md").write_text(text, encoding="utf-8")


def main(names: list[str]) -> None:
    """Renders the notebooks of these names, or all, in one folder and in their order."""
    folder = Path(tempfile.mkdtemp(prefix="mim3d-tutorials-"))
    try:
        for notebook in sorted(HERE.glob("*.ipynb")):
            if not names or notebook.stem in names:
                render(notebook, folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
