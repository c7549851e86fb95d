"""Predicting into a folder that holds other predictions, now and before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mim3d.config.verbs import PredictConfig
from mim3d.foundation.errors import DiskError, ExitCode
from mim3d.foundation.reporting import Silent
from mim3d.workflows import predict as predicting
from mim3d.workflows.predict import predict
from mim3d.workflows.prediction_jobs import RECORD
from mim3d.workflows.result import Result
from tests.reliability.workbench import make_segmenter

CONFIG = PredictConfig(pictures=False, device="cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A run, and the images of three cases."""
    source, run = make_segmenter(tmp_path_factory.mktemp("made"))
    return run, sorted((source / "imagesTr").glob("*.nii.gz"))[:3]


def _predict(run: Path, images: list[Path], out: Path) -> Result:
    names = [str(image) for image in images]
    return predict(str(run), names, out=str(out), config=CONFIG, reporter=Silent())


def test_a_prediction_that_was_moved_away_is_no_fault_of_the_next_one(
    made: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    run, (first, second, third) = made
    _predict(run, [first, second], tmp_path / "out")
    (tmp_path / "out" / first.name).unlink()

    result = _predict(run, [third], tmp_path / "out")

    assert result.exit_code == ExitCode.DONE
    assert set(json.loads((tmp_path / "out" / RECORD).read_text())) == {second.name, third.name}
    again = _predict(run, [second, third], tmp_path / "out")
    assert again.exit_code == ExitCode.DONE


def test_a_prediction_of_this_call_that_is_gone_at_its_end_is_said(
    made: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, images = made
    _predict(run, images[:1], tmp_path / "out")
    really = predicting.write_json

    def write(path: Path, content: object) -> None:
        really(path, content)
        (tmp_path / "out" / images[0].name).unlink(missing_ok=True)

    monkeypatch.setattr(predicting, "write_json", write)

    with pytest.raises(DiskError, match=images[0].name):
        _predict(run, images[:2], tmp_path / "out")
