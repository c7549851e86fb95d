"""No file that mim3d reads can run code, and no word of a config becomes a name of code.

Tried with these breaks: `import pickle` and `torch.load(path)` in `mim3d/training/checkpoints.py`,
`eval(text)` and `importlib.import_module(config.name)` in `mim3d/objectives/registry.py`,
`shell=True` in `mim3d/foundation/versions.py`, `numpy.load(path, allow_pickle=True)` in
`mim3d/data/files/reading.py`, `json.loads(text)` in `mim3d/workflows/info.py`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "mim3d"
FORBIDDEN_MODULES = {
    "pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "copyreg",
    "pkg_resources", "runpy", "code", "codeop", "imp", "tarfile", "commands", "pty",
}  # fmt: skip
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.execvp",
    "torch.load", "torch.save", "torch.jit.load", "torch.package", "torch.hub.load", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load", "entry_points", "metadata.entry_points",
    "importlib.metadata.entry_points", "shutil.unpack_archive", "numpy.fromfile", "np.fromfile",
    "globals", "pydoc.locate", "pkgutil.resolve_name", "torch.classes.load_library",
    "torch.ops.load_library", "ctypes.cdll.LoadLibrary", "input",
}  # fmt: skip
MAY = {
    "models/unpickling.py": {"torch.load", "torch.save"},
    "__init__.py": {"globals"},
}
"""The one process that opens pickles, with `weights_only` (it saves to warm up); lazy names."""
LITERAL_ELSEWHERE = {
    "__init__.py", "training/fabric.py", "workflows/throughput/monai.py",
    "workflows/throughput/ceilings.py",
}  # fmt: skip
"""Where `import_module` takes a name from a constant of the module."""
JSON_READERS = {
    "foundation/documents.py": "the strict reader itself",
    "foundation/lock.py": "4 KiB that only say who holds a folder",
    "data/files/dicom.py": "answers of our own child, of limited length",
    "data/files/dicom_child.py": "questions of our own parent",
    "data/prepare/pool.py": "answers of our own workers",
    "data/prepare/worker.py": "questions of our own parent",
    "data/prepare/job.py": "what it has just written itself",
    "workflows/run_record.py": "what it is about to write itself",
}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an expression; empty where it is something else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def words(call: ast.Call) -> dict[str, ast.expr]:
    return {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}


def complaints(name: str, tree: ast.Module) -> list[str]:
    """What a source does that would let a file or a config run code."""
    found = []
    for node in ast.walk(tree):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"imports {m}" for m in modules if m.partition(".")[0] in FORBIDDEN_MODULES]
    for called, call in calls(tree):
        given = words(call)
        if called in FORBIDDEN_CALLS - MAY.get(name, set()):
            found.append(f"calls {called}")
        if called == "torch.load" and not _is(given.get("weights_only"), True):
            found.append("torch.load without weights_only")
        if "shell" in given and not _is(given["shell"], False):
            found.append("a shell")
        if called.endswith(("np.load", "numpy.load")) and not _is(given.get("allow_pickle"), False):
            found.append("numpy.load without allow_pickle=False")
        if called.endswith(".extractall"):
            found.append("unpacks an archive")
        if called in ("json.loads", "json.load") and name not in JSON_READERS:
            found.append("reads JSON past the strict reader")
        if called.rpartition(".")[2] == "import_module" and name not in LITERAL_ELSEWHERE:
            is_literal = bool(call.args) and isinstance(call.args[0], ast.Constant | ast.JoinedStr)
            constant = is_literal and (
                isinstance(call.args[0], ast.Constant) or name.startswith("workflows/throughput/")
            )
            found += [] if constant else ["imports by a computed name"]
    return found


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_nothing_in_the_package_runs_what_a_file_or_a_config_names() -> None:
    found = [f"{name}: {what}" for name, tree in sources() for what in complaints(name, tree)]

    assert found == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("import pickle", "imports pickle"),
        ("from pickle import loads", "imports pickle"),
        ("torch.load(path)", "calls torch.load"),
        ("eval(text)", "calls eval"),
        ("importlib.import_module(config.name)", "computed name"),
        ("subprocess.run(text, shell=True)", "a shell"),
        ("np.load(path, allow_pickle=True)", "allow_pickle"),
        ("np.load(path)", "allow_pickle"),
        ("yaml.load(text, Loader=yaml.Loader)", "calls yaml.load"),
        ("archive.extractall(folder)", "unpacks"),
        ("json.loads(text)", "past the strict reader"),
        ("os.system('ls')", "calls os.system"),
    ],
)
def test_each_way_is_seen(line: str, why: str) -> None:
    assert any(why in what for what in complaints("workflows/any.py", ast.parse(line)))


def test_pickles_are_opened_with_weights_only_in_one_module() -> None:
    places = {
        name for name, tree in sources() for called, _ in calls(tree) if called == "torch.load"
    }

    assert places == {"models/unpickling.py"}


@pytest.mark.parametrize(
    ("name", "registry"),
    [
        ("objectives/registry.py", "PRETEXT_TASKS"),
        ("objectives/targets/registry.py", "TARGETS"),
        ("models/decoders.py", "DECODERS"),
        ("models/mae_decoder.py", "DECODERS"),
        ("models/presets.py", "PRESETS"),
        ("tokens/strategies.py", "STRATEGIES"),
        ("workflows/benchmark.py", "KINDS"),
        ("cli/verbs.py", "VERBS"),
    ],
)
def test_registries_are_literal_dictionaries(name: str, registry: str) -> None:
    tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))

    values = [node.value for node in tree.body if isinstance(node, ast.AnnAssign)
              and isinstance(node.target, ast.Name) and node.target.id == registry]  # fmt: skip

    assert len(values) == 1
    assert isinstance(values[0], ast.Dict)
    assert all(isinstance(key, ast.Constant) for key in values[0].keys)
