"""`evaluate` and `info` on predicted classes and numbers, from files to files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from archives import write_archive

from mim3d.config.inference import EvaluationConfig
from mim3d.config.verbs import EvaluateConfig
from mim3d.evaluation.predictions import Prediction, write_predictions
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.reporting import Silent
from mim3d.workflows.evaluate import evaluate
from mim3d.workflows.info import info

CONFIG = EvaluateConfig(evaluation=EvaluationConfig(resamples=30))


def label(case_id: str, *shares: float) -> Prediction:
    return Prediction(
        case_id, "label", float(np.argmax(shares)), {float(i): p for i, p in enumerate(shares)}
    )


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """A folder of `predictions.csv` of the test list of `a.npz`, whose labels are 2, 0, 1."""
    write_archive(tmp_path / "a.npz")
    rows = [label("test_00000", 0.125, 0.25, 0.625), label("test_00001", 0.375, 0.5, 0.125),
            label("test_00002", 0.25, 0.5, 0.25)]  # fmt: skip
    write_predictions(tmp_path / "out" / "predictions.csv", rows)
    return tmp_path


def test_an_archive_judges_the_predictions_of_its_list(cohort: Path) -> None:
    result = evaluate(
        str(cohort / "out"),
        str(cohort / "a.npz"),
        out=str(cohort / "results.json"),
        config=CONFIG,
        reporter=Silent(),
    )

    assert [path.name for path in result.files] == ["results.json", "results.csv", "results.png"]
    assert all(path.is_file() for path in result.files)
    summary = result.facts["targets"]["label"]["summary"]
    assert summary["accuracy"]["value"] == pytest.approx(2 / 3)
    # Of class 0 0.375 lies above both others, of class 1 0.5 above 0.25 and beside 0.5.
    assert summary["auc"]["value"] == pytest.approx((1 + 0.75 + 1) / 3)
    assert json.loads(result.files[0].read_text())["targets"] == result.facts["targets"]
    assert info(str(cohort / "results.json")).text == result.text


def test_the_file_itself_may_be_named_and_nothing_written(cohort: Path) -> None:
    before = sorted(cohort.rglob("*"))

    result = evaluate(str(cohort / "out" / "predictions.csv"), str(cohort / "a.npz"), config=CONFIG)

    assert result.files == ()
    assert "ROC-AUC" in result.text
    assert sorted(cohort.rglob("*")) == before


def test_several_targets_have_a_picture_each(tmp_path: Path) -> None:
    rows = [
        row
        for i in range(4)
        for row in (
            Prediction(f"c{i}", "a/b", float(i % 2), {0.0: 1 - i / 4, 1.0: i / 4}),
            Prediction(f"c{i}", "age", 10.0 * i),
        )
    ]
    write_predictions(tmp_path / "predictions.csv", rows)
    lines = [f"c{i},{i // 2},{11 * i}" for i in range(4)]
    (tmp_path / "labels.csv").write_text("\n".join(["case,target_a/b,target_age", *lines]))

    result = evaluate(
        str(tmp_path / "predictions.csv"),
        str(tmp_path / "labels.csv"),
        out=str(tmp_path / "r.json"),
        config=CONFIG,
    )

    assert [path.name for path in result.files[2:]] == ["r_a%2Fb.png", "r_age.png"]
    assert all(path.is_file() for path in result.files)


@pytest.mark.parametrize("out", ["out/predictions.json", "out/predictions.csv", "a.npz"])
def test_results_never_take_the_place_of_what_was_read(cohort: Path, out: str) -> None:
    content = (cohort / "out" / "predictions.csv").read_bytes()

    with pytest.raises(UserError, match="would take the place of|ends in `.json`"):
        evaluate(str(cohort / "out"), str(cohort / "a.npz"), out=str(cohort / out), config=CONFIG)

    assert (cohort / "out" / "predictions.csv").read_bytes() == content


@pytest.mark.parametrize("out", ["results.csv", "results.png", "results", "."])
def test_results_bear_the_name_of_json(cohort: Path, out: str) -> None:
    before = sorted(cohort.rglob("*"))

    with pytest.raises(ConfigError, match=r"expected a name that ends in `\.json`"):
        evaluate(str(cohort / "out"), str(cohort / "a.npz"), out=str(cohort / out), config=CONFIG)

    assert sorted(cohort.rglob("*")) == before


def test_cases_that_the_run_was_trained_on_are_noted(cohort: Path) -> None:
    record = {"test_00001": {"trained_on": True}, "test_00002": {"trained_on": False}}
    (cohort / "out" / "predictions.json").write_text(json.dumps(record))

    result = evaluate(str(cohort / "out"), str(cohort / "a.npz"), config=CONFIG)

    assert "note: 1 predictions are of cases the run was trained on" in result.text


def test_the_list_comes_from_the_config(cohort: Path) -> None:
    config = EvaluateConfig(evaluation=CONFIG.evaluation, part="validation")

    with pytest.raises(UserError, match="of the list validation"):
        evaluate(str(cohort / "out"), str(cohort / "a.npz"), config=config)
