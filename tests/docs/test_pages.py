"""What pages say without running it: sections, settings, verbs, public names, figures."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

import mim3d
from mim3d.cli.aliases import ALIASES
from mim3d.cli.verbs import VERBS
from mim3d.config.tree import settings
from tests.docs.pages import (
    DOCS,
    EXAMPLES,
    PAGES,
    PROGRAMS,
    ROOT,
    SCRIPTS,
    fences,
    sections,
    snippets,
)

INLINE = re.compile(r"`([^`\n]+)`")
KNOWN = {
    key for verb in VERBS.values() for kind in (verb.config, *verb.kinds.values()) if kind
    for key in settings(kind)
}  # fmt: skip
SECTIONS = {key.split(".")[0] for key in KNOWN if "." in key}
OPTION = re.compile(r"--([a-z]\w*(?:\.\w+)*)")


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS))


def drawing() -> Any:
    spec = importlib.util.spec_from_file_location("draw", DOCS / "figures" / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_of_a_page_comes_from_a_file_that_is_run(page: Path) -> None:
    for language, block in fences(page):
        lines = [line.strip().removeprefix("$ ") for line in block.splitlines()]
        typed = [line for line in lines if line.split(" ")[0] in PROGRAMS]
        # `inspect` shows the command to type next: an answer, not one of ours.
        assert language == "text" or not typed, f"{typed[0]} is written into {page.name}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_section_of_a_script_is_shown_on_a_page(script: Path) -> None:
    shown = {snippet for page in PAGES for snippet in snippets(page)}
    name = f"examples/{script.relative_to(EXAMPLES)}"

    for section in sections(script):
        assert (name, section) in shown or section == "settings", section


def test_every_snippet_of_a_page_exists() -> None:
    for page in PAGES:
        for name, section in snippets(page):
            text = (DOCS / name).read_text()
            assert not section or f"--8<-- [start:{section}]" in text, f"{page.name}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_settings_and_verbs_that_a_page_names_exist(page: Path) -> None:
    switches = {one for verb in VERBS.values() for one in verb.all_switches} | {*ALIASES}
    for code in INLINE.findall(page.read_text()):
        words = code.split()
        if words[0] == "mim3d" and len(words) > 1 and words[1].isalpha() and words[1].islower():
            assert words[1] in VERBS, code
            for option in OPTION.findall(code):
                assert option in KNOWN | switches, f"`{code}` in {page.name}"
        dotted = re.fullmatch(r"(?:--)?([a-z]+)\.([a-z]\w*)(?: .*|: .*)?", code)
        if dotted and dotted[1] in SECTIONS and not code.endswith((".yaml", ".json", ".py")):
            key = f"{dotted[1]}.{dotted[2]}"
            is_section = any(known.startswith(f"{key}.") for known in KNOWN)
            room = ROOT / "mim3d" / dotted[1] / dotted[2]
            is_room = room.is_dir() or room.with_suffix(".py").is_file()
            assert key in KNOWN or is_section or is_room, f"`{code}` in {page.name}"


def test_every_public_name_has_its_place_on_the_pages_of_python() -> None:
    shown = "\n".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    index = (DOCS / "api" / "index.md").read_text()

    for name in set(mim3d.__all__) - {"__version__"}:
        assert f"::: mim3d.{name}\n" in shown, name
        assert f"#mim3d.{name})" in index, name


def test_every_verb_is_shown_as_a_function() -> None:
    page = (DOCS / "api" / "workflows.md").read_text()
    functions = re.findall(r"::: mim3d\.workflows\.([\w.]+)", page)

    assert {name.split(".")[-1] for name in functions} - {"Result"} == set(VERBS)


def test_what_is_imported_by_the_pages_of_python_can_be_imported() -> None:
    for page in (DOCS / "api").glob("*.md"):
        for path in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE):
            module, _, name = path.rpartition(".")
            assert hasattr(importlib.import_module(module), name), path


def test_the_figures_are_drawn_from_the_librarys_own_functions(tmp_path: Path) -> None:
    draw = drawing()

    draw.main(tmp_path)

    for name in ("masking", "millimetres", "convergence"):
        assert (tmp_path / f"{name}.png").stat().st_size > 20_000
        assert (DOCS / "pictures" / f"{name}.png").is_file()
    assert "540 of 720" in (DOCS / "explain" / "masking.md").read_text()
    assert draw.hidden_voxels((96, 80, 48), "block")[1:] == (540, 720)


def test_the_factor_on_the_page_is_that_of_the_measured_curves() -> None:
    draw = drawing()
    level = 0.9 * max(draw.mean_curve("scratch")[1])
    first = {arm: draw.first_step_at(*draw.mean_curve(arm), level) for arm in ("scratch", "mae")}
    page = (DOCS / "explain" / "convergence.md").read_text()

    assert f"the factor is {first['scratch'] / first['mae']:.2f}" in page


def test_the_index_of_the_reference_names_every_section() -> None:
    index = (DOCS / "reference.md").read_text()
    for path in (DOCS / "reference").glob("*.md"):
        for title in re.findall(r"^## (.*)$", path.read_text(), re.MULTILINE):
            assert f"[{title}](reference/{path.name}#" in index, title


def test_the_menu_names_every_page() -> None:
    menu = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        assert str(page.relative_to(DOCS)) in menu
