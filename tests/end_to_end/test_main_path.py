"""The commands one after the other, as a user types them, on a phantom cohort."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mim3d.cli.main import main
from mim3d.data.phantom import PhantomRule, make_cohort
from mim3d.foundation.errors import ExitCode
from mim3d.training.checkpoints import Checkpoints, read_weights

SMALL = PhantomRule(shape=(30, 26, 14), organs=1)
ENCODER = ["--encoder.preset", "tiny", "--encoder.depth", "4", "--encoder.patch", "4,4,2"]
CROP = ["--data.crop_size", "24,24,12"]
SHORT = ["--training.batch_size", "2", "--training.precision", "fp32", "--optim.lr", "2e-3"]
PRETRAINING = "data:\n  placement: body\n"
FINETUNING = "data:\n  placement: label\n"


class Walk:
    """Where everything of the walk lies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = folder / "cohort"
        self.store = folder / "store"
        self.pretrained = folder / "pretrained"
        self.tuned = folder / "tuned"
        self.predictions = folder / "predictions"
        self.results = folder / "results.json"


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    walk = Walk(tmp_path_factory.mktemp("walk"))
    make_cohort(walk.source, seed=1, training=4, validation=2, rule=SMALL)
    (walk.folder / "pretrain.yaml").write_text(PRETRAINING)
    (walk.folder / "finetune.yaml").write_text(FINETUNING)
    codes = [
        main(["prepare", str(walk.source), "--out", str(walk.store), "--workers", "0"]),
        main(["pretrain", str(walk.folder / "pretrain.yaml"), "--data.store", str(walk.store),
              "--out", str(walk.pretrained), "--training.steps", "6", *ENCODER, *CROP, *SHORT,
              "--training.pictures_every", "3"]),
        main(["finetune", str(walk.folder / "finetune.yaml"), "--data.store", str(walk.store),
              "--init", str(walk.pretrained), "--out", str(walk.tuned), "--training.steps", "60",
              "--decoder.name", "hybrid", *CROP, *SHORT]),
        main(["predict", str(walk.tuned), str(walk.source / "imagesVal"), "--out",
              str(walk.predictions)]),
        main(["evaluate", str(walk.predictions), str(walk.source / "labelsVal"), "--out",
              str(walk.results)]),
    ]  # fmt: skip
    assert codes == [ExitCode.DONE] * 5
    return walk


def test_the_walk_leaves_what_the_documents_promise(walk: Walk) -> None:
    store = {"cases", "manifest.json", "fingerprint.json", "contact_sheet.png"}
    run = {"config.yaml", "versions.json", "status.json", "preparation.json", "log.jsonl",
           "tensorboard", "checkpoints"}  # fmt: skip

    assert store <= {path.name for path in walk.store.iterdir()}
    assert run | {"pictures"} <= {path.name for path in walk.pretrained.iterdir()}
    assert run | {"results.json"} <= {path.name for path in walk.tuned.iterdir()}
    assert (walk.pretrained / "checkpoints" / "last").is_symlink()


def test_a_fine_tuning_starts_from_a_probe_where_nothing_is_said(walk: Walk) -> None:
    last = Checkpoints(walk.tuned / "checkpoints").find("last")
    assert last is not None

    assert "decoder.direct.linear.weight" in read_weights(last)[0]


def test_a_prediction_lies_on_its_inputs_grid_and_knows_the_organ(walk: Walk) -> None:
    images = sorted((walk.source / "imagesVal").glob("*.nii.gz"))
    dice = []
    for image in images:
        prediction = nibabel.load(walk.predictions / image.name)
        source = nibabel.load(image)
        truth = np.asarray(nibabel.load(walk.source / "labelsVal" / image.name).dataobj)

        assert prediction.shape == source.shape
        np.testing.assert_array_equal(prediction.affine, source.affine)
        found = np.asarray(prediction.dataobj) > 0
        dice.append(2 * (found & (truth > 0)).sum() / (found.sum() + (truth > 0).sum()))

    assert min(dice) > 0.5  # an untrained network is below 0.2


def test_the_results_are_those_of_a_slow_oracle(walk: Walk) -> None:
    results = json.loads(walk.results.read_text())
    names = {"organ 1": 1, "tumour": 2}

    assert len(results["cases"]) == 4
    for row in results["cases"]:
        name, value = f"{row['case_id']}.nii.gz", names[row["class"]]
        truth = np.asarray(nibabel.load(walk.source / "labelsVal" / name).dataobj) == value
        guess = np.asarray(nibabel.load(walk.predictions / name).dataobj) == value
        expected = 2 * (truth & guess).sum() / (truth.sum() + guess.sum())
        assert row["dice"] == pytest.approx(expected)


def test_the_same_commands_again_find_everything_done(
    walk: Walk, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in walk.predictions.glob("*.nii.gz")}

    again = main(["finetune", str(walk.folder / "finetune.yaml"), "--data.store", str(walk.store),
                  "--init", str(walk.pretrained), "--out", str(walk.tuned), "--training.steps",
                  "60", "--decoder.name", "hybrid", *CROP, *SHORT])  # fmt: skip
    predicted = main(["predict", str(walk.tuned), str(walk.source / "imagesVal"), "--out",
                      str(walk.predictions)])  # fmt: skip

    assert (again, predicted) == (ExitCode.DONE, ExitCode.DONE)
    assert "done" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_another_config_in_the_same_folder_is_refused_by_its_key(
    walk: Walk, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["finetune", str(walk.folder / "finetune.yaml"), "--data.store", str(walk.store),
                 "--init", str(walk.pretrained), "--out", str(walk.tuned), "--training.steps",
                 "61", "--decoder.name", "hybrid", *CROP, *SHORT])  # fmt: skip

    assert code == ExitCode.USAGE
    assert "training.steps" in capsys.readouterr().err


def test_finetuning_without_a_word_on_init_is_refused(
    walk: Walk, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["finetune", str(walk.folder / "finetune.yaml"), "--data.store", str(walk.store),
                 "--out", str(walk.folder / "none"), *CROP, *SHORT])  # fmt: skip

    assert code == ExitCode.USAGE
    assert "--init none" in capsys.readouterr().err
    assert not (walk.folder / "none").exists()


@pytest.mark.parametrize("patch", ["8,8,8", "16,16,16"])  # the second is the default, said aloud
def test_an_encoder_that_contradicts_the_run_is_refused(
    walk: Walk, patch: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["finetune", str(walk.folder / "finetune.yaml"), "--data.store", str(walk.store),
                 "--init", str(walk.pretrained), "--encoder.patch", patch,
                 "--out", str(walk.folder / "other"), *CROP, *SHORT])  # fmt: skip

    assert code == ExitCode.USAGE
    assert "encoder.patch" in capsys.readouterr().err


def test_pretrained_and_scratch_differ_in_the_encoder_they_start_from(walk: Walk) -> None:
    pretrained, _ = read_weights(_last(walk.pretrained))
    tuned, _ = read_weights(_last(walk.tuned))
    keys = [key for key in pretrained if key.startswith("encoder.")]

    assert keys
    assert {key for key in tuned if key.startswith("encoder.")} == set(keys)
    # Sixty steps at this rate move weights by less than they lie apart at random.
    near = [float((tuned[key] - pretrained[key]).abs().mean()) for key in keys if "qkv.w" in key]
    far = [float(pretrained[key].abs().mean()) for key in keys if "qkv.w" in key]
    assert sum(near) < 0.7 * sum(far)


def _last(run: Path) -> Path:
    found = Checkpoints(run / "checkpoints").find("last")
    assert found is not None
    return found


@pytest.mark.parametrize("verb", ["info", "doctor"])
def test_info_and_doctor_read_stores_and_runs(
    walk: Walk, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (walk.store, walk.pretrained, walk.tuned):
        assert main([verb, str(path)]) == ExitCode.DONE

    assert capsys.readouterr().out.strip()


def test_predicting_with_a_pretraining_run_says_what_to_do(
    walk: Walk, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["predict", str(walk.pretrained), str(walk.source / "imagesVal"), "--out",
                 str(walk.folder / "no")])  # fmt: skip

    assert code == ExitCode.INPUT
    assert "finetune" in capsys.readouterr().err
    assert not (walk.folder / "no").exists()


def test_a_damaged_input_is_named_and_the_others_are_predicted(
    walk: Walk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = tmp_path / "images"
    inputs.mkdir()
    good, bad = sorted((walk.source / "imagesVal").glob("*.nii.gz"))
    (inputs / good.name).write_bytes(good.read_bytes())
    (inputs / bad.name).write_bytes(bad.read_bytes()[:-400])

    code = main(["predict", str(walk.tuned), str(inputs), "--out", str(tmp_path / "out")])

    assert code == ExitCode.PARTIAL
    assert (tmp_path / "out" / good.name).is_file()
    assert not (tmp_path / "out" / bad.name).exists()
    said = capsys.readouterr()
    assert bad.name.removesuffix(".nii.gz") in said.out + said.err


def test_a_store_of_another_version_is_refused_with_the_command_to_run(
    walk: Walk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((walk.store / "manifest.json").read_text())
    manifest["format"] = 999
    store = tmp_path / "store"
    store.mkdir()
    (store / "manifest.json").write_text(json.dumps(manifest))

    code = main(["pretrain", str(walk.folder / "pretrain.yaml"), "--data.store", str(store),
                 "--out", str(tmp_path / "run"), *ENCODER, *CROP, *SHORT])  # fmt: skip

    assert code == ExitCode.INPUT
    assert "mim3d prepare" in capsys.readouterr().err


def test_pretraining_needs_no_labels(tmp_path: Path) -> None:
    make_cohort(tmp_path / "cohort", seed=2, training=0, validation=0, unlabelled=3, rule=SMALL)
    (tmp_path / "pretrain.yaml").write_text(PRETRAINING)

    codes = [
        main(["prepare", str(tmp_path / "cohort"), "--out", str(tmp_path / "store"),
              "--workers", "0"]),
        main(["pretrain", str(tmp_path / "pretrain.yaml"), "--data.store", str(tmp_path / "store"),
              "--out", str(tmp_path / "run"), "--training.steps", "2", *ENCODER, *CROP, *SHORT]),
    ]  # fmt: skip

    assert codes == [ExitCode.DONE, ExitCode.DONE]
