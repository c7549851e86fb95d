"""What tests of this room share."""

from __future__ import annotations

from pathlib import Path

import pytest
from position_feeds import SHAPES
from positions import make_store
from preparing import RULE

from mim3d.data.phantom import make_cohort
from mim3d.data.store import Store


@pytest.fixture
def cohort(tmp_path) -> Path:
    """Three training cases with labels, one that validates, one without labels."""
    return make_cohort(tmp_path / "cohort", 1, training=3, validation=1, unlabelled=1, rule=RULE)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four cases whose voxels and labels tell their positions."""
    return make_store(tmp_path_factory.mktemp("store"), SHAPES)
