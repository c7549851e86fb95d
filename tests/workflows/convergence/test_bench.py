"""One run at a time, on workflows that only pretend: what is dead, tuned and shared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_logs import write_log

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import ProbesConfig
from mim3d.config.training import TrainingConfig
from mim3d.config.verbs import ConvergenceConfig, FinetuneConfig, PretrainConfig
from mim3d.evaluation.convergence import Record
from mim3d.foundation.errors import ConfigError, Interrupted, StoppedError, UserError
from mim3d.foundation.reporting import Silent
from mim3d.foundation.versions import versions
from mim3d.training.run import Run
from mim3d.workflows.convergence import bench as module
from mim3d.workflows.convergence.about import about
from mim3d.workflows.convergence.arms import Arm
from mim3d.workflows.convergence.bench import (
    Bench,
    Busy,
    last_numbers,
    machine_name,
    made_by,
    training_seconds,
)
from mim3d.workflows.convergence.plan import ArmPlan, Cost, Plan, read_plan
from mim3d.workflows.convergence.trials import Trial, all_trials, check_starts
from mim3d.workflows.result import Result

UNTRAINED = {"untrained_rank": 7.0, "untrained_spread": 0.3, "untrained_cosine": 0.9}
ALIVE = {"crops_rank": 7.0, "crops_spread": 0.3, "crops_cosine": 0.9, **UNTRAINED}
DEAD = {"crops_rank": 1.2, "crops_spread": 0.001, "crops_cosine": 0.9999, **UNTRAINED}
ALIKE = {"crops_rank": 1.7, "crops_spread": 0.04, "crops_cosine": 0.9986, **UNTRAINED}


class Fakes:
    """Workflows that write a curve and nothing else."""

    def __init__(self):
        self.begun: list[str] = []
        self.configs: dict = {}
        self.raises: dict[str, list[Exception]] = {}
        self.dice: dict[str, float] = {}
        self.start = 0.0
        self.health: dict[str, dict] = {}

    def _begin(self, config, out):
        name = Path(out).name
        self.begun.append(name)
        self.configs[name] = config
        Path(out).mkdir(parents=True, exist_ok=True)
        if self.raises.get(name):
            raise self.raises[name].pop(0)
        return name

    def pretrain(self, config, *, out, reporter):
        self._begin(config, out)
        return Result("", {"loss": 0.5, "validation": {"probes": {"probe_r2": 0.25}}})

    def finetune(self, config, *, out, reporter):
        folder = Path(out)
        curve = {"subjects": {"b": "two", "a": "one"}, "dice": {"0": {"a": 0.0, "b": 0.0}}}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "curve.json").write_text(json.dumps(curve))
        name = self._begin(config, out)
        end = self.dice.get(name, 0.75)
        curve["dice"]["0"] = dict.fromkeys("ab", self.start)
        curve["dice"]["100"] = {"a": end, "b": end / 2}
        curve["zeroed"] = {"b": 0.25, "a": 0.125}
        (folder / "curve.json").write_text(json.dumps(curve))
        numbers = {"dice": end, "dice_encoder_zeroed": 0.125}
        return Result("", {"validation": {"validation": numbers}, "training_subjects": 3})


@pytest.fixture
def fakes(monkeypatch):
    fakes = Fakes()
    monkeypatch.setattr(module, "pretrain", fakes.pretrain)
    monkeypatch.setattr(module, "finetune", fakes.finetune)
    monkeypatch.setattr(module, "subjects_drawn", lambda data, replicate: 3)
    monkeypatch.setattr(
        module, "embedding_health", lambda config, run: fakes.health.get(run.name, ALIVE)
    )
    return fakes


def bench_in(out, **settings):
    tuned = FinetuneConfig(init="none")
    # A seed of its own for the pre-training would show in nothing; a width does.
    mae = PretrainConfig(encoder=EncoderConfig(width=24))
    arms = [
        Arm("scratch", "scratch", tuned),
        Arm("mae", "masked", tuned, mae, "mae"),
        Arm("other", "masked", tuned, None, "mae"),
    ]
    cost, before = Cost(100, 2e9, 0.5), Cost(40, 6e9, 0.7)
    arms = [replace(arm, against="scratch") if arm.before else arm for arm in arms]
    plans = {arm.name: ArmPlan(before if arm.pretrain else None, cost, (0, 100), 1.0, {})
             for arm in arms}  # fmt: skip
    config = ConvergenceConfig(**{"labels": (0.1, 5), "replicates": 4, **settings})
    return Bench({arm.name: arm for arm in arms}, config, Plan(plans), Path(out), Silent())


def test_a_record_tells_what_was_run_and_what_was_paid(tmp_path, fakes):
    bench = bench_in(tmp_path, pretraining_seeds=3)

    record = bench.make(Trial("mae", 0.1, 3, None))

    assert (record.arm, record.labels, record.subjects, record.replicate) == ("mae", "0.1", 3, 3)
    assert (record.cases, record.case_subjects) == (("a", "b"), ("one", "two"))
    assert (record.steps, record.dice) == ((0, 100), ((0.0, 0.0), (0.75, 0.375)))
    assert (record.zeroed, record.flop, record.kind, record.dead) == (0.125, 2e11, "masked", None)
    paid = record.pretraining
    assert (paid.run, paid.method, paid.seed) == ("mae-seed0", "mae", 0)
    assert (paid.steps, paid.flop) == (40, 2.4e11)
    assert paid.facts == {"loss": 0.5, "probe_r2": 0.25, **ALIVE}
    assert (record.against, record.zeroed_cases) == ("scratch", (0.125, 0.25))
    assert record.machine == paid.machine == machine_name(TrainingConfig())
    assert Record.from_json(json.loads(bench.record_path(Trial("mae", 0.1, 3, None)).read_text()))


def test_a_run_is_told_by_all_versions_that_had_part_in_it(tmp_path, monkeypatch):
    assert made_by(tmp_path) is None
    for made in ("abc 2.12", "abc 2.12", "def 2.12", "def 2.13"):
        commit, version = made.split()
        now = {**versions(), "mim3d": "1.0", "commit": commit, "torch": version}
        monkeypatch.setattr("mim3d.training.run.versions", lambda now=now: now)
        with Run.create_or_continue(tmp_path / "run", {}):
            pass

    assert made_by(tmp_path / "run") == "mim3d 1.0 at abc then def, torch 2.12 then 2.13"

    with Run.create_or_continue(tmp_path / "run", {}, overwrite=True) as run:
        run.begin()
    assert made_by(tmp_path / "run") == "mim3d 1.0 at def, torch 2.13"


def test_a_machine_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(module, "processor_name", lambda: "AMD EPYC")
    on_cpu = TrainingConfig(device="cpu", precision="bf16", threads=1)

    assert machine_name(on_cpu) == "AMD EPYC, 1 thread, bf16"
    assert machine_name(replace(on_cpu, threads=3, precision="fp32")) == "AMD EPYC, 3 threads, fp32"
    monkeypatch.setattr(module, "choose_device", lambda device: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert machine_name(on_cpu) == "NVIDIA H200, bf16"


def test_replicates_name_draws_and_share_pre_trainings(tmp_path, fakes):
    bench = bench_in(tmp_path, pretraining_seeds=2)

    for replicate in range(4):
        bench.make(Trial("mae", 5, replicate, None))
        bench.make(Trial("other", 5, replicate, None))

    assert [name for name in fakes.begun if "seed" in name] == ["mae-seed0", "mae-seed1"]
    config = fakes.configs["other-labels5-3"]
    assert (config.training.seed, config.data.labels) == (3, 5)
    assert config.init == str(tmp_path / "pretrain" / "mae-seed1")
    assert config.training.validate_at == (0, 100)
    assert fakes.configs["mae-seed1"].training.seed == 1


def test_folds_go_round_and_pre_training_may_leave_them_out(tmp_path, fakes):
    settings = ConvergenceConfig(labels=(5,), replicates=3, folds=(0, 4), pretrain_per_fold=True)
    bench = bench_in(tmp_path, folds=(0, 4), pretrain_per_fold=True, pretraining_seeds=1)

    trials = all_trials(list(bench.arms.values()), settings)
    for trial in trials:
        bench.make(trial)

    assert [trial.fold for trial in trials if trial.arm == "mae"] == [0, 4, 0]
    assert fakes.configs["mae-seed0-fold4"].data.fold == 4
    assert fakes.configs["mae-labels5-1"].data.fold == 4
    assert fakes.configs["mae-labels5-1"].init.endswith("mae-seed0-fold4")
    without = Trial("mae", 5, 1, None)
    bench_in(tmp_path, pretrain_per_fold=True, pretraining_seeds=1).make(without)
    assert fakes.configs["mae-labels5-1"].data.fold is None
    assert fakes.configs["mae-labels5-1"].init.endswith("mae-seed0")
    assert fakes.configs["mae-seed0"].data.fold is None


@pytest.mark.parametrize(
    ("folds", "per_fold", "subjects"), [((), False, 12), ((0, 4), True, 12), ((0, 4), False, 0)]
)
def test_probes_never_read_labels_of_who_judges_a_fold(tmp_path, fakes, folds, per_fold, subjects):
    bench = bench_in(tmp_path, folds=folds, pretrain_per_fold=per_fold)

    bench.make(Trial("mae", 5, 1, folds[1] if folds else None))

    name = "mae-seed1-fold4" if per_fold else "mae-seed1"
    assert fakes.configs[name].probes == ProbesConfig(subjects=subjects)
    assert ("probes" in about(bench)) == (subjects == 0)


def test_a_collapsed_pre_training_marks_its_fine_tunings_and_none_is_run(tmp_path, fakes):
    fakes.health["mae-seed0"] = DEAD

    record = bench_in(tmp_path).make(Trial("mae", 5, 0, None))

    assert record.dead.startswith("pre-training `mae-seed0`: collapsed: of 32 crops rank 1.20")
    assert record.pretraining.facts["crops_rank"] == 1.2
    assert record.dice == ()
    assert fakes.begun == ["mae-seed0"]
    assert bench_in(tmp_path).finished(Trial("mae", 5, 0, None)) == record


@pytest.mark.parametrize("name", ["mae-seed0", "mae-labels5-0"])
def test_a_run_that_stopped_itself_is_dead_and_is_not_repeated(tmp_path, fakes, name):
    fakes.raises[name] = [StoppedError("loss was not finite 10 times")]
    trial = Trial("mae", 5, 0, None)

    record = bench_in(tmp_path).make(trial)

    assert "stopped: loss was not finite" in record.dead
    assert bench_in(tmp_path).finished(trial) == record
    bench_in(tmp_path).make(Trial("mae", 5, 3, None))
    assert fakes.begun.count(name) == 1


def test_a_fine_tuning_that_learned_nothing_is_dead_with_its_curve(tmp_path, fakes):
    fakes.dice["scratch-labels5-0"] = 0.005

    record = bench_in(tmp_path).make(Trial("scratch", 5, 0, None))

    assert record.dead == "Dice 0.0037 after the last step"  # (0.005 + 0.0025) / 2, to even
    assert record.steps == (0, 100)


def test_a_fine_tuning_that_unlearned_its_linear_start_is_dead(tmp_path, fakes):
    fakes.start, fakes.dice["scratch-labels5-0"] = 0.4, 0.0

    record = bench_in(tmp_path).make(Trial("scratch", 5, 0, None))

    assert record.dice == ((0.4, 0.4), (0.0, 0.0))
    assert record.dead == "Dice 0.0000 after the last step"


@pytest.mark.parametrize("name", ["mae-seed0", "mae-labels5-0"])
def test_a_run_that_failed_is_dead_for_now_and_is_tried_again(tmp_path, fakes, name):
    fakes.raises[name] = [UserError("the case is damaged", code="checksum")]
    trial = Trial("mae", 5, 0, None)

    record = bench_in(tmp_path).make(trial)
    assert "failed: the case is damaged" in record.dead
    again = bench_in(tmp_path)
    assert again.finished(trial) is None

    assert again.make(trial).dead is None
    assert fakes.begun.count(name) == 2


def test_a_failed_pre_training_is_tried_once_a_command(tmp_path, fakes):
    fakes.raises["mae-seed0"] = [UserError("damaged"), UserError("damaged")]
    bench = bench_in(tmp_path)

    assert bench.make(Trial("mae", 5, 0, None)).dead
    assert bench.make(Trial("other", 5, 0, None)).dead

    assert fakes.begun == ["mae-seed0"]


@pytest.mark.parametrize(
    "error", [Interrupted("a signal came"), ConfigError("holds a run of another config")]
)
def test_what_is_no_runs_fault_goes_through(tmp_path, fakes, error):
    fakes.raises["scratch-labels5-0"] = [error]
    trial = Trial("scratch", 5, 0, None)

    with pytest.raises(type(error), match="arm `scratch`"):
        bench_in(tmp_path).make(trial)

    assert bench_in(tmp_path).record_of(trial) is None


@pytest.mark.parametrize("code", ["run-in-use", "run-taken-over"])
def test_a_run_that_another_process_holds_is_left_to_it(tmp_path, fakes, code):
    fakes.raises["mae-seed0"] = [UserError("another process is at it", code=code)]
    bench = bench_in(tmp_path)

    with pytest.raises(Busy, match="mae-seed0"):
        bench.make(Trial("mae", 5, 0, None))

    assert bench.record_of(Trial("mae", 5, 0, None)) is None
    assert bench.make(Trial("mae", 5, 0, None)).dead is None


def test_each_arm_gets_the_rate_that_is_best_on_the_inner_fold(tmp_path, fakes):
    fakes.dice |= {"mae-lr0.001": 0.5, "mae-lr0.003": 0.7, "mae-lr0.01": 0.7}
    fakes.raises["scratch-lr0.003"] = [StoppedError("not finite")]
    settings = {"rates": (0.001, 0.003, 0.01), "labels": (5, 0.5)}

    records = [bench_in(tmp_path, **settings).make(Trial(arm, 0.5, 2, None))
               for arm in ("mae", "scratch")]  # fmt: skip

    assert [record.lr for record in records] == [0.003, 0.001]
    assert fakes.configs["mae-labels0.5-2"].optim.lr == 0.003
    tried = fakes.configs["mae-lr0.01"]
    assert (tried.data.inner_fold, tried.data.labels, tried.data.fold) == (0, 5, None)
    assert (tried.training.seed, tried.training.validate_at) == (0, ())
    assert tried.init.endswith("mae-seed0")
    assert fakes.begun[:3] == ["mae-seed2", "mae-seed0", "mae-lr0.001"]
    assert read_plan(tmp_path).rates["scratch"].dice == {"0.001": 0.75, "0.003": -1.0, "0.01": 0.75}
    fakes.begun.clear()
    bench = bench_in(tmp_path, **settings)
    bench.plan.rates.update(read_plan(tmp_path).rates)
    again = Bench(bench.arms, bench.settings, bench.plan, tmp_path, Silent())
    again.make(Trial("mae", 5, 0, None))
    assert fakes.begun == ["mae-labels5-0"]


def test_each_fold_has_a_rate_of_its_own_that_nobody_who_judges_it_chose(tmp_path, fakes):
    settings = {"rates": (0.001, 0.01), "labels": (5,), "folds": (3, 1), "replicates": 4}
    fakes.dice |= {"mae-lr0.01-fold3": 0.9, "mae-lr0.001-fold1": 0.8}
    bench = bench_in(tmp_path, **settings)

    records = [bench.make(trial) for trial in all_trials(list(bench.arms.values()), bench.settings)
               if trial.arm == "mae"]  # fmt: skip

    assert [(record.fold, record.lr) for record in records] == [
        (3, 0.01), (1, 0.001), (3, 0.01), (1, 0.001),
    ]  # fmt: skip
    for fold, replicate in ((3, 0), (1, 1)):
        tried = fakes.configs[f"mae-lr0.01-fold{fold}"]
        assert (tried.data.fold, tried.data.inner_fold) == (fold, 0)
        assert (tried.training.seed, tried.init) == (
            replicate, str(tmp_path / "pretrain" / f"mae-seed{replicate}"),
        )  # fmt: skip
    assert sum("-lr" in name for name in fakes.begun) == 4
    assert set(read_plan(tmp_path).rates) == {"mae fold 3", "mae fold 1"}
    assert "for each arm and fold by itself" in about(bench)["learning rate"]


def test_a_warm_up_is_chosen_together_with_the_rate(tmp_path, fakes):
    settings = {"rates": (0.001, 0.01), "warmups": (0, 30), "labels": (5,)}
    fakes.dice |= {
        "scratch-lr0.001-warmup0": 0.5, "scratch-lr0.001-warmup30": 0.6,
        "scratch-lr0.01-warmup0": 0.2, "scratch-lr0.01-warmup30": 0.7,
    }  # fmt: skip
    bench = bench_in(tmp_path, **settings)

    record = bench.make(Trial("scratch", 5, 0, None))

    assert (record.lr, record.warmup_steps) == (0.01, 30)
    tried = fakes.configs["scratch-lr0.001-warmup0"].optim
    assert (tried.lr, tried.warmup_steps) == (0.001, 0)
    made = fakes.configs["scratch-labels5-0"].optim
    assert (made.lr, made.warmup_steps) == (0.01, 30)
    assert made == replace(FinetuneConfig().optim, lr=0.01, warmup_steps=30)
    assert read_plan(tmp_path).rates["scratch"].dice["0.01, warm-up 30"] == 0.7
    assert about(bench)["chosen learning rates"] == "`scratch` 0.01, warm-up 30"
    assert "each with a warm-up of 0, 30 steps" in about(bench)["learning rate"]
    fakes.begun.clear()
    again = bench_in(tmp_path, **settings)
    again._rates = dict(read_plan(tmp_path).rates)
    assert again.make(Trial("scratch", 5, 1, None)).warmup_steps == 30
    assert fakes.begun == ["scratch-labels5-1"]


def test_a_rate_is_chosen_with_the_first_pre_training_that_is_alive(tmp_path, fakes):
    fakes.raises["mae-seed0"] = [StoppedError("not finite")]
    fakes.dice |= {"mae-lr0.001": 0.5, "mae-lr0.01": 0.7}
    bench = bench_in(tmp_path, rates=(0.001, 0.01), labels=(5,), pretraining_seeds=4)

    records = [bench.make(Trial("mae", 5, replicate, None)) for replicate in range(3)]

    assert [record.why_dead is None for record in records] == [False, True, True]
    assert [record.lr for record in records[1:]] == [0.01, 0.01]
    assert read_plan(tmp_path).rates["mae"].dice == {"0.001": 0.5, "0.01": 0.7}
    tried = fakes.configs["mae-lr0.001"]
    assert (tried.training.seed, tried.init) == (1, str(tmp_path / "pretrain" / "mae-seed1"))
    assert sum("-lr" in name for name in fakes.begun) == 2


def test_no_rate_is_settled_where_the_pre_training_may_be_mended(tmp_path, fakes):
    fakes.raises["mae-seed0"] = [UserError("the case is damaged")]
    fakes.dice |= {"mae-lr0.001": 0.5, "mae-lr0.01": 0.7}
    settings = {"rates": (0.001, 0.01), "labels": (5,), "pretraining_seeds": 4}

    with pytest.raises(ConfigError, match="no learning rate could be tried: the case is dam"):
        bench_in(tmp_path, **settings).make(Trial("mae", 5, 1, None))
    assert not read_plan(tmp_path).rates

    assert bench_in(tmp_path, **settings).make(Trial("mae", 5, 1, None)).lr == 0.01


def test_a_rate_that_could_not_be_tried_says_what_helps(tmp_path, fakes):
    fakes.raises["scratch-lr0.001"] = [UserError("the case is damaged")]

    with pytest.raises(ConfigError, match="0.001 could not be tried: the case is dam") as caught:
        bench_in(tmp_path, rates=(0.001, 0.01)).make(Trial("scratch", 5, 0, None))

    assert "another --out" in caught.value.remedy


@pytest.mark.parametrize(
    ("replicates", "seeds", "wrong"),
    [
        ((0, 1, 3), 2, None),
        ((0, 1), 9, None),  # as with 2 they start from 0 and 1
        ((0, 1, 3), 9, "`mae-labels5-3` (from `mae-seed1`, now `mae-seed3`)"),
        ((0,), 1, "`mae-lr0.5-fold1` (from `mae-seed1`, now `mae-seed0`), `mae-labels0.5-1`"),
    ],
)
def test_more_pre_trainings_are_welcome_where_no_run_would_begin_elsewhere(
    tmp_path, fakes, replicates, seeds, wrong
):
    bench = bench_in(tmp_path, folds=(0, 1), pretraining_seeds=2)
    for replicate in replicates:
        bench.make(Trial("mae", 5, replicate, replicate % 2))
    begin(tmp_path / "finetune" / "mae-labels0.5-1", "mae-seed1")  # no record yet
    for rate in ("0.25-fold0", "0.5-fold1"):
        begin(tmp_path / "tune" / f"mae-lr{rate}", f"mae-seed{rate[-1]}")
    asked = replace(bench.settings, pretraining_seeds=seeds)

    if wrong is None:
        check_starts(tmp_path, list(bench.arms.values()), asked, ())
        return
    with pytest.raises(ConfigError, match=f"`convergence.pretraining_seeds` {seeds} ") as caught:
        check_starts(tmp_path, list(bench.arms.values()), asked, ())
    assert wrong in caught.value.what
    check_starts(tmp_path, [bench.arms["scratch"]], asked, ())


def test_a_rate_that_was_chosen_does_not_bind_the_number_of_pre_trainings(tmp_path):
    bench = bench_in(tmp_path, folds=(0, 1), pretraining_seeds=1)
    begin(tmp_path / "tune" / "mae-lr0.5-fold1", "mae-seed1")

    check_starts(tmp_path, [bench.arms["mae"]], bench.settings, {"mae fold 1"})


def begin(folder, init):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"init: runs/{init}\n")


def test_a_pre_training_that_ends_at_guessing_counts_and_says_so(tmp_path, fakes):
    bench = bench_in(tmp_path)
    write_log(tmp_path / "pretrain" / "mae-seed0", {"step": 40, "loss": 3.1, "chance": 3.135})

    record = bench.make(Trial("mae", 0.1, 0, None))

    assert record.dead is None, "without it a baseline would be gone"
    assert record.pretraining.facts["chance"] == pytest.approx(3.135)


@pytest.mark.parametrize(("loss", "is_dead"), [(0.2, False), (1.0, True)])
def test_features_that_hardly_differ_kill_no_run_whose_loss_no_constant_reaches(
    tmp_path, fakes, loss, is_dead
):
    fakes.health["mae-seed0"] = ALIKE
    log = {"step": 40, "loss": loss, "mean_predictor": 0.9}
    write_log(tmp_path / "pretrain" / "mae-seed0", log)

    record = bench_in(tmp_path).make(Trial("mae", 0.1, 0, None))

    assert (record.dead is not None) == is_dead


def test_a_pre_training_that_was_called_dead_or_alive_stays_so(tmp_path, fakes):
    trial = Trial("mae", 0.1, 0, None)
    fakes.health["mae-seed0"] = DEAD
    before = bench_in(tmp_path).make(trial).pretraining
    fakes.health["mae-seed0"] = ALIVE

    assert bench_in(tmp_path).make(trial).pretraining == before
    assert fakes.begun == ["mae-seed0"]


def test_a_pace_at_the_end_of_the_grid_is_told_while_running_and_in_the_report(tmp_path, fakes):
    settings = {"rates": (0.001, 0.01, 0.1), "warmups": (0, 30), "labels": (5,)}
    fakes.dice |= {"scratch-lr0.01-warmup0": 0.9, "mae-lr0.1-warmup30": 0.9,
                   "other-lr0.001-warmup30": 0.9}  # fmt: skip
    bench, said = bench_in(tmp_path, **settings), []
    bench.reporter.say = said.append

    for arm in ("scratch", "mae", "other"):
        bench.make(Trial(arm, 5, 0, None))

    longest = "chose the longest of `convergence.warmups` (30): a longer one may suit"
    largest = (
        "`mae` chose the largest of `convergence.rates` (0.1): a larger one may suit it better"
    )
    smallest = (
        "`other` chose the smallest of `convergence.rates` (0.001): a smaller one may suit it "
        "better"
    )
    assert [text for text in said if "chose" in text] == [
        largest, f"`mae` {longest} it better", smallest, f"`other` {longest} it better",
    ]  # fmt: skip
    assert about(bench)["ends of the grid"] == (
        f"{largest}; {smallest}; `mae`, `other` {longest} them better"
    )


def test_one_rate_leaves_no_choice_at_the_end_of_which_it_could_lie(tmp_path, fakes):
    bench = bench_in(tmp_path, rates=(0.001,), labels=(5,))

    bench.make(Trial("scratch", 5, 0, None))

    assert "ends of the grid" not in about(bench)


def test_a_pre_training_off_the_budget_is_named_with_its_factor(tmp_path):
    bench = bench_in(tmp_path)
    arms, plans = dict(bench.arms), dict(bench.plan.arms)
    for name, steps in (("near", 41), ("far", 96)):  # of 40, at the same price
        arms[name] = replace(arms["mae"], name=name, before=name)
        plans[name] = replace(plans["mae"], pretrain=Cost(steps, 6e9, 0.7))
    bench.arms, bench.plan = arms, Plan(plans)

    assert about(bench)["off the budget"] == (
        "whole steps cannot meet it: `far` 2.4 times that in flop (96 steps)"
    )
    del bench.arms["far"]
    assert "off the budget" not in about(bench)


def test_seconds_of_training_are_those_of_steps_alone(tmp_path):
    lines = [
        {"kind": "train", "step": 20, "seconds_a_step": 0.5},
        {"kind": "validation", "step": 20, "dice": 0.5},
        {"kind": "train", "step": 30, "seconds_a_step": 0.25},
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"kind": "tr')

    assert training_seconds(tmp_path) == 20 * 0.5 + 10 * 0.25
    assert training_seconds(tmp_path / "none") == 0.0


def test_the_last_loss_of_a_pre_training_is_that_of_its_last_tenth(tmp_path, fakes, monkeypatch):
    log = tmp_path / "pretrain" / "mae-seed0"
    write_log(log, {"step": 90, "loss": 9.0}, {"step": 100, "loss": 3.0}, {"step": 101, "loss": 1})
    monkeypatch.setattr(module, "training_seconds", lambda folder: 1.0)

    made = bench_in(tmp_path).make(Trial("mae", 5, 0, None)).pretraining

    assert made.facts["loss"] == pytest.approx((10 * 3.0 + 1 * 1.0) / 11)
    assert made.facts["probe_r2"] == 0.25


def test_the_last_numbers_of_every_look_are_facts():
    ended = {"loss": 0.5, "validation": {"a": {"x": 1.0, "y": None}, "b": {"z": 2.0}}}

    assert last_numbers(ended) == {"x": 1.0, "z": 2.0, "loss": 0.5}
