"""The whole matrix on a phantom cohort, end to end: its records, draws, rates and reports."""

from __future__ import annotations

import json
from shutil import copytree

import pytest
from small_benchmark import ARMS, records, run, write_benchmark

from mim3d.config.nodes import load
from mim3d.evaluation.convergence import Record
from mim3d.workflows.convergence import bench


def read(run_folder):
    return load((run_folder / "config.yaml").read_text())


def test_every_arm_fraction_and_replicate_has_a_record_and_a_report(whole):
    found = records(whole)

    assert list(found) == [
        f"{arm}-labels{labels}-0" for arm in ("mae", "scratch", "simmim") for labels in (0.5, 2)
    ]
    for content in found.values():
        assert content["steps"] == [0, 10, 11, 12]
        assert len(content["cases"]) == len(content["case_subjects"]) == 2
        assert content["subjects"] == (2 if content["labels"] == "2" else 5)
    assert found["scratch-labels2-0"]["pretraining"] is None
    assert found["mae-labels2-0"]["pretraining"]["run"] == "mae-seed0"
    assert {"loss", "crops_rank"} <= set(found["mae-labels2-0"]["pretraining"]["facts"])
    assert found["mae-labels2-0"]["flop"] == found["scratch-labels2-0"]["flop"] > 0
    assert {path.name for path in whole.iterdir()} >= {
        "plan.json", "convergence.json", "convergence.csv", "convergence.md",
    }  # fmt: skip


def test_pre_trainings_cost_the_same_and_every_fine_tuning_has_the_same_recipe(whole):
    found = records(whole)

    paid = {name: found[f"{name}-labels2-0"]["pretraining"] for name in ("mae", "simmim")}
    a_step = paid["simmim"]["flop"] / paid["simmim"]["steps"]
    assert paid["mae"]["steps"] == 4
    assert paid["simmim"]["steps"] < 4  # it encodes every token
    assert abs(paid["simmim"]["flop"] - paid["mae"]["flop"]) <= a_step / 2
    configs = [read(whole / "finetune" / f"{arm}-labels2-0") for arm in ("scratch", "mae")]
    assert configs[0] | {"init": None} == configs[1] | {"init": None}


def test_draws_are_nested_in_a_replicate_and_the_same_for_every_arm(whole):
    drawn = {
        path.name: set(json.loads((path / "preparation.json").read_text())["trained_on"])
        for path in (whole / "finetune").iterdir()
    }

    for arm in ("scratch", "mae", "simmim"):
        assert drawn[f"{arm}-labels2-0"] < drawn[f"{arm}-labels0.5-0"]
        assert drawn[f"{arm}-labels2-0"] == drawn["scratch-labels2-0"]
    judged = set(records(whole)["mae-labels2-0"]["cases"])
    assert not judged & set().union(*drawn.values())


def test_rates_are_chosen_without_a_look_at_the_validation_list(source, whole, tmp_path):
    judged = set(records(whole)["mae-labels2-0"]["cases"])

    run(source, tmp_path, rates=(0.002, 0.02), labels=(2,), shard="0/3")

    for path in (tmp_path / "tune").iterdir():
        looked_at = set(json.loads((path / "curve.json").read_text())["subjects"])
        trained_on = set(json.loads((path / "preparation.json").read_text())["trained_on"])
        assert looked_at
        assert not looked_at & (judged | trained_on)
    rate = json.loads((tmp_path / "plan.json").read_text())["rates"]["scratch"]
    assert rate["dice"][str(rate["lr"])] == max(rate["dice"].values())
    assert records(tmp_path)["scratch-labels2-0"]["lr"] == rate["lr"]


def test_the_record_holds_what_the_run_logged(whole):
    record = Record.from_json(json.loads((whole / "records/mae-labels2-0.json").read_text()))
    lines = [json.loads(line) for line in
             (whole / "finetune/mae-labels2-0/log.jsonl").read_text().splitlines()]  # fmt: skip
    logged = [line for line in lines if line["kind"] == "validation"]

    assert [line["step"] for line in logged] == list(record.steps)
    # Two organs that every case has: the mean over structures of means over cases is the mean.
    for line, row in zip(logged, record.dice, strict=True):
        assert sum(row) / len(row) == pytest.approx(line["dice"], abs=1e-12)
    assert record.zeroed == logged[-1]["dice_encoder_zeroed"]
    assert 0 < record.seconds < logged[-1]["time"] - logged[0]["time"]


def test_an_arm_may_be_pre_trained_on_several_stores(store, tmp_path):
    """Beside the benchmark's own, which `convergence.store` gives to all others."""
    other = tmp_path / "other"
    copytree(store, other)
    text = f"  scratch: {{}}\n  mae: {{pretrain: {{data: {{stores: [{store}, {other}]}}}}}}\n"
    source = write_benchmark(tmp_path / "bench", store, text, labels=[2])

    run(source, tmp_path / "out", store=str(store))

    assert records(tmp_path / "out")["mae-labels2-0"]["dead"] is None


def test_the_report_measures_against_the_arm_that_is_named(store, source, whole, tmp_path):
    out = tmp_path / "out"
    copytree(whole, out)
    text = ARMS.replace("scratch: {}", "plain: {}\n  scratch: {}").replace(
        "mae: {", "mae: {against: scratch, "
    )
    path = write_benchmark(tmp_path / "named", store, text)

    run(path, out, shard="11/12")

    content = json.loads((out / "convergence.json").read_text())
    assert content["reference"] == "plain"
    against = {record["arm"]: record["against"] for record in content["records"]}
    assert against["mae"] == "scratch"
    assert against["scratch"] is None


def test_benchmarks_that_share_arms_share_their_runs_and_have_reports_of_their_own(
    store, whole, tmp_path, monkeypatch
):
    """Nothing is trained: what the second asks for is there."""
    out, folder = tmp_path / "out", tmp_path / "reports" / "fewer"
    copytree(whole, out)
    path = write_benchmark(tmp_path / "fewer", store, "  scratch: {}\n  mae: {pretrain: {}}\n")
    monkeypatch.setattr(bench, "finetune", None)

    result = run(path, out, report=str(folder))

    assert all(file.parent == folder for file in result.files)
    content = json.loads((folder / "convergence.json").read_text())
    assert set(content["arms"]) == {"scratch", "mae"}
    assert (out / "convergence.md").read_text() == (whole / "convergence.md").read_text()
