"""What a dry run of the matrix says is still to do."""

from __future__ import annotations

from small_benchmark import run, write_benchmark

from mim3d.cli.main import main
from mim3d.foundation.errors import ExitCode


def test_a_dry_run_prints_runs_steps_work_and_time_and_writes_nothing(source, tmp_path):
    result = run(source, tmp_path / "out", dry_run=True)

    assert not (tmp_path / "out").exists()
    assert "6 fine-tunings: 3 arms x labels 2, 0.5 x 1 replicates" in result.text
    assert "judged at steps 0, 10, 11, 12: scratch, mae, simmim" in result.text
    assert "| mae | 4 |" in result.text
    assert result.facts["runs"] == 6
    assert result.facts["arms"]["mae"]["todo"]["pretrainings"] == 1
    assert result.facts["arms"]["scratch"]["todo"]["finetunings"] == 2
    assert result.facts["seconds"] > 0


def test_a_dry_run_names_arms_whose_whole_steps_miss_the_budget(store, tmp_path):
    steps = "  mae: {pretrain: {training: {steps: 1}}}\n"
    text = "  scratch: {}\n" + steps + "  simmim: {pretrain: {objective: {name: simmim}}}\n"
    source = write_benchmark(tmp_path / "bench", store, text, labels=[2])

    result = run(source, tmp_path / "out", dry_run=True)

    plan = {name: arm["pretrain"] for name, arm in result.facts["arms"].items() if arm["pretrain"]}
    assert plan["mae"]["steps"] == plan["simmim"]["steps"] == 1
    factor = plan["simmim"]["flop_a_step"] / plan["mae"]["flop_a_step"]
    assert factor > 1.05
    assert f"off that budget: `simmim` {factor:.3g} times that in flop (1 step)" in result.text


def test_what_is_done_is_left_out_of_a_dry_run(source, whole):
    result = run(source, whole, dry_run=True)

    assert all(sum(arm["todo"].values()) == 0 for arm in result.facts["arms"].values())


def test_a_shard_of_borrowers_alone_counts_the_pre_training_that_it_makes(store, tmp_path):
    text = "  scratch: {}\n  mae: {pretrain: {}}\n  again: {pretrain_of: mae}\n"
    source = write_benchmark(tmp_path / "bench", store, text, labels=[2])

    result = run(source, tmp_path / "out", dry_run=True, shard="2/3")

    todo = {name: arm["todo"] for name, arm in result.facts["arms"].items()}
    assert [todo[name]["finetunings"] for name in ("scratch", "mae", "again")] == [0, 0, 1]
    assert [todo[name]["pretrainings"] for name in ("scratch", "mae", "again")] == [0, 1, 0]


def test_more_pre_trainings_may_be_asked_for_in_the_same_folder(source, whole):
    # One replicate: it starts from number 0 whatever their number is.
    result = run(source, whole, dry_run=True, pretraining_seeds=2, replicates=2)

    assert result.facts["arms"]["mae"]["todo"]["pretrainings"] == 1
    assert result.facts["arms"]["mae"]["todo"]["finetunings"] == 2


def test_the_command_line_takes_file_folder_and_shard(source, whole, capsys):
    code = main(["benchmark", "convergence", str(source), "--out", str(whole), "--shard", "1/3",
                 "--dry_run"])  # fmt: skip

    assert code == ExitCode.DONE
    assert "2 of them in shard 1/3" in capsys.readouterr().out
    assert main(["benchmark", "convergence"]) == ExitCode.USAGE
    assert "needs a file that lists the arms" in capsys.readouterr().err
