"""The tutorials run from the first cell to the last, and the pages say what the notebooks say."""

from __future__ import annotations

import base64
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

TUTORIALS = Path(__file__).resolve().parents[2] / "docs" / "tutorials"
NOTEBOOKS = sorted(path.stem for path in TUTORIALS.glob("*.ipynb"))
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def render() -> Any:
    pytest.importorskip("nbclient")
    spec = importlib.util.spec_from_file_location("render", TUTORIALS / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def notebook(name: str) -> Any:
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(TUTORIALS / f"{name}.ipynb", as_version=4)


def test_there_are_four_tutorials_and_each_has_a_page() -> None:
    assert len(NOTEBOOKS) == 4
    assert sorted(path.stem for path in TUTORIALS.glob("*.md")) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_without_outputs(name: str) -> None:
    code = [cell for cell in notebook(name).cells if cell.cell_type == "code"]

    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_page_says_every_cell_of_its_notebook_in_order(name: str, render: Any) -> None:
    """Seen to fail where a cell was changed and the page was not rendered again."""
    page = (TUTORIALS / f"{name}.md").read_text(encoding="utf-8")

    at = 0
    for cell in notebook(name).cells:
        block = render.source_of(cell)
        found = page.find(block, at)
        assert found >= 0, f"`python docs/tutorials/render.py {name}` makes the page anew: {block}"
        at = found + len(block)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_page_ends_with_a_picture_that_is_there(name: str) -> None:
    page = (TUTORIALS / f"{name}.md").read_text(encoding="utf-8")
    shown = re.findall(r"^!\[.*\]\((.*)\)$", page, re.MULTILINE)

    assert page.rstrip().endswith(f"]({shown[-1]})")
    assert all((TUTORIALS / file).read_bytes().startswith(PNG) for file in shown)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_and_ends_with_a_picture(name: str, render: Any, tmp_path: Path) -> None:
    book = render.executed(TUTORIALS / f"{name}.ipynb", tmp_path)

    drawn = [output.data["image/png"] for output in book.cells[-1].outputs if "data" in output]
    assert base64.b64decode(drawn[-1]).startswith(PNG)
    assert not [
        output.text
        for cell in book.cells
        for output in cell.get("outputs", ())
        if output.get("name") == "stderr"
    ]
