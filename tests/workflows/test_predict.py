"""Predicting into a folder that holds other predictions, now and before."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mim3d.config.inference import InferenceConfig
from mim3d.config.verbs import PredictConfig
from mim3d.data.files import read_volume
from mim3d.foundation.errors import ConfigError, DiskError, ExitCode
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


def _predict(
    run: Path, images: list[Path], out: Path, config: PredictConfig = CONFIG, **more: bool
) -> Result:
    names = [str(image) for image in images]
    return predict(str(run), names, out=str(out), config=config, reporter=Silent(), **more)


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


OTHER = replace(CONFIG, inference=InferenceConfig(overlap=0.0, save_probabilities=True))
"""Another setting, in which a run says something else."""


@pytest.mark.parametrize("name", ["{}.nii.gz", "{}_probabilities.nii.gz", "labels.json"])
def test_what_others_left_in_the_folder_is_replaced_only_where_that_is_said(
    made: tuple[Path, list[Path]], tmp_path: Path, name: str
) -> None:
    run, (image, *_) = made
    theirs = tmp_path / name.format(image.name.removesuffix(".nii.gz"))
    theirs.write_bytes(b"{}")

    with pytest.raises(ConfigError, match=theirs.name):
        _predict(run, [image], tmp_path, OTHER)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {theirs.name: b"{}"}

    assert _predict(run, [image], tmp_path, OTHER, overwrite=True).exit_code == ExitCode.DONE
    assert theirs.read_bytes() != b"{}"
    assert _predict(run, [image], tmp_path, OTHER).facts["windows"]["run"] == 0


def test_probabilities_of_another_hand_are_told_where_none_are_asked_for(
    made: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    """They would lie beside a label map that they are not of."""
    run, (image, *_) = made
    theirs = _probabilities(image, tmp_path)
    theirs.write_bytes(b"{}")

    with pytest.raises(ConfigError, match=theirs.name):
        _predict(run, [image], tmp_path)
    assert theirs.read_bytes() == b"{}"

    assert _predict(run, [image], tmp_path, overwrite=True).exit_code == ExitCode.DONE
    assert not theirs.exists()


def test_probabilities_and_a_picture_go_with_the_label_map_that_they_belonged_to(
    made: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    run, (first, second, *_) = made
    _predict(run, [first, second], tmp_path, replace(OTHER, pictures=True))
    pictures = tmp_path / "pictures"
    assert len(list(pictures.iterdir())) == 2

    _predict(run, [first], tmp_path)

    assert not _probabilities(first, tmp_path).exists()
    assert _probabilities(second, tmp_path).is_file()
    assert [path.stem for path in pictures.iterdir()] == [second.name.removesuffix(".nii.gz")]


def test_a_label_map_of_the_other_format_keeps_its_probabilities(
    made: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    run, (image, *_) = made
    _predict(run, [image], tmp_path, OTHER)
    before = _probabilities(image, tmp_path).read_bytes()

    _predict(run, [image], tmp_path, replace(CONFIG, label_format="seg.nrrd"))

    assert _probabilities(image, tmp_path).read_bytes() == before


def _probabilities(image: Path, folder: Path) -> Path:
    return folder / f"{image.name.removesuffix('.nii.gz')}_probabilities.nii.gz"


def test_a_label_map_of_the_source_is_never_replaced(
    made: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    shutil.copytree(made[0].parent / "source", tmp_path / "source")
    labels = tmp_path / "source" / "labelsTr"
    before = {path: path.read_bytes() for path in labels.iterdir()}

    with pytest.raises(ConfigError, match="overwrite its own label map"):
        _predict(made[0], [tmp_path / "source"], labels, overwrite=True)

    assert {path: path.read_bytes() for path in labels.iterdir()} == before


def test_what_overwriting_some_cases_says_of_the_others_stays(
    made: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    run, images = made
    _predict(run, images, tmp_path)
    before = (tmp_path / RECORD).read_bytes()

    again = _predict(run, images[1:2], tmp_path, overwrite=True)

    assert again.facts["windows"]["run"] > 0
    assert (tmp_path / RECORD).read_bytes() == before


def test_a_case_that_is_left_out_keeps_no_prediction_of_another_command(
    made: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    run, images = made
    mine = [Path(shutil.copy(image, tmp_path)) for image in images[:2]]
    _predict(run, mine, tmp_path / "out", OTHER)
    mine[0].write_bytes(b"no image")

    result = _predict(run, mine, tmp_path / "out")

    assert result.exit_code == ExitCode.PARTIAL
    assert set(json.loads((tmp_path / "out" / RECORD).read_text())) == {mine[1].name}
    assert not list((tmp_path / "out").glob(f"{mine[0].name.removesuffix('.nii.gz')}*"))
    assert (tmp_path / "out" / mine[1].name).is_file()


def test_a_file_of_another_hand_stays_where_its_case_is_left_out(
    made: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    image, theirs = tmp_path / "a.nii.gz", tmp_path / "out" / "a.nii.gz"
    theirs.parent.mkdir()
    for path in (image, theirs):
        path.write_bytes(b"no image")

    result = _predict(made[0], [image], tmp_path / "out", overwrite=True)

    assert result.exit_code == ExitCode.INPUT
    assert theirs.read_bytes() == b"no image"


@pytest.mark.parametrize("written", ["probabilities", "label map"])
def test_files_of_two_commands_are_never_taken_for_one(
    made: tuple[Path, list[Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    written: str,
) -> None:
    """The second command is killed between a case's files, or between them and the record."""
    run, images = made
    first = replace(CONFIG, inference=replace(OTHER.inference, overlap=0.5))
    _predict(run, images[:1], tmp_path / "first", first)
    shutil.copytree(tmp_path / "first", tmp_path / "out")
    really = predicting._write

    def killed(*arguments: object) -> None:
        if written == "label map":
            really(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(predicting, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            _predict(run, images[:1], tmp_path / "out", OTHER)

    again = _predict(run, images[:1], tmp_path / "out", first)

    assert again.facts["windows"]["run"] > 0
    for path in (tmp_path / "first").glob("*.nii.gz"):
        made_anew = read_volume(tmp_path / "out" / path.name).voxels
        assert (made_anew == read_volume(path).voxels).all()


def test_a_command_that_was_killed_before_its_first_record_goes_on(
    made: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, images = made

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(predicting, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            _predict(run, images[:1], tmp_path / "out", OTHER)

    assert _predict(run, images[:1], tmp_path / "out", OTHER).exit_code == ExitCode.DONE
    assert json.loads((tmp_path / "out" / RECORD).read_text())[images[0].name]["runs"]
