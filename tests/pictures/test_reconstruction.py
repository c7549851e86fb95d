"""The reconstruction panel, looked up in its pixels."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from mim3d.foundation.errors import ShapeError
from mim3d.pictures.colours import MASKED, unit
from mim3d.pictures.reconstruction import draw_reconstruction, psnr

SHAPE = (32, 24, 16)
SPACING = (1.0, 1.5, 3.0)


def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    original = random.uniform(0.2, 1, SHAPE)
    mask = np.zeros(SHAPE, bool)
    mask[:, :12] = True
    return original, np.where(mask, original + 0.1, 0.0), mask


def test_masked_voxels_are_hidden_in_one_column_only(tmp_path: Path) -> None:
    original, guess, mask = arrays()

    path = draw_reconstruction(
        tmp_path / "r.png", original=original[None], reconstructed=guess[None], mask=mask,
        spacing_mm=SPACING, step=1200, loss=0.01234,
    )  # fmt: skip

    picture = matplotlib.image.imread(path)[..., :3]
    hidden = np.abs(picture - np.array(unit(MASKED))).max(axis=-1) < 0.01
    columns = np.flatnonzero(hidden.any(axis=0)) / picture.shape[1]
    assert 0.2 < columns.min() < columns.max() < 0.42
    # Posterior half: the lower half of the axial plane, in which anterior is up.
    rows = np.flatnonzero(hidden[: picture.shape[0] // 3].any(axis=1))
    assert rows.size


def test_psnr_is_that_of_masked_voxels() -> None:
    original, guess, mask = arrays()

    # An error of 0.1 everywhere in a span of 0.8: 20 log10(8).
    assert psnr(original, guess, mask, 0.8) == pytest.approx(20 * np.log10(8))
    assert psnr(original, original, mask, 0.8) is None
    assert psnr(original, guess, np.zeros(SHAPE, bool), 0.8) is None


def test_equal_input_gives_equal_files(tmp_path: Path) -> None:
    original, guess, mask = arrays()

    one, two = (
        draw_reconstruction(
            tmp_path / name, original=original, reconstructed=guess, mask=mask, spacing_mm=SPACING
        )
        for name in ("a.png", "b.png")
    )

    assert one.read_bytes() == two.read_bytes()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_arrays_of_two_grids_are_refused(tmp_path: Path) -> None:
    original, guess, mask = arrays()

    with pytest.raises(ShapeError, match="one grid"):
        draw_reconstruction(
            tmp_path / "r.png", original=original, reconstructed=guess, mask=mask[1:],
            spacing_mm=SPACING,
        )  # fmt: skip


def test_without_a_prediction_only_what_was_seen_is_drawn(tmp_path: Path) -> None:
    original, guess, mask = arrays()

    paths = [
        draw_reconstruction(
            tmp_path / name, original=original, reconstructed=shown, mask=mask,
            spacing_mm=SPACING, note="features were predicted",
        )
        for name, shown in (("voxels.png", guess), ("features.png", None))
    ]  # fmt: skip

    voxels, features = (matplotlib.image.imread(path)[..., :3] for path in paths)
    # two columns of five, and a margin of 0.3 inches to the left of either
    assert features.shape[1] == pytest.approx(
        voxels.shape[1] * (0.3 + 2 * 1.98) / (0.3 + 5 * 1.98), rel=0.02
    )
    hidden = np.abs(features - np.array(unit(MASKED))).max(axis=-1) < 0.01
    columns = np.flatnonzero(hidden.any(axis=0)) / features.shape[1]
    assert columns.min() > 0.5
