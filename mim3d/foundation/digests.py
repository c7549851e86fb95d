"""What a file's bytes come to: equal exactly where all of them are."""

from __future__ import annotations

import hashlib
from pathlib import Path

PIECE = 1 << 22
"""Bytes in memory at once."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            total.update(piece)
    return total.hexdigest()
