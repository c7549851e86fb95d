"""What tests of this room share."""

from __future__ import annotations

from pathlib import Path

import pytest
from preparing import RULE

from mim3d.data.phantom import make_cohort


@pytest.fixture
def cohort(tmp_path) -> Path:
    """Three training cases with labels, one that validates, one without labels."""
    return make_cohort(tmp_path / "cohort", 1, training=3, validation=1, unlabelled=1, rule=RULE)
