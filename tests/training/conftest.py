"""What tests of this room share."""

from __future__ import annotations

import pytest


@pytest.fixture
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mim3d.foundation.atomic.sync", lambda path: None)
