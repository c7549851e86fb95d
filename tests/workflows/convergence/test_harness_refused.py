"""What a folder that was begun lets change, and what is refused before the first run."""

from __future__ import annotations

import json

import pytest
from small_benchmark import ARMS, make_store, records, run, write_benchmark

from mim3d.data.splits import fold_of
from mim3d.data.store import open_store
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.reporting import Silent
from mim3d.workflows.convergence import follows


class Kills(Silent):
    """Ends the process where something is said."""

    def __init__(self, text):
        self.text = text

    def say(self, text):
        if self.text in text:
            raise KeyboardInterrupt


def test_a_changed_arm_is_refused_and_a_further_one_is_planned(source, store, whole, tmp_path):
    changed = ARMS.replace("pretrain: {}", "pretrain: {optim: {lr: 0.5}}")
    path = write_benchmark(tmp_path, store, changed)
    more = write_benchmark(tmp_path / "more", store, ARMS + "  long: {total_time_of: mae}\n")

    with pytest.raises(ConfigError, match=r"arm `mae` was planned with other.*`pretrain.optim.lr`"):
        run(path, whole)
    result = run(more, whole, dry_run=True)

    plan = result.facts["arms"]
    paid = plan["mae"]["pretrain"]["steps"] * plan["mae"]["pretrain"]["seconds_a_step"]
    a_step = plan["mae"]["finetune"]["seconds_a_step"]
    assert plan["long"]["finetune"]["steps"] == 12 + round(paid / a_step)


def test_an_arm_without_a_run_may_be_changed(source, store, tmp_path):
    out = tmp_path / "out"
    plain = write_benchmark(tmp_path / "plain", store, ARMS)
    rated = write_benchmark(tmp_path / "rated", store, ARMS, rates=[0.1, 0.2])
    with pytest.raises(KeyboardInterrupt):
        run(rated, out, Kills("2 fine-tunings"), labels=(2,), shard="0/2")
    assert json.loads((out / "plan.json").read_text())["arms"]["mae"]["settings"]["rates"]

    run(plain, out, Silent(), labels=(2,), shard="0/3")  # of scratch alone

    assert set(records(out)) == {"scratch-labels2-0"}
    with pytest.raises(ConfigError, match=r"arm `scratch` .*`rates`.*`finetune/scratch-labels2-0`"):
        run(rated, out, labels=(2,))


def test_another_store_under_the_same_name_is_refused(source, whole, monkeypatch):
    real = follows.store_signs
    monkeypatch.setattr(follows, "store_signs", lambda path: {**real(path), "cases": "others"})

    with pytest.raises(ConfigError, match="holds other cases or another preparation than when"):
        run(source, whole)


def test_an_empty_fold_is_refused_with_the_line_that_works(tmp_path):
    store = make_store(tmp_path, subjects=6)
    source = write_benchmark(tmp_path, store, ARMS)
    there = open_store(store)
    filled = sorted({fold_of(there.subject(case)) for case in there.cases})
    assert 0 < len(filled) < 5

    with pytest.raises(UserError, match="of 5 is empty") as caught:
        run(source, tmp_path / "out", folds=(0, 1, 2, 3, 4), replicates=10, dry_run=True)

    line = f"--convergence.folds {','.join(map(str, filled))} --convergence.replicates "
    assert line + f"{2 * len(filled)}`" in caught.value.remedy


def test_draws_that_cannot_be_made_are_refused_before_the_first_run(source, store, tmp_path):
    with pytest.raises(ConfigError, match=r"`convergence.labels` has 11, and 10 subjects") as error:
        run(source, tmp_path / "out", labels=[2, 11])

    assert error.value.where == f"`{store}`"
    assert error.value.remedy == "numbers from 1 to 10, or fractions such as 0.1"
    assert not (tmp_path / "out").exists()


def test_subjects_that_choose_a_rate_are_not_there_to_be_drawn(source, store, tmp_path):
    with pytest.raises(ConfigError, match=r"`convergence.labels` has 9, and 8 subjects") as error:
        run(source, tmp_path / "out", labels=[9, 10], rates=[0.1])

    assert "a fifth of the 10 chooses among `convergence.rates`" in error.value.what
    assert "from 1 to 8 for the first" in error.value.remedy


@pytest.mark.parametrize(
    "change", [{"labels": (1.5,)}, {"folds": (7,)}, {"points": 1}, {"replicates": 0}]
)
def test_a_setting_out_of_range_is_named_as_it_was_typed_and_blames_no_arm(
    source, tmp_path, change
):
    with pytest.raises(ConfigError) as caught:
        run(source, tmp_path / "out", **change)

    told = str(caught.value)
    assert f"convergence.{next(iter(change))}" in told
    assert "arm `" not in told
    assert "data." not in told
    assert caught.value.remedy


def test_without_anybody_to_judge_nothing_begins(tmp_path, monkeypatch, source):
    monkeypatch.setattr(
        "mim3d.workflows.convergence.judges.validation_cases", lambda store, data: ()
    )

    with pytest.raises(UserError, match="nobody judges"):
        run(source, tmp_path / "out")


def test_processes_of_one_training_are_sent_to_shards(source, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError, match="this is one of 2") as caught:
        run(source, tmp_path / "out")

    assert "--shard" in caught.value.remedy
