"""The whole matrix on a phantom cohort: end to end, killed and continued, in shards, dry."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest
from small_benchmark import make_store, write_benchmark

from mim3d.cli.main import main
from mim3d.config.nodes import load
from mim3d.config.reading import read_config
from mim3d.config.verbs import BenchmarkConfig
from mim3d.data.splits import fold_of
from mim3d.data.store import open_store
from mim3d.evaluation.convergence import Record
from mim3d.foundation.errors import ConfigError, ExitCode, Interrupted, UserError
from mim3d.foundation.reporting import Silent
from mim3d.workflows.benchmark import benchmark
from mim3d.workflows.convergence import bench, follows, harness
from mim3d.workflows.convergence import report as written

ARMS = """\
  scratch: {}
  mae: {pretrain: {}}
  simmim: {pretrain: {objective: {name: simmim}}}
"""
TIMES = ("seconds",)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def source(tmp_path_factory, store):
    return write_benchmark(tmp_path_factory.mktemp("bench"), store, ARMS)


def run(source, out, reporter=None, dry_run=False, **settings):
    given = {f"convergence.{key}": value for key, value in settings.items()}
    config = read_config(source, BenchmarkConfig, given)
    return benchmark("convergence", source=str(source), out=str(out), config=config,
                     reporter=reporter or Silent(), dry_run=dry_run)  # fmt: skip


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """The folder of a benchmark that one process ran without a break."""
    out = tmp_path_factory.mktemp("whole")
    run(source, out)
    return out


def records(out: Path) -> dict[str, dict]:
    """What the records say, without what a clock said."""
    found = {}
    for path in sorted((out / "records").glob("*.json")):
        content = json.loads(path.read_text())
        for part in filter(None, (content, content["pretraining"])):
            for name in TIMES:
                part.pop(name)
        found[path.stem] = content
    return found


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


def read(run_folder):
    return load((run_folder / "config.yaml").read_text())


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


def test_a_finished_benchmark_runs_nothing_again(whole, source, monkeypatch):
    for name in ("pretrain", "finetune", "embedding_health"):
        monkeypatch.setattr(bench, name, lambda *a, **k: pytest.fail("ran again"))
    before = {path: path.read_bytes() for path in whole.glob("records/*.json")}

    result = run(source, whole)

    assert {path: path.read_bytes() for path in whole.glob("records/*.json")} == before
    assert result.facts["missing"] == 0


def test_two_shards_give_the_records_of_one_process(whole, source, tmp_path):
    first = run(source, tmp_path, shard="0/2")
    assert first.facts["missing"] == 3

    run(source, tmp_path, shard="1/2")

    assert records(tmp_path) == records(whole)


def test_a_report_is_read_and_written_while_no_other_command_does(
    whole, source, tmp_path, monkeypatch
):
    """Of two shards that end together, the one that read less could write last."""
    copytree(whole, tmp_path / "out")
    said, locked = [], []

    @contextlib.contextmanager
    def held(folder, name, *, tell):
        with real_held(folder, name, tell=tell) as lock:
            locked.append(folder / name)
            yield lock
        locked.clear()

    def noted(what, real):
        def call(*args, **settings):
            said.append((what, (tmp_path / "out" / harness.REPORT_LOCK).is_file(), len(locked)))
            return real(*args, **settings)

        return call

    real_held = harness.held
    monkeypatch.setattr(harness, "held", held)
    monkeypatch.setattr(harness, "_records", noted("read", harness._records))
    monkeypatch.setattr(written, "write_report", noted("write", written.write_report))

    run(source, tmp_path / "out")

    assert said == [("read", True, 1), ("write", True, 1)]
    assert not (tmp_path / "out" / harness.REPORT_LOCK).exists()


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


def test_two_processes_at_once_give_the_records_of_one(whole, store, tmp_path):
    """They start together, plan once, and the second arm's pre-training is needed by both."""
    text = "  scratch: {}\n  mae: {pretrain: {}}\n  again: {pretrain_of: mae}\n"
    source = write_benchmark(tmp_path / "bench", store, text, labels=[2])
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mim3d", "benchmark", "convergence", str(source), "--out",
               str(out)]  # fmt: skip
    both = [
        subprocess.Popen([*command, "--shard", f"{i}/2"], stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True)
        for i in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[0] for process in both]

    assert [process.returncode for process in both] == [0, 0], said
    alone, found = records(whole), records(out)
    assert found["scratch-labels2-0"] == alone["scratch-labels2-0"]
    assert found["mae-labels2-0"] == alone["mae-labels2-0"]
    assert found["again-labels2-0"] == {**alone["mae-labels2-0"], "arm": "again"}
    assert not list(out.rglob("lock.json*"))
    waits = [line for line in "".join(said).splitlines() if "waits: another process" in line]
    assert len(waits) == len(set(waits))


class StopsAt:
    """Sends the process a signal at one step of one run."""

    def __init__(self, run_name, step):
        self.run_name, self.step, self.is_sent = run_name, step, False

    def say(self, text):
        pass

    def warn(self, text):
        pass

    def progress(self, done, total, text):
        if not self.is_sent and text.startswith(f"{self.run_name}: ") and done >= self.step:
            self.is_sent = True
            os.kill(os.getpid(), 15)


def counted(monkeypatch):
    """Counts how often each run is begun."""
    begun = []
    for name in ("pretrain", "finetune"):
        real = getattr(bench, name)

        def workflow(config, *, out, reporter, _real=real):
            begun.append(Path(out).name)
            return _real(config, out=out, reporter=reporter)

        monkeypatch.setattr(bench, name, workflow)
    return begun


def test_a_kill_inside_runs_and_between_them_changes_no_record(
    whole, source, tmp_path, monkeypatch
):
    begun = counted(monkeypatch)
    with pytest.raises(Interrupted):  # inside the pre-training
        run(source, tmp_path, StopsAt("mae-seed0", 3))
    with pytest.raises(Interrupted):  # inside a fine-tuning
        run(source, tmp_path, StopsAt("mae-labels2-0", 12))
    real = bench.embedding_health
    monkeypatch.setattr(bench, "embedding_health", killed)
    with pytest.raises(KeyboardInterrupt):  # after a run, before its record
        run(source, tmp_path)
    monkeypatch.setattr(bench, "embedding_health", real)

    run(source, tmp_path)

    assert records(tmp_path) == records(whole)
    assert begun.count("scratch-labels2-0") == 1
    assert begun.count("mae-seed0") == 2
    assert begun.count("mae-labels2-0") == 2
    assert begun.count("simmim-seed0") == 2  # found done, not trained again
    assert begun.count("simmim-labels0.5-0") == 1


def killed(*arguments):
    raise KeyboardInterrupt


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


def test_a_shard_of_borrowers_alone_counts_the_pre_training_that_it_makes(store, tmp_path):
    text = "  scratch: {}\n  mae: {pretrain: {}}\n  again: {pretrain_of: mae}\n"
    source = write_benchmark(tmp_path / "bench", store, text, labels=[2])

    result = run(source, tmp_path / "out", dry_run=True, shard="2/3")

    todo = {name: arm["todo"] for name, arm in result.facts["arms"].items()}
    assert [todo[name]["finetunings"] for name in ("scratch", "mae", "again")] == [0, 0, 1]
    assert [todo[name]["pretrainings"] for name in ("scratch", "mae", "again")] == [0, 1, 0]


def test_an_arm_may_be_pre_trained_on_several_stores(store, tmp_path):
    """Beside the benchmark's own, which `convergence.store` gives to all others."""
    other = tmp_path / "other"
    copytree(store, other)
    text = f"  scratch: {{}}\n  mae: {{pretrain: {{data: {{stores: [{store}, {other}]}}}}}}\n"
    source = write_benchmark(tmp_path / "bench", store, text, labels=[2])

    run(source, tmp_path / "out", store=str(store))

    assert records(tmp_path / "out")["mae-labels2-0"]["dead"] is None


def test_what_is_done_is_left_out_of_a_dry_run(source, whole):
    result = run(source, whole, dry_run=True)

    assert all(sum(arm["todo"].values()) == 0 for arm in result.facts["arms"].values())


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


class Kills(Silent):
    """Ends the process where something is said."""

    def __init__(self, text):
        self.text = text

    def say(self, text):
        if self.text in text:
            raise KeyboardInterrupt


def test_more_pre_trainings_may_be_asked_for_in_the_same_folder(source, whole):
    # One replicate: it starts from number 0 whatever their number is.
    result = run(source, whole, dry_run=True, pretraining_seeds=2, replicates=2)

    assert result.facts["arms"]["mae"]["todo"]["pretrainings"] == 1
    assert result.facts["arms"]["mae"]["todo"]["finetunings"] == 2


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


def test_draws_that_cannot_be_made_are_refused_before_the_first_run(source, tmp_path):
    with pytest.raises(ConfigError, match=r"arm `scratch`: `data.labels` asks for 11 subjects"):
        run(source, tmp_path / "out", labels=[2, 11])

    assert not (tmp_path / "out").exists()


def test_processes_of_one_training_are_sent_to_shards(source, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError, match="this is one of 2") as caught:
        run(source, tmp_path / "out")

    assert "--shard" in caught.value.remedy


def test_without_anybody_to_judge_nothing_begins(tmp_path, monkeypatch, source):
    monkeypatch.setattr(
        "mim3d.workflows.convergence.trials.validation_cases", lambda store, data: ()
    )

    with pytest.raises(UserError, match="nobody judges"):
        run(source, tmp_path / "out")


def test_the_command_line_takes_file_folder_and_shard(source, whole, capsys):
    code = main(["benchmark", "convergence", str(source), "--out", str(whole), "--shard", "1/3",
                 "--dry_run"])  # fmt: skip

    assert code == ExitCode.DONE
    assert "2 of them in shard 1/3" in capsys.readouterr().out
    assert main(["benchmark", "convergence"]) == ExitCode.USAGE
    assert "needs a file that lists the arms" in capsys.readouterr().err


def test_runs_that_another_process_holds_come_last(source, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "BUSY_WAIT_SECONDS", 0.0)
    made, held = [], ["scratch-labels2-0", "scratch-labels2-0", "mae-labels2-0"]

    def make(self, trial):
        if trial.name in held:
            held.remove(trial.name)
            raise bench.Busy(trial.name)
        made.append(trial.name)
        return None

    monkeypatch.setattr(bench.Bench, "make", make)
    monkeypatch.setattr(harness, "_line", lambda record: "")

    said = []

    class Says(Silent):
        def say(self, text):
            said.append(text)

    run(source, tmp_path, Says())

    assert made[-2:] == ["mae-labels2-0", "scratch-labels2-0"]
    assert len(made) == 6
    # Though it waited twice.
    assert sum("scratch-labels2-0 waits: another process is at" in text for text in said) == 1
