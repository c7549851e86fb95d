"""`python -m mim3d`, which is also what `torchrun -m mim3d` starts."""

from __future__ import annotations

import sys

from mim3d.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
