"""The proof that one encoder serves four sets runs through on phantoms, and counts rightly."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mim3d.config.reading import read_config
from mim3d.config.verbs import FinetuneConfig, PretrainConfig
from mim3d.data.phantom import PhantomRule, make_cohort
from mim3d.models.presets import completed
from tests.small_benchmark import FINETUNE, PRETRAIN

SCRIPTS = Path(__file__).resolve().parents[3] / "benchmarks" / "spacing"
SPACINGS = {
    "hippocampus_msd": (1.0, 1.0, 1.0),
    "mouse_rtg4510": (0.15, 0.15, 0.15),
    "sts_ibsi": (1.0, 1.0, 3.3),
    "sts_ibsi_mr": (1.0, 1.0, 3.3),
}


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """Scripts import each other by name, as `python script.py` lets them."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])


@pytest.fixture
def four_sets(monkeypatch):
    import four_sets

    return four_sets


@pytest.fixture
def report():
    import four_sets_report

    return four_sets_report


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Phantoms in the folders of the four sets, and recipes that take seconds."""
    folder = tmp_path_factory.mktemp("four")
    for number, (name, spacing) in enumerate(SPACINGS.items()):
        rule = PhantomRule(shape=(22, 18, 14), spacing_mm=spacing, organs=1)
        make_cohort(folder / name, seed=number, training=3, validation=2, rule=rule)
    pretraining = "data: {store_weights: equal, crop_size: [16, 16, 12]}"
    (folder / "pretrain.yaml").write_text(
        PRETRAIN.replace("data: {crop_size: [16, 16, 12]}", pretraining)
    )
    for name in ("hippocampus", "mouse", "sarcoma"):
        (folder / f"{name}.yaml").write_text(FINETUNE)
    return folder


def test_one_pretraining_serves_the_sets_and_finished_work_stays(
    four_sets, data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(four_sets, "RECIPES", data)
    steps = ["hippocampus=2", "mouse=3"]
    line = ["--data", str(data), "--out", str(tmp_path), "--seeds", "0", "--pretrain_steps", "2",
            "--finetune_steps", *steps, "--sets", "hippocampus", "mouse"]  # fmt: skip

    four_sets.main(line)

    found = json.loads((tmp_path / "results.json").read_text())
    digests = {arm: {run["encoder_digest"] for run in found["runs"] if run["arm"] == arm}
               for arm in four_sets.ARMS}  # fmt: skip
    assert len(digests["four"]) == 1
    assert len(digests["own"]) == 2
    assert digests["scratch"] == {None}
    assert set(found["pretrain"]) == {"four-seed-0", "hippocampus-seed-0", "mouse-seed-0"}
    assert {(row["set"], row["arm"]) for row in found["rows"]} == {
        (name, arm) for name in ("hippocampus", "mouse") for arm in four_sets.ARMS
    }
    assert {row["step"] for row in found["rows"] if row["set"] == "mouse"} == {0, 1, 3}
    assert "served hippocampus, mouse" in capsys.readouterr().out

    runs = [*tmp_path.glob("*/*/log.jsonl"), *tmp_path.glob("*/*/*/log.jsonl")]
    before = {path: path.stat().st_mtime_ns for path in runs}
    assert len(before) == 9
    four_sets.main([*line, "--arms", "scratch"])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == found["rows"]


def test_arms_differ_in_where_their_encoder_comes_from_alone(four_sets, tmp_path):
    bench = four_sets.Bench(tmp_path, None, {}, 1)
    hippocampus, mouse = four_sets.SETS[:2]
    four, own = bench.pretraining(four_sets.SETS, 1), bench.pretraining([mouse], 1)
    scratch, tuned = (bench.finetuning(hippocampus, 1, init) for init in (None, tmp_path / "run"))

    assert (len(four.data.stores), four.data.store, four.data.store_weights) == (4, None, "equal")
    assert (own.data.stores, own.data.store_weights) == ((), None)
    assert own.data.store == str(tmp_path / "stores" / "mouse")
    for section in ("augmentation", "encoder", "objective", "optim", "training", "probes"):
        assert getattr(four, section) == getattr(own, section)
    assert scratch.encoder == four.encoder
    for section in ("data", "augmentation", "encoder", "decoder", "objective", "optim", "training"):
        assert getattr(scratch, section) == getattr(tuned, section)
    assert (scratch.init, tuned.init) == ("none", str(tmp_path / "run"))


def test_its_recipes_are_configs_whose_tokens_fit_their_crops(four_sets):
    encoder = read_config(four_sets.RECIPES / "pretrain.yaml", PretrainConfig).encoder
    crops = [
        read_config(four_sets.RECIPES / f"{cohort.recipe}.yaml", FinetuneConfig).data.crop_size
        for cohort in four_sets.SETS
    ]

    for crop in crops:
        assert all(side % patch == 0 for side, patch in zip(crop, encoder.patch, strict=True))
    complete = completed(encoder, channels=1, crop_size=crops[0], spacing_mm=(1.0, 1.0, 1.0))
    assert complete.positions == "rotary_mm"
    # From a mouse's token of 1.2 mm to beyond the widest crop of a thigh.
    assert encoder.wavelengths_mm[0] <= 2 * 0.15 * 8
    assert encoder.wavelengths_mm[1] >= 64 * 3.3


def test_a_lead_is_the_mean_over_seeds_and_cases_of_what_one_arm_has_more(report):
    random = np.random.default_rng(0)
    subjects = {"a": "one", "b": "one", "c": "two", "d": "three"}

    def runs() -> dict[int, dict[str, object]]:
        return {
            seed: {"dice": {"7": dict(zip(subjects, random.random(4), strict=True))},
                   "subjects": subjects}
            for seed in (0, 1, 2)
        }  # fmt: skip

    mine, others = runs(), runs()
    del others[2]

    lead = report.lead_of(mine, others, 7)

    differences = [
        mine[seed]["dice"]["7"][case] - others[seed]["dice"]["7"][case]
        for seed in (0, 1)
        for case in subjects
    ]
    assert lead.value == pytest.approx(np.mean(differences))
    assert lead.low < lead.value < lead.high
    assert lead.replicates == 2
    alone = report.lead_of(mine, None, 7)
    assert alone.value == pytest.approx(
        np.mean([list(run["dice"]["7"].values()) for run in mine.values()])
    )
