"""The names that other work relies on come from `mim3d`, each from its room."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mim3d

# Issue 2 and RULINGS R51.
PROMISED = {
    "VolumeViT", "MaskedAutoencoder", "SimMIM", "UNETR", "predict_volume", "Volume", "Case",
    "CropBatch", "TokenGrid", "TokenSplit", "HiddenStates", "Moment", "Outcome", "UserError",
    "VolumeError", "ShapeError", "ReadWarning", "read_volume", "read_label", "write_label",
    "Segmenter", "Task", "load_segmenter", "open_store", "__version__",
}  # fmt: skip


def test_all_names_are_promised_listed_and_loaded():
    assert set(mim3d.__all__) == PROMISED
    assert set(dir(mim3d)) >= PROMISED


@pytest.mark.parametrize("name", sorted(PROMISED - {"__version__"}))
def test_a_name_is_loaded_from_its_room(name):
    value = getattr(mim3d, name)

    assert value.__name__ == name
    assert value.__module__.startswith("mim3d.")


def test_from_import_works_in_a_fresh_process():
    code = "from mim3d import UserError, TokenGrid; print(UserError.__name__, TokenGrid.__name__)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "UserError TokenGrid\n"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute `VolumeVit`"):
        mim3d.VolumeVit  # noqa: B018
