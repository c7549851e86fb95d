"""Who is compared with whom: cases by name, whole lists, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from archives import write_archive
from preparing import config_with

from mim3d.config.inference import EvaluationConfig
from mim3d.data.prepare import prepare_store
from mim3d.evaluation.known import read_known
from mim3d.evaluation.predictions import Prediction, write_predictions
from mim3d.evaluation.target_pairs import evaluate_targets
from mim3d.foundation.errors import UserError
from mim3d.foundation.reporting import Silent

CONFIG = EvaluationConfig(resamples=20)
TRUTH = {"a": 0, "b": 1, "c": 1, "d": 0}
LABELS = """case,subject,list,target_ill,target_age,note
a,s1,validation,0,30.5,x
b,s1,validation,1,,x
c,s2,validation,1,70,x
d,s3,training,0,20,x
"""


class Heard(Silent):
    """Keeps what it is warned of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def ill(case_id: str, probability: float) -> Prediction:
    return Prediction(
        case_id, "ill", float(probability > 0.5), {0.0: 1 - probability, 1.0: probability}
    )


GUESSES = (ill("a", 0.25), ill("b", 0.75), ill("c", 0.375))


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text(LABELS)
    return path


def evaluated(labels: Path, *guesses: Prediction, **settings):
    path = write_predictions(labels.with_name("predictions.csv"), guesses)
    return evaluate_targets(path, labels, CONFIG, **settings)


def test_cases_meet_by_name_whatever_the_order(labels: Path) -> None:
    results = evaluated(labels, *reversed(GUESSES))

    assert {row.case_id: row.truth for row in results.judged} == {"a": 0, "b": 1, "c": 1}
    assert {row.case_id: row.predicted for row in results.judged} == {"a": 0, "b": 1, "c": 0}
    assert {row.case_id: row.subject for row in results.judged} == {"a": "s1", "b": "s1", "c": "s2"}
    assert results.judged[1].probabilities == (0.25, 0.75)
    assert results.class_scores["ill"].accuracy.value == pytest.approx(2 / 3)
    assert results.class_scores["ill"].auc.value == 1.0
    assert results.notes == ()


def test_the_whole_list_of_a_predicted_case_must_be_predicted(labels: Path) -> None:
    with pytest.raises(UserError, match=r"1 of 3 cases with a known `ill` have no .*: `c`"):
        evaluated(labels, *GUESSES[:2])
    with pytest.raises(UserError, match=r"1 of 4 .*: `c`"):
        evaluated(labels, *GUESSES[:2], ill("d", 0.1))


def test_a_missing_class_counts_as_wrong_and_a_missing_number_not(labels: Path) -> None:
    allowing = replace(CONFIG, allow_missing=True)
    path = write_predictions(
        labels.with_name("predictions.csv"), [*GUESSES[:2], Prediction("a", "age", 33.5)]
    )

    results = evaluate_targets(path, labels, allowing)

    scores = results.class_scores["ill"]
    assert scores.accuracy.value == pytest.approx(2 / 3)
    assert scores.classes[1].recall.value == 0.5
    # `c` loses against `a` for its own class, though `b` wins.
    assert scores.auc.value == pytest.approx(0.5)
    assert results.number_scores["age"].mae.value == 3.0
    assert (results.missing("ill"), results.missing("age")) == (1, 1)
    assert results.notes == (
        "1 cases without prediction of `ill` count as wrong: `c`",
        "1 cases without prediction of `age` are left out: `c`",
    )


def test_a_named_list_is_all_that_counts(labels: Path) -> None:
    heard = Heard()

    results = evaluated(labels, *GUESSES, ill("d", 0.9), part="validation", reporter=heard)

    assert {row.case_id for row in results.judged} == {"a", "b", "c"}
    assert heard.warnings == ["1 prediction(s) of `ill` without a label are left out: `d`"]
    with pytest.raises(UserError, match="of the list test"):
        evaluated(labels, *GUESSES, part="test")


def test_cases_whose_target_is_not_known_take_no_part(labels: Path) -> None:
    heard = Heard()
    ages = [Prediction(case_id, "age", 50.0) for case_id in "abc"]

    results = evaluated(labels, *ages, reporter=heard)

    assert [row.case_id for row in results.judged] == ["a", "c"]
    assert results.number_scores["age"].mae.value == pytest.approx((19.5 + 20) / 2)
    assert heard.warnings == ["1 prediction(s) of `age` without a label are left out: `b`"]


def test_a_true_class_that_the_predictions_do_not_know_is_refused(labels: Path) -> None:
    labels.write_text(LABELS.replace("c,s2,validation,1", "c,s2,validation,4"))

    with pytest.raises(UserError, match=r"`ill` is 4 in 1 case\(s\), .* know 0, 1"):
        evaluated(labels, *GUESSES)


def test_predictions_of_other_classes_are_not_mixed(labels: Path) -> None:
    other = Prediction("c", "ill", 2.0, {1.0: 0.5, 2.0: 0.5})

    with pytest.raises(UserError, match="do not all know the same classes"):
        evaluated(labels, *GUESSES[:2], other)


def test_a_target_or_cases_that_nothing_is_known_of_are_refused(labels: Path) -> None:
    with pytest.raises(UserError, match="`grade` is predicted and not known"):
        evaluated(labels, Prediction("a", "grade", 1.0))
    with pytest.raises(UserError, match=r"no prediction of `ill` is of a case"):
        evaluated(labels, ill("z", 0.5))


def test_store_archive_and_table_tell_the_same(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "a.npz")
    prepare_store(archive, tmp_path / "store", config_with())
    rows = zip(("train", "val", "test"), ([0, 1, 0, 1, 2], [1, 0], [2, 0, 1]), strict=True)
    expected = {
        f"{part}_{place:05d}": {"label": float(value)}
        for part, values in rows
        for place, value in enumerate(values)
    }
    lines = [f"{case},{case[:-6]},{row['label']:g}" for case, row in expected.items()]
    (tmp_path / "t.csv").write_text("\n".join(["case,list,target_label", *lines]))

    known = [read_known(tmp_path / name) for name in ("a.npz", "store", "t.csv")]

    for one in known:
        assert one.targets == expected
        assert one.names == ("label",)
        assert one.parts["val_00001"] == "validation"
        assert one.subjects["test_00002"] == "test_00002"


def test_a_table_of_images_names_its_cases_by_them(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    path.write_text("image,target_age\nscans/one.nii.gz,3\nscans/two.nrrd,4.5\n")

    assert read_known(path).targets == {"one": {"age": 3.0}, "two": {"age": 4.5}}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("absent.csv", None, "does not exist"),
        ("labels.nii", b"", "holds no targets"),
        ("folder", None, "is not a store"),
        ("t.csv", b"target_age\n3\n", "it needs the column `case`"),
        ("t.csv", b"case,target_age\na,3\na,4\n", "line 3 has the case `a` again"),
        ("t.csv", b"case,target_age\n,3\n", "line 2 has no `case`"),
        ("t.csv", b"case,target_age\na,old\n", "line 2 has `old` as `target_age`"),
    ],
)
def test_what_holds_no_targets_is_refused(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    (tmp_path / "folder").mkdir()
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(UserError, match=reason):
        read_known(tmp_path / name)


def test_labels_of_several_targets_are_scored_together(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, (20, 2))
    labels = tmp_path / "labels.csv"
    lines = [f"c{i},{a},{b}" for i, (a, b) in enumerate(truth.tolist())]
    labels.write_text("\n".join(["case,target_a,target_b", *lines]))
    wrong = {(3, 0), (3, 1), (7, 1)}
    guesses = [
        Prediction(f"c{i}", "ab"[t], guess, {0.0: 1 - guess, 1.0: guess})
        for i in range(20)
        for t in range(2)
        for guess in [float(truth[i, t] if (i, t) not in wrong else 1 - truth[i, t])]
    ]

    scores = evaluated(labels, *guesses).label_scores

    assert scores is not None
    assert scores.exact_match.value == pytest.approx(18 / 20)
    assert scores.accuracy.value == pytest.approx(37 / 40)
