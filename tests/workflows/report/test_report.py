"""The report of runs, results and benchmarks: what is on the page, and where it goes."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest
from reporting import make_benchmark, make_results, make_run, make_targets

from mim3d.config.report import ReportConfig, ReportSettings
from mim3d.evaluation.study import HEADLINE, Study
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.reporting import Silent
from mim3d.workflows.report.report import report
from mim3d.workflows.report.sources import collect


def made(tmp_path: Path, *paths: Path, **settings) -> str:
    """The page on these paths."""
    out = tmp_path / "report.html"
    config = ReportConfig(ReportSettings(**settings))
    result = report([str(path) for path in paths], out=str(out), config=config, reporter=Silent())
    assert result.files == (out,)
    return out.read_text(encoding="utf-8")


def text_of(html: str) -> str:
    """The words of a page, tags and pictures left out."""
    body = html[html.index("<body>") : html.index("<script>")]
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body)))


@pytest.fixture
def seeds(tmp_path):
    """Three seeds of one fine-tuning, one of another rate, and a pre-training."""
    folder = tmp_path / "runs"
    before = make_run(folder / "pretrain", pretrain=True, dice=(1.5, 1.2, 1.1))
    for seed in range(3):
        make_run(folder / f"warm-seed-{seed}", seed=seed, init=str(before),
                 dice=(0.5, 0.6, 0.7 + seed / 100))  # fmt: skip
    make_run(folder / "cold", lr=0.005)
    return folder


def test_runs_that_differ_by_their_seed_are_one_line(tmp_path, seeds):
    words = text_of(made(tmp_path, seeds))

    assert "5 runs in 3 groups of seeds" in words
    # (0.70 + 0.71 + 0.72) / 3, and the lowest and highest of them.
    assert re.search(
        r"warm fine-tuning pretrain 0, 1, 2 done Dice 0\.710 \(0\.700 to 0\.720\)", words
    )
    assert "Line: mean over seeds. Band: lowest to highest seed." in words


def test_the_page_says_what_was_run_and_on_what(tmp_path, seeds):
    words = text_of(made(tmp_path, seeds))

    assert "Settings in which fine-tuning runs differ" in words
    assert re.search(r"optim\.lr 0\.005 0\.001 ", words)
    assert "9 cases of 7 subjects, 8 with labels" in words
    assert "11 x 13 x 7 (9 x 8 x 7 to 12 x 14 x 7)" in words
    assert "1 x 1.5 x 2 mm" in words
    assert "torch 2.13.0" in words
    assert "encoder's output zeroed" in words
    assert "0.125" in words
    assert "All together 7 min 30 s of training" in words


def test_a_path_of_somebody_is_shown_by_its_end_alone(tmp_path, seeds):
    assert "jane" not in made(tmp_path, seeds / "cold")
    assert str(tmp_path) not in made(tmp_path, seeds)

    assert "/home/jane doe/stores/heart" in made(tmp_path, seeds / "cold", keep_paths=True)


def test_runs_on_other_files_by_the_same_settings_are_told(tmp_path):
    one = make_run(tmp_path / "one", lr=0.1)
    other = make_run(tmp_path / "other", lr=0.2, cases=("a", "b", "d"))

    words = text_of(made(tmp_path, one, other))

    assert "trained on different files, though with the same settings of data" in words


def test_a_run_that_is_not_done_is_told_first(tmp_path):
    run = make_run(tmp_path / "run", state="interrupted")
    with open(run / "log.jsonl", "a") as file:
        file.write('{"kind": "tra')

    words = text_of(made(tmp_path, run))

    assert "run run is interrupted" in words
    assert "the log of run run has 1 broken lines" in words


def test_worst_cases_come_first_with_their_pictures(tmp_path):
    make_results(tmp_path / "r" / "results.json", pictures=(0, 2, 9))

    html = made(tmp_path, tmp_path / "r" / "results.json", worst=3)

    order = re.findall(r'<th scope="row"><?a?[^>]*>?(case_\w\w)', html)
    first = order[: order.index("case_zz") + 1]
    assert first == [f"case_{n:02d}" for n in range(15)] + ["case_zz"]
    shown = re.findall(r'<figure id="r-case-(case_\w\w)"', html)
    assert shown == ["case_00", "case_02"]
    assert all(f'href="#r-case-{case}"' in html for case in shown)
    assert "case_01</code>: Dice 0.125. left &lt;b&gt; 0.050, right 0.200" in html


def test_numbers_of_results_are_those_of_the_evaluation(tmp_path):
    results = make_results(tmp_path / "r" / "results.json")

    words = text_of(made(tmp_path, tmp_path / "r" / "results.json"))

    for name, metrics in results.summary().items():
        told = metrics["dice"]
        assert f"{told.mean:.3f} [{told.low:.3f}, {told.high:.3f}]" in words, name
        assert f"{metrics['hd95_mm'].mean:.2f}" in words
    assert "beware" in words
    assert "0.000 missed" in words


def test_a_long_table_says_what_it_leaves_out(tmp_path):
    make_results(tmp_path / "r" / "results.json")

    html = made(tmp_path, tmp_path / "r" / "results.json", rows=4)

    assert "Dice of every case, worst first. The worst 4 of 16." in html
    assert "The worst 4 of 30; the CSV beside the results holds all." in html
    assert "case_03" in html
    assert "case_14" not in html


def test_several_results_stand_beside_each_other(tmp_path):
    for name in ("one", "two"):
        make_results(tmp_path / f"{name}.json")

    words = text_of(made(tmp_path, tmp_path / "one.json", tmp_path / "two.json"))

    assert "Beside each other" in words


def test_classes_and_numbers_have_their_scores_and_their_worst_first(tmp_path):
    results = make_targets(tmp_path / "t" / "results.json")

    words = text_of(made(tmp_path, tmp_path / "t" / "results.json"))

    assert str(results.class_scores["grade"].auc) in words
    assert results.number_scores["age"].mae.told(".4g") in words
    # t4 is of class 0, which was given 0.2, and its number is wrong by 4.
    assert re.search(r"probability of the true class \S* ?t4 0 1 0\.200 t1 1 0 0\.200", words)
    assert re.search(r"absolute error t4 40\.000 44\.000 4\.000", words)


def test_a_benchmark_has_its_own_numbers_figures_and_cases(tmp_path):
    folder = make_benchmark(tmp_path / "bench")

    html = made(tmp_path, folder)

    words = text_of(html)
    [one] = collect([str(folder)]).benchmarks
    summary = json.loads((folder / "convergence.json").read_text())
    factor = one.study.factor("mae", "scratch", "0.1", HEADLINE)
    assert (
        factor.as_json() == summary["labels"]["0.1"]["arms"]["mae"]["faster_than"]["scratch"]["0.9"]
    )
    assert factor.text() in words
    assert "Convergence: mean over replicates" in words
    assert "Label efficiency: mean over replicates" in words
    assert words.count("Cases with labels") == 2
    assert "budget equal" in words
    assert html.count("data:image/png;base64,") == 4


def test_a_benchmark_without_its_records_is_told_by_its_report(tmp_path):
    folder = make_benchmark(tmp_path / "bench")
    whole = text_of(made(tmp_path, folder))
    for path in (folder / "records").iterdir():
        path.unlink()

    words = text_of(made(tmp_path, folder / "convergence.json"))

    # Five digits of each Dice are kept: enough for every number of the tables here.
    assert words[words.index("Speed-up") :][:600] == whole[whole.index("Speed-up") :][:600]


def test_a_benchmark_says_what_its_report_does_not_have_yet(tmp_path):
    folder = make_benchmark(tmp_path / "bench")
    for n in range(3):
        (folder / "records" / f"{n}.json").write_text("{}")
    make_run(folder / "pretrain" / "mae-seed0", pretrain=True)
    (make_run(folder / "pretrain" / "old", pretrain=True) / "config.yaml").write_text("no: 1\n")

    words = text_of(made(tmp_path, folder))

    assert "3 records of the folder are not in its report yet" in words
    assert "run old is not shown: " in words
    assert "Settings of its 1 runs" in words


def test_a_folder_of_all_kinds_is_taken_apart(tmp_path):
    make_run(tmp_path / "demo" / "runs" / "a")
    make_results(tmp_path / "demo" / "results-a.json")
    make_benchmark(tmp_path / "demo" / "bench")
    (tmp_path / "demo" / "other.json").write_text("{}")

    found = collect([str(tmp_path / "demo")])

    assert [run.name for run in found.runs] == ["a"]
    assert found.names_of_results == ["results-a"]
    assert [one.name for one in found.benchmarks] == ["bench"]
    assert isinstance(found.benchmarks[0].study, Study)


def test_names_are_as_short_as_they_can_be_and_never_alike(tmp_path):
    for part in ("x", "y"):
        make_run(tmp_path / part / "run")

    found = collect([str(tmp_path / "x" / "run"), str(tmp_path / "y" / "run")])

    assert [run.name for run in found.runs] == ["x/run", "y/run"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "there is nothing at"),
        (lambda path: path.mkdir(), "neither a run, nor results, nor a benchmark"),
        (lambda path: path.write_text("{}"), "neither a run, nor results, nor a benchmark"),
    ],
)
def test_a_path_without_anything_of_ours_is_an_error(tmp_path, make, words):
    path = tmp_path / "x.json"
    make(path)

    with pytest.raises(UserError, match=words):
        report([str(path)], out=str(tmp_path / "report.html"))

    assert not (tmp_path / "report.html").exists()


def test_a_path_that_is_given_twice_is_an_error(tmp_path):
    run = make_run(tmp_path / "run")

    with pytest.raises(UserError, match="given twice"):
        report([str(run), str(run / ".." / "run")], out=str(tmp_path / "report.html"))


def test_only_a_report_is_replaced_without_being_asked(tmp_path):
    run, out = make_run(tmp_path / "run"), tmp_path / "page.html"
    out.write_text("<p>my own work</p>")

    with pytest.raises(ConfigError, match="is no report of mim3d"):
        report([str(run)], out=str(out))
    assert out.read_text() == "<p>my own work</p>"

    report([str(run)], out=str(out), overwrite=True, reporter=Silent())
    report([str(run)], out=str(out), reporter=Silent())
    assert "my own work" not in out.read_text()


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(tmp_path):
    run = make_run(tmp_path / "run")

    result = report([str(run)], out=str(tmp_path / "page.html"), dry_run=True, reporter=Silent())

    assert "nothing was written" in result.text
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("settings", [{"worst": -1}, {"rows": 0}, {"pictures": "nowhere"}])
def test_settings_that_make_no_sense_are_refused(tmp_path, settings):
    run = make_run(tmp_path / "run")

    with pytest.raises(ConfigError, match=next(iter(settings))):
        made(tmp_path, run, **settings)


def test_results_of_a_stranger_bring_no_picture_of_another_folder_onto_the_page(tmp_path):
    make_results(tmp_path / "given" / "results.json", pictures=(0,))
    shutil.copy(tmp_path / "given/results/case_00.png", tmp_path / "secret.png")
    file = tmp_path / "given" / "results.json"
    file.write_text(file.read_text().replace('"case_00"', '"../../secret"'))

    html = made(tmp_path, file)

    assert "`../../secret`" in html or "../../secret" in text_of(html)
    assert "segmentation of case" not in html
