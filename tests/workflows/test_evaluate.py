"""`evaluate` on label maps: where results may go, and which images are drawn on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mim3d.config.inference import EvaluationConfig
from mim3d.config.read import ReadConfig
from mim3d.config.verbs import EvaluateConfig
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.reporting import Silent
from mim3d.workflows.evaluate import evaluate
from mim3d.workflows.result import Result
from tests.data.files.making import dicom_slice

QUICK = EvaluationConfig(resamples=20)
AFFINE = np.diag([-0.8, -1.2, 2.5, 1])
"""That of the slices of `dicom_slice`."""


@pytest.fixture
def pair(tmp_path: Path) -> Callable[..., Result]:
    """Scores a label map against itself; a `dataset.json` and a record describe both sides."""
    labels = np.zeros((11, 13, 7), np.uint8)
    labels[2:6, 3:9, 1:5] = 1
    for side in ("predictions", "labels"):
        (tmp_path / side).mkdir()
        nibabel.save(nibabel.Nifti1Image(labels, AFFINE), tmp_path / side / "a0.nii.gz")
    (tmp_path / "predictions/predictions.json").write_text("{}")
    (tmp_path / "dataset.json").write_text("{}")

    def run(out: str, **fields: object) -> Result:
        return evaluate(
            str(tmp_path / "predictions"),
            str(tmp_path / "labels"),
            out=str(tmp_path / out),
            config=EvaluateConfig(evaluation=QUICK, **fields),  # type: ignore[arg-type]
            reporter=Silent(),
        )

    return run


@pytest.mark.parametrize(
    "out",
    ["labels/a0.nii.gz", "predictions/a0.nii.gz", "predictions/predictions.json", "dataset.json"],
)
def test_results_never_take_the_place_of_what_was_read(
    pair: Callable[..., Result], tmp_path: Path, out: str
) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    with pytest.raises(UserError, match="would take the place of|ends in `.json`"):
        pair(out)

    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("out", ["results.csv", "results.png", "results"])
def test_results_bear_the_name_of_json(
    pair: Callable[..., Result], tmp_path: Path, out: str
) -> None:
    with pytest.raises(ConfigError, match=r"expected a name that ends in `\.json`"):
        pair(out)

    assert not (tmp_path / out).exists()


def test_a_list_of_images_is_not_replaced_by_the_scores(
    pair: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "images.csv").write_text("case,image\na0,predictions/a0.nii.gz\n")

    with pytest.raises(UserError, match="would take the place of `images.csv`"):
        pair("images.json", images=str(tmp_path / "images.csv"))


def test_overlays_are_of_the_series_that_is_asked_for(
    pair: Callable[..., Result], tmp_path: Path
) -> None:
    """Without a series the folder is two cases, of which none is called as the label map."""
    (tmp_path / "scans/a0").mkdir(parents=True)
    random = np.random.default_rng(5)
    for number in (1, 2):
        for k in range(7):
            pixels = random.integers(-900, 900, (13, 11)).astype(np.int16)
            raw = dicom_slice(pixels, (0, 0, 2.5 * k), series=f"1.2.{number}")
            (tmp_path / f"scans/a0/{number}-{k}.dcm").write_bytes(raw)

    read = ReadConfig(series="1")
    result = pair("results.json", images=str(tmp_path / "scans"), read=read)

    assert [path.name for path in result.files][3:] == ["a0.png"]
