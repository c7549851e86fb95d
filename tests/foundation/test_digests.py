from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from mim3d.foundation import digests
from mim3d.foundation.digests import file_digest


@pytest.mark.parametrize("size", [0, 1, 6, 7, 8, 100])
def test_a_digest_is_the_sha256_of_all_bytes_however_many_pieces_they_make(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(size))
    (tmp_path / "a").write_bytes(content)
    monkeypatch.setattr(digests, "PIECE", 7)

    assert file_digest(tmp_path / "a") == hashlib.sha256(content).hexdigest()
