"""What MkDocs calls to build the site: pages from the rest of the repository, and links to them.

Files of the repository are linked as on its host, relative to the file that links (`../setup.cfg`
from `docs/architecture.md`). Here every such link is turned: to the page that shows the file, or
to a copy of it. Help texts of commands and the table of recipes are made from the code.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
MEASURED = {
    "Does pre-training pay": "benchmarks/convergence/README.md",
    "Hippocampus": "benchmarks/convergence/hippocampus/README.md",
    "Hippocampus, patches of 4": "benchmarks/convergence/hippocampus_patch4/README.md",
    "Mouse brain": "benchmarks/convergence/mouse/README.md",
    "Which masks pay": "benchmarks/masking/README.md",
    "Classes of volumes": "benchmarks/classification/README.md",
    "What else was tried": "benchmarks/ablation/README.md",
    "Other spacings, other patches": "benchmarks/spacing/README.md",
    "Speed and memory": "benchmarks/throughput/README.md",
    "Speed and accuracy": "benchmarks/throughput/dice_check/README.md",
    "Weights of other programs": "benchmarks/parity/README.md",
    "The first hour": "benchmarks/first_run/README.md",
}
PROJECT = {
    "Reliability": "RELIABILITY.md",
    "Security": "SECURITY.md",
    "Changes": "CHANGELOG.md",
}
CODE = re.compile(r"^(`{3,}).*?^\1`*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?(?=\))")
RECIPES = "<!-- recipes -->"
MOST_BYTES = 2_000_000
SHOWN = {".yaml": "yaml", ".py": "python", ".sh": "bash"}
"""Linked files that become pages, by the language they are shown in; others are copied."""


def on_config(config: Any) -> Any:
    """Completes the menu: tutorials, results, commands and the files of the project."""
    menu = config["nav"]
    tutorials = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
    if tutorials:
        pages = [f"tutorials/{path.name}" for path in tutorials]
        menu.insert(1, {"Tutorials": pages})
    _part(menu, "Recipes and results").extend({title: path} for title, path in MEASURED.items())
    commands = {"Commands": [{verb: f"commands/{verb}.md"} for verb in _verbs()]}
    menu.insert(menu.index(_entry(menu, "Python")), commands)
    _part(menu, "Project").extend({title: path} for title, path in PROJECT.items())
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds pages and copies of files that lie outside of `docs/`, and the help of every command."""
    for path in (*MEASURED.values(), *PROJECT.values()):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    for verb, text in _verbs().items():
        page = f"---\nhide: [toc]\n---\n\n# mim3d {verb}\n\n```text\n{text}```\n"
        files.append(File.generated(config, f"commands/{verb}.md", content=page))
    recipes = [str(path.relative_to(ROOT)) for path in _configs()]
    for path in sorted({*_linked_files(files), *recipes}):
        files.append(_brought(config, path))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns links between files of the repository into links of the site."""
    here = page.file.src_uri
    if RECIPES in markdown:
        markdown = markdown.replace(RECIPES, "\n".join(_recipes()))

    def turned(found: re.Match[str]) -> str:
        target = _on_site(_target(here, found[1]))
        return posixpath.relpath(target, posixpath.dirname(here) or ".") + (found[2] or "")

    # Code between fences stays as it is; every second part is what lies between them.
    prose = CODE.split(markdown)[::2]
    fences = [found[0] for found in CODE.finditer(markdown)]
    parts = [LINK.sub(turned, text) for text in prose]
    return "".join(part + fence for part, fence in zip(parts, [*fences, ""], strict=True))


def _brought(config: Any, path: str) -> File:
    """A file of the repository as a page that shows it, or as a copy."""
    whole = ROOT / path
    if whole.suffix not in SHOWN:
        return File.generated(config, path, abs_src_path=str(whole))
    text = f"# {whole.name}\n\n`{path}`\n\n````{SHOWN[whole.suffix]}\n{whole.read_text()}````\n"
    return File.generated(config, _on_site(path), content=text)


def _entry(menu: list[Any], title: str) -> dict[str, Any]:
    return next(item for item in menu if isinstance(item, dict) and title in item)


def _part(menu: list[Any], title: str) -> list[Any]:
    return _entry(menu, title)[title]


def _verbs() -> dict[str, str]:
    """What `mim3d VERB --help` says of each verb."""
    from mim3d.cli.options import help_text
    from mim3d.cli.verbs import VERBS

    return {name: help_text(name, verb) for name, verb in VERBS.items()}


def _target(page: str, link: str) -> str:
    """The path within the repository that a link of a page means."""
    folder = posixpath.dirname(_in_repository(page))
    path = posixpath.normpath(posixpath.join(folder, link))
    if path.startswith("docs/api/") or (ROOT / path).exists() or path.startswith("docs/commands/"):
        return path
    raise PluginError(f"{page}: the link `{link}` leads to `{path}`, which does not exist")


def _in_repository(page: str) -> str:
    return page if page in (*MEASURED.values(), *PROJECT.values()) else f"docs/{page}"


def _on_site(path: str) -> str:
    """Where a file or folder of the repository lies on the site."""
    if path == "README.md":
        return "index.md"
    if (ROOT / path).is_dir():
        return _on_site(posixpath.join(path, "README.md"))
    if not path.startswith("docs/") and posixpath.splitext(path)[1] in SHOWN:
        return f"{path}.md"
    return path.removeprefix("docs/")


def _linked_files(files: Files) -> Iterator[str]:
    """Files outside of `docs/` that pages link to, and that are no pages themselves."""
    for file in files.documentation_pages():
        for found in LINK.finditer(CODE.sub("", file.content_string)):
            path = _target(file.src_uri, found[1])
            whole = ROOT / path
            inside = path.startswith("docs/") or files.get_file_from_path(_on_site(path))
            if inside or whole.is_dir() or path == "README.md":
                continue
            if whole.stat().st_size > MOST_BYTES:
                raise PluginError(f"{file.src_uri}: `{path}` is too large to be copied to the site")
            yield path


def _recipes() -> Iterator[str]:
    """A table of all configs that ship, from the comments at their tops."""
    verb = ""
    for path in _configs():
        if path.parent.name != verb:
            verb = path.parent.name
            yield f"\n## For `mim3d {verb}`\n"
            yield "| config | what it is | published or measured | cost |"
            yield "|---|---|---|---|"
        says = header(path)
        cells = (says["story"], says.get("published") or says.get("Measured", ""), says["Cost"])
        link = f"[{path.stem}](../configs/{verb}/{path.name})"
        yield "| " + " | ".join([link, *(_cell(cell) for cell in cells)]) + " |"


def _configs() -> list[Path]:
    """All recipes that ship."""
    verbs = ("prepare", "pretrain", "finetune", "benchmark")
    return [path for verb in verbs for path in sorted((ROOT / "configs" / verb).glob("*.yaml"))]


def _cell(text: str) -> str:
    """A text for a table, in which files of the repository are links."""
    linked = re.sub(r"benchmarks/[\w/]+/README\.md", r"[results](../\g<0>)", text)
    return linked.replace("|", "\\|").rstrip(".")


def header(path: Path) -> dict[str, str]:
    """What the comment at the top of a config says, by its words `Source:`, `Cost:` and others.

    Args:
        path: a config that ships.

    Returns:
        The text behind each word; `story` is what stands before the first one.
    """
    lines = path.read_text().splitlines()
    comment = [line[1:].strip() for line in lines[: _first(lines)]]
    says, word = {"story": "", "Cost": ""}, "story"
    for line in comment:
        found = re.match(r"(Source|published|Cost|Measured|Use|Differs[^:]*): *(.*)", line)
        word, text = (found[1].split(" ")[0], found[2]) if found else (word, line)
        says[word] = f"{says.get(word, '')} {text}".strip()
    return says


def _first(lines: list[str]) -> int:
    return next(at for at, line in enumerate(lines) if not line.startswith("#"))
