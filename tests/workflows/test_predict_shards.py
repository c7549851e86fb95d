"""Several commands that predict into one folder together leave what one command alone would."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from preparing import all_files

from mim3d.config.inference import InferenceConfig
from mim3d.config.verbs import PredictConfig
from mim3d.data.cohort import Case
from mim3d.evaluation.predictions import NAME, Prediction, read_predictions
from mim3d.foundation import claims as claims_module
from mim3d.foundation.errors import ConfigError, ExitCode, UserError
from mim3d.foundation.randomness import generator
from mim3d.foundation.reporting import Silent
from mim3d.foundation.shard import asked_shard
from mim3d.workflows import predict as predicting
from mim3d.workflows import predict_answers as answering
from mim3d.workflows.predict import predict
from mim3d.workflows.prediction_jobs import RECORD, Asked, Job
from mim3d.workflows.result import Result
from tests.reliability.killing import Child, Death, Say, life
from tests.reliability.workbench import make_segmenter

CONFIG = PredictConfig(pictures=False, device="cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run, and the images of five cases."""
    source, run = make_segmenter(tmp_path_factory.mktemp("made"))
    images = sorted((source / "imagesTr").glob("*.nii.gz"))
    fifth = source / "again.nii.gz"
    shutil.copy(images[0], fifth)
    return run, [str(path) for path in (*images, fifth)]


@pytest.fixture(scope="module")
def alone(
    made: tuple[Path, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """All files of one command."""
    out = tmp_path_factory.mktemp("alone") / "out"
    run_shard(made, out, None)
    return all_files(out)


def run_shard(made: tuple[Path, list[str]], out: Path, shard: str | None, **more: bool) -> Result:
    config = replace(CONFIG, shard=shard)
    return predict(str(made[0]), made[1], out=str(out), config=config, reporter=Silent(), **more)


def in_child(made: tuple[Path, list[str]], out: Path, shard: str, say: Say) -> None:
    """Says which cases it has predicted and noted."""
    torch.set_num_threads(1)
    really = predicting.leave_note

    def leave_note(asked, job, note):
        really(asked, job, note)
        if note.key:
            say(job.case.case_id)

    predicting.leave_note = leave_note
    claims_module.LOOK_SECONDS = 0.02
    run_shard(made, out, shard)


@pytest.mark.parametrize("order", ["0", "201", "5231604"])
def test_shards_of_any_number_in_any_order_leave_what_one_command_does(
    made: tuple[Path, list[str]], alone: dict[str, bytes], tmp_path: Path, order: str
) -> None:
    results = [run_shard(made, tmp_path / "out", f"{i}/{len(order)}") for i in order]

    assert all_files(tmp_path / "out") == alone
    assert not (tmp_path / "out/shards").exists()
    assert [one.exit_code for one in results] == [ExitCode.DONE] * len(order)
    assert sum(one.facts["predicted"] for one in results) == 5
    assert [one.facts["left"] for one in results][-1] == 0
    assert results[-1].text.endswith("is done: 5 of all 5 cases are there")


def test_shards_at_the_same_time_predict_no_case_twice_and_killed_ones_lose_nothing(
    made: tuple[Path, list[str]], alone: dict[str, bytes], tmp_path: Path
) -> None:
    """The same shard twice, and shards of other numbers; two are killed, and run again."""
    whole = life(partial(in_child, made, tmp_path / "whole", "0/2"))
    random = generator(20261122, "killed-predictions")
    for trial in range(2):
        out, said = tmp_path / f"out{trial}", list[str]()
        for _ in range(2):
            children = [
                Child(
                    partial(in_child, made, out, shard),
                    Death(int(random.integers(whole.operations))) if is_killed else None,
                )
                for shard, is_killed in (("0/2", True), ("1/2", True), ("2/5", False))
            ]
            lives = [child.wait() for child in children]
            assert [one.fault for one in lives] == [None] * 3
            said += [word for one in lives for word in one.said]
        children = [Child(partial(in_child, made, out, f"{i}/2")) for i in (0, 1, 1)]
        lives = [child.wait() for child in children]
        said += [word for one in lives for word in one.said]

        assert [one.fault for one in lives] == [None] * 3
        assert len(said) == len(set(said)), trial
        assert all_files(out) == alone, trial


def test_a_command_alone_takes_over_what_killed_shards_noted(
    made: tuple[Path, list[str]], alone: dict[str, bytes], tmp_path: Path, monkeypatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(predicting._Work, "result", killed)
        patch.setattr(predicting, "take_notes", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            run_shard(made, tmp_path / "out", "1/2")
    assert not (tmp_path / "out" / RECORD).exists()
    assert len(list((tmp_path / "out/shards").glob("note-*"))) == 2

    predicted = []
    really = predicting._Work._predict
    monkeypatch.setattr(
        predicting._Work, "_predict",
        lambda self, job: predicted.append(job.case.case_id) or really(self, job),
    )  # fmt: skip
    run_shard(made, tmp_path / "out", None)

    assert len(predicted) == 3
    found = all_files(tmp_path / "out")
    # The record alone is in another order: what was noted comes first.
    assert json.loads(found.pop(RECORD)) == json.loads(alone[RECORD])
    assert found == {name: alone[name] for name in alone if name != RECORD}


def test_a_damaged_note_costs_its_case_alone(
    made: tuple[Path, list[str]], alone: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_shard(made, out, "0/2")
    (out / "shards").mkdir()
    (out / "shards/note-x.json").write_text('{"name": "x.nii.gz"')

    run_shard(made, out, "1/2")

    assert all_files(out) == alone


def test_each_shard_ends_by_its_own_refusals(made: tuple[Path, list[str]], tmp_path: Path) -> None:
    run, images = made
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no image")
    mine = (run, [images[0], str(broken), images[1]])

    codes = [run_shard(mine, tmp_path / "out", f"{i}/4").exit_code for i in range(4)]

    assert codes == [ExitCode.DONE, ExitCode.INPUT, ExitCode.DONE, ExitCode.DONE]
    assert len(json.loads((tmp_path / "out" / RECORD).read_text())) == 2
    assert run_shard(mine, tmp_path / "out", "3/4").facts["left"] == 1


def test_a_shard_lists_its_own_and_empties_nothing(
    made: tuple[Path, list[str]], tmp_path: Path
) -> None:
    listed = [run_shard(made, tmp_path / "out", f"{i}/3", dry_run=True).text for i in range(3)]

    assert [text.count(".nii.gz") for text in listed] == [2, 2, 1]
    with pytest.raises(ConfigError, match="--overwrite would remove"):
        run_shard(made, tmp_path / "out", "0/3", overwrite=True)
    assert not (tmp_path / "out").exists()


def test_a_case_that_a_shard_leaves_out_keeps_no_prediction_of_another_setting(
    made: tuple[Path, list[str]], tmp_path: Path
) -> None:
    run, images = made
    mine = (run, [shutil.copy(image, tmp_path) for image in images[:2]])
    other = replace(CONFIG, inference=InferenceConfig(overlap=0.0))
    predict(str(run), mine[1], out=str(tmp_path / "out"), config=other, reporter=Silent())
    Path(mine[1][0]).write_bytes(b"no image")

    results = [run_shard(mine, tmp_path / "out", f"{i}/2") for i in range(2)]

    assert [one.exit_code for one in results] == [ExitCode.INPUT, ExitCode.DONE]
    kept = {Path(mine[1][1]).name}
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == kept
    assert set(json.loads((tmp_path / "out" / RECORD).read_text())) == kept
    assert results[1].facts["left"] == 1


class Classifying(answering._Work):
    """Answers of whole volumes without a network."""

    def _predict(self, job: Job, channels: tuple[str, ...]) -> list[Prediction]:
        number = int(job.case.case_id[-1])
        if number == 3:
            raise UserError("it is broken", code="broken")
        third = 1 / (3 + number)
        return [
            Prediction(job.case.case_id, "label", 1.0, {0.0: third, 1.0: 1 - third}),
            Prediction(job.case.case_id, "age", third),
        ]


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Answers for some of five cases into one folder, as a shard or alone."""
    monkeypatch.setattr(answering, "settings_of", lambda *_: {"runs": ["one"]})
    paths = [tmp_path / f"case_{number}.nii.gz" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]))

    def run(out: Path, shard: str | None) -> Result:
        jobs = [Job(Case(p.name[:6], p.name[:6], (p,)), out / p.name) for p in paths]
        which = asked_shard(shard)
        mine = jobs if which is None else which.share(jobs)
        asked = Asked(["run"], mine, out, CONFIG, Silent(), shard=which, everyone=jobs)
        out.mkdir(exist_ok=True)
        return Classifying(asked, [], set()).run()

    return run


@pytest.mark.parametrize("order", ["0", "10", "3021"])
def test_answers_of_shards_are_the_two_files_of_one_command(
    answer: Callable[..., Result], tmp_path: Path, order: str
) -> None:
    one = answer(tmp_path / "one", None)
    results = [answer(tmp_path / "out", f"{i}/{len(order)}") for i in order]

    assert all_files(tmp_path / "out") == all_files(tmp_path / "one")
    assert one.exit_code == ExitCode.PARTIAL
    assert [result.facts["left"] for result in results][-1] == 1
    assert sum(len(result.facts["refused"]) for result in results) == 1
    rows = read_predictions(tmp_path / "out" / NAME)
    assert rows[0].probabilities == {0.0: 1 / 3, 1.0: 1 - 1 / 3}
    assert [row.case_id[-1] for row in rows] == list("00112244")


def test_an_input_that_became_broken_leaves_the_answers_of_all_shards(
    answer: Callable[..., Result], tmp_path: Path, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            Classifying, "_predict",
            lambda self, job, _: [Prediction(job.case.case_id, "age", 1.5)],
        )  # fmt: skip
        for i in range(2):
            answer(tmp_path / "out", f"{i}/2")
    assert len(read_predictions(tmp_path / "out" / NAME)) == 5
    (tmp_path / "case_3.nii.gz").write_bytes(b"other")

    again = answer(tmp_path / "out", "1/2")

    assert again.exit_code == ExitCode.PARTIAL
    kept = read_predictions(tmp_path / "out" / NAME)
    assert [row.case_id[-1] for row in kept] == list("0124")
    assert set(json.loads((tmp_path / "out" / RECORD).read_text())) == {r.case_id for r in kept}


def test_answers_of_another_hand_are_not_replaced(
    answer: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / NAME).write_text("case,target_age\nx,3\n")

    with pytest.raises(ConfigError, match=NAME):
        answer(tmp_path / "out", None)

    assert (tmp_path / "out" / NAME).read_text() == "case,target_age\nx,3\n"


def test_answers_that_a_killed_command_wrote_before_its_record_are_made_anew(
    answer: Callable[..., Result], tmp_path: Path, monkeypatch
) -> None:
    really = answering.write_predictions

    def killed(*arguments: object) -> None:
        really(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(answering, "write_predictions", killed)
        with pytest.raises(KeyboardInterrupt):
            answer(tmp_path / "out", None)

    assert answer(tmp_path / "out", None).facts["predicted"] == 4
    assert len(json.loads((tmp_path / "out" / RECORD).read_text())) == 4
