"""Row 24: every number drawn in the package comes from a generator that was handed in.

Tried with these breaks: `np.random.seed(0)`, `from random import shuffle`, `torch.rand(3)` and
`x.normal_()` in `mim3d/data/augment.py`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NUMPY = ("np.random", "numpy.random")
NUMPY_MAY = {"Generator", "Philox"}
"""Of `np.random`: the types a keyed generator is made of."""
TORCH_DRAWS = {
    "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "normal",
    "bernoulli", "multinomial", "poisson",
}  # fmt: skip
METHOD_DRAWS = {
    "normal_", "uniform_", "bernoulli_", "random_", "exponential_", "cauchy_", "geometric_",
    "log_normal_", "trunc_normal_",
}  # fmt: skip
INITIALISERS = {"nn.init", "torch.nn.init", "init"}
"""Weights are drawn in a block that names its seed (`workflows.assembly.initialising`)."""
GLOBAL_MODULES = {"random", "secrets"}


def unkeyed(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and code of everything that draws from a generator nobody handed in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            if node.module == "numpy.random" and not {a.name for a in node.names} <= NUMPY_MAY:
                yield node.lineno, ast.unparse(node)
        else:
            names = []
        if GLOBAL_MODULES & set(names):
            yield node.lineno, ast.unparse(node)
        is_numpy = isinstance(node, ast.Attribute) and ast.unparse(node.value) in NUMPY
        if is_numpy and node.attr not in NUMPY_MAY:
            yield node.lineno, ast.unparse(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, name = ast.unparse(node.func.value), node.func.attr
            is_drawn = name in TORCH_DRAWS and owner == "torch"
            is_drawn |= name in METHOD_DRAWS and owner not in INITIALISERS
            if is_drawn and not any(keyword.arg == "generator" for keyword in node.keywords):
                yield node.lineno, ast.unparse(node)


def test_the_package_draws_from_generators_that_were_handed_in_alone() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {code}"
        for path in sorted((ROOT / "mim3d").rglob("*.py"))
        for line, code in unkeyed(ast.parse(path.read_text(encoding="utf-8")))
    ]

    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "import random",
        "from random import shuffle",
        "from numpy.random import rand",
        "np.random.seed(0)",
        "np.random.default_rng()",
        "torch.rand(3)",
        "torch.randn_like(x, device=d)",
        "order = torch.randperm(7)",
        "x.normal_()",
        "x.data.uniform_(0, 1)",
    ],
)
def test_each_way_to_draw_unkeyed_is_found(code: str) -> None:
    assert list(unkeyed(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "np.random.Generator(np.random.Philox(key=3))",
        "torch.randint(3, (4,), generator=chance)",
        "random.random(3)",
        "nn.init.trunc_normal_(weight, std=0.02)",
        "from numpy.random import Generator",
    ],
)
def test_keyed_draws_are_let_be(code: str) -> None:
    assert not list(unkeyed(ast.parse(code)))
