"""From a command to its workflow, what it prints and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings

import pytest

import mim3d as package
from mim3d.cli import main as main_module
from mim3d.cli.verbs import VERBS
from mim3d.config.reading import read_config
from mim3d.config.verbs import (
    BenchmarkConfig,
    DemoConfig,
    EvaluateConfig,
    FinetuneConfig,
    PredictConfig,
    PrepareConfig,
    PretrainConfig,
)
from mim3d.foundation.errors import (
    ExitCode,
    Interrupted,
    ResourceError,
    StoppedError,
    UserError,
    VolumeError,
)
from mim3d.workflows.result import Result

# The table: what is typed, and the call that follows


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("data: {crop_size: [11, 13, 7]}\n")
    return "own.yaml"


def test_prepare_is_called_with_source_out_and_config(mim3d, calls):
    ended = mim3d("prepare scans --out store --spacing_mm 1,1,2.5 --overwrite")

    config = read_config(None, PrepareConfig, {"prepare.spacing_mm": [1, 1, 2.5]})
    keywords = {"out": "store", "config": config, "overwrite": True, "dry_run": False}
    assert ended.code == 0
    assert calls.only == ("prepare", ("scans",), keywords)


@pytest.mark.parametrize(
    ("verb", "kind"), [("pretrain", PretrainConfig), ("finetune", FinetuneConfig)]
)
def test_training_is_called_with_the_resolved_config_and_its_name(
    mim3d, calls, config_file, verb, kind
):
    mim3d(f"{verb} {config_file} --init none --dry-run")

    config = read_config(config_file, kind, {"init": "none"})
    keywords = {"out": None, "name": "own", "overwrite": False, "dry_run": True}
    keywords["said"] = frozenset({"data.crop_size", "init"})
    assert config.data.crop_size == (11, 13, 7)
    assert calls.only == (verb, (config,), keywords)


def test_predict_is_called_with_run_and_inputs(mim3d, calls):
    mim3d("predict runs/a,runs/b x.nii.gz y.nii.gz -o out --inference.flips x,y")

    config = read_config(None, PredictConfig, {"inference.flips": ["x", "y"]})
    keywords = {"out": "out", "config": config, "overwrite": False, "dry_run": False}
    assert calls.only == ("predict", ("runs/a,runs/b", ["x.nii.gz", "y.nii.gz"]), keywords)


def test_the_other_verbs_are_called_with_what_they_take(mim3d, calls):
    mim3d("evaluate p l --out results.json")
    mim3d("demo --seed 3")
    mim3d("doctor")
    mim3d("doctor store")
    mim3d("info runs/a")

    seen = [(name, arguments) for name, arguments, _ in calls.seen]
    assert seen == [
        ("evaluate", ("p", "l")),
        ("demo", ()),
        ("doctor", (None,)),
        ("doctor", ("store",)),
        ("info", ("runs/a",)),
    ]
    assert calls.seen[0][2]["config"] == EvaluateConfig()
    assert calls.seen[0][2]["out"] == "results.json"
    assert calls.seen[1][2]["config"] == DemoConfig(seed=3)


def test_benchmark_is_called_with_its_kind_and_settings(mim3d, calls):
    mim3d("benchmark throughput --stages read,crop --quick false --out here.json")

    given = {"throughput.stages": ["read", "crop"], "throughput.quick": False}
    config = read_config(None, BenchmarkConfig, given)
    keywords = {"source": None, "out": "here.json", "config": config, "dry_run": False}
    assert config.throughput.stages == ("read", "crop")
    assert calls.only == ("benchmark", ("throughput",), keywords)


def test_a_convergence_benchmark_is_called_with_its_file_and_shard(mim3d, calls, tmp_path):
    (tmp_path / "mine.yaml").write_text("convergence: {replicates: 5}\narms: {scratch: {}}\n")

    mim3d("benchmark convergence mine.yaml --out all --shard 1/4 --store stores/a --dry_run")

    name, words, keywords = calls.only
    settings = keywords["config"].convergence
    assert (name, words) == ("benchmark", ("convergence",))
    assert (keywords["source"], keywords["out"], keywords["dry_run"]) == ("mine.yaml", "all", True)
    assert (settings.replicates, settings.shard, settings.store) == (5, "1/4", "stores/a")


def test_settings_of_a_verb_without_config_argument_can_come_from_a_file(mim3d, calls, tmp_path):
    (tmp_path / "ct.yaml").write_text("prepare: {modality: ct}\n")

    mim3d("prepare scans --out store --config ct.yaml --prepare.modality mr")

    assert calls.only[2]["config"].prepare.modality == "mr"


def test_a_missing_out_is_refused_before_anything_runs(mim3d, calls):
    ended = mim3d("predict runs/a x.nii.gz")

    assert ended.code == ExitCode.USAGE
    assert "`mim3d predict` needs `--out`" in ended.err
    assert calls.seen == []


# What is printed


def test_the_result_goes_to_stdout_and_messages_to_stderr(mim3d, calls):
    calls.says = ("resampling took 7.7 s",)
    calls.result = Result(text="Dice 0.887", exit_code=ExitCode.PARTIAL)

    ended = mim3d("evaluate p l")

    assert ended.out == "Dice 0.887\n"
    assert ended.err == "resampling took 7.7 s\n"
    assert ended.code == ExitCode.PARTIAL


def test_quiet_keeps_the_result_and_drops_messages(mim3d, calls):
    calls.says = ("resampling",)

    ended = mim3d("evaluate p l -q")

    assert (ended.out, ended.err) == ("done\n", "")


def test_json_is_the_whole_of_stdout(mim3d):
    ended = mim3d("evaluate p l --json")

    assert json.loads(ended.out)["facts"] == {"dice": 0.5}


def test_only_the_first_rank_prints(mim3d, calls, monkeypatch):
    calls.says = ("resampling",)
    monkeypatch.setenv("RANK", "1")

    ended = mim3d("evaluate p l")

    assert (ended.out, ended.err) == ("", "")


def test_print_config_prints_yaml_that_reads_back_and_runs_nothing(
    mim3d, calls, config_file, tmp_path
):
    ended = mim3d(f"pretrain {config_file} --optim.lr 1e-4 --print_config")
    (tmp_path / "resolved.yaml").write_text(ended.out)

    assert read_config("resolved.yaml", PretrainConfig) == read_config(
        config_file, PretrainConfig, {"optim.lr": 1e-4}
    )
    assert calls.seen == []


def test_version_and_help_come_from_everywhere(mim3d):
    assert mim3d("--version").out == mim3d("pretrain --version").out
    assert mim3d("--version").out == f"mim3d {package.__version__}\n"
    assert mim3d("--help").out == mim3d("-h").out
    assert all(f"\n  {verb} " in mim3d("--help").out for verb in VERBS)
    assert mim3d("pretrain -h").out.startswith(VERBS["pretrain"].story[:20])


def test_no_verb_at_all_shows_the_help_as_an_error(mim3d):
    ended = mim3d("")

    assert ended.code == ExitCode.USAGE
    assert "usage: mim3d VERB" in ended.err
    assert ended.out == ""


# How it ends


def test_a_wrong_verb_or_key_is_an_error_with_the_nearest_name(mim3d):
    ended = mim3d("predcit a b")
    assert (ended.code, ended.err) == (
        2,
        "error: `predcit` is not a verb of mim3d\n\nhint: did you mean `mim3d predict`?\n",
    )

    ended = mim3d("prepare s --out d --prepare.modalty ct")
    assert (ended.code, ended.err) == (
        2,
        "error: `--prepare.modalty` is not an option of `mim3d prepare`\n\n"
        "hint: did you mean `--prepare.modality`?\n",
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (VolumeError("`a.nii.gz` ends early"), 3),
        (UserError("no case could be read", exit_code=ExitCode.PARTIAL), 4),
        (ResourceError("needs 40 GiB"), 5),
        (MemoryError(), 5),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), 5),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), 5),
        (StoppedError("loss is not finite"), 6),
        (Interrupted("interrupted at step 40"), 75),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_of_the_user_or_machine_is_one_sentence_and_its_exit_code(
    mim3d, calls, error, code
):
    calls.raises = error

    ended = mim3d("evaluate p l")

    assert ended.code == code
    assert ended.out == ""
    assert "Traceback" not in ended.err
    assert len(ended.err.strip()) > 0


def test_any_other_error_is_a_bug_with_traceback_and_where_to_report_it(mim3d, calls):
    calls.raises = KeyError("spacing")

    ended = mim3d("evaluate p l")

    assert ended.code == ExitCode.BUG
    assert "Traceback" in ended.err
    assert "this is a bug in mim3d" in ended.err
    assert "`mim3d doctor`" in ended.err


def test_debug_shows_where_an_error_of_the_user_came_from(mim3d, calls):
    calls.raises = UserError("no case")

    assert "Traceback" in mim3d("evaluate p l --debug").err


@pytest.mark.parametrize("variable", ["TORCHELASTIC_RUN_ID", "LOCAL_RANK"])
def test_an_interrupted_rank_of_torchrun_ends_with_0(
    mim3d, calls, config_file, monkeypatch, variable
):
    calls.raises = Interrupted("interrupted at step 40", remedy="the same command goes on")
    monkeypatch.setenv(variable, "0")

    ended = mim3d(f"pretrain {config_file}")

    assert ended.code == 0
    assert ended.err.startswith("error: interrupted at step 40")


def test_warnings_of_mim3d_are_lines_and_those_of_libraries_are_for_verbose(
    mim3d, calls, monkeypatch
):
    class ReadWarning(UserWarning):
        pass

    ReadWarning.__module__ = "mim3d.data.files"

    def warning(*arguments, **keywords):
        warnings.warn(ReadWarning("`a.nii` has no orientation"), stacklevel=1)
        warnings.warn(FutureWarning("of no use"), stacklevel=1)
        return calls.result

    monkeypatch.setattr(sys.modules["mim3d.workflows.evaluate"], "evaluate", warning)
    with warnings.catch_warnings():
        warnings.simplefilter("always")

        assert mim3d("evaluate p l").err == "warning: `a.nii` has no orientation\n"
        assert "of no use" in mim3d("evaluate p l -v").err


# The process


SLEEPING = """
import signal, sys, types
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
module = types.ModuleType("mim3d.workflows.info")
def info(path, reporter):
    import time
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaned", flush=True)
module.info = info
sys.modules[module.__name__] = module
from mim3d.cli.main import main
sys.exit(main(["info", "x"]))
"""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_with_its_code_after_cleaning_up(sent, code):
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    process.send_signal(sent)
    out, err = process.communicate(timeout=60)

    assert process.returncode == code
    assert out == "cleaned\n"
    assert "Traceback" not in err


def test_a_reader_that_closes_the_pipe_is_no_bug():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "mim3d", "pretrain", "--help"]

    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)

    assert (done.returncode, done.stderr) == (0, "")


def test_the_allocator_is_chosen_unless_the_user_says_otherwise(monkeypatch, tmp_path):
    monkeypatch.setattr(main_module.sys, "platform", "linux")
    monkeypatch.setattr(main_module, "GPU_DEVICES", tmp_path)

    def chosen(**given):
        main_module._choose_allocator(given)
        return given.get("THP_MEM_ALLOC_ENABLE")

    assert chosen() == "1"
    assert chosen(MIM3D_ALLOCATOR="system") is None
    assert chosen(THP_MEM_ALLOC_ENABLE="0") == "0"
    (tmp_path / "nvidia0").touch()
    assert chosen() is None
    (tmp_path / "nvidia0").unlink()
    monkeypatch.setattr(main_module.sys, "platform", "darwin")
    assert chosen() is None
