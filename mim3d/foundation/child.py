"""How a process of our own is started for work that may end it: a bare Python, and one module."""

from __future__ import annotations

import json
import os
import sys

START = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from {module} import main; main()"


def child_command(module: str, *arguments: str) -> list[str]:
    """The command that calls `main` of a module in a process of its own.

    Neither the working directory nor `PYTHON*` of the environment may put modules in its way: it
    imports from where this process does.

    Args:
        module: by its dotted name.
        arguments: `sys.argv[2]` and the following ones there.
    """
    folders = json.dumps([os.path.abspath(folder) for folder in sys.path])
    return [sys.executable, "-I", "-c", START.format(module=module), folders, *arguments]
