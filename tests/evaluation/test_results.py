"""Results: means that cannot flatter, the file's form, and the way back from it."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mim3d.evaluation.cases import Score, score_case
from mim3d.evaluation.overlap import Structure
from mim3d.evaluation.results import MEAN, METRICS, Results, Summary, read_results
from mim3d.evaluation.table import table
from mim3d.foundation.errors import UserError

SPACING = (0.8, 1.2, 2.5)
ORGANS = ((1, "liver"), (2, "tumour"), (5, "cyst"))
STRUCTURES = tuple(Structure(name, (value,)) for value, name in ORGANS)
RESAMPLES = 30


def blocks(random: np.random.Generator, chance: float) -> np.ndarray:
    """A label map in which each structure is a random block, or absent."""
    labels = np.zeros((9, 10, 6), np.uint8)
    for structure in STRUCTURES:
        if random.random() < chance:
            low = random.integers(0, (6, 7, 4))
            high = low + random.integers(1, 5, 3)
            labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = structure.values[0]
    return labels


def cohort(seed: int) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    random = np.random.default_rng(seed)
    references = [blocks(random, 0.7) for _ in range(random.integers(1, 5))]
    predictions = [
        None if random.random() < 0.1 else np.where(random.random(r.shape) < 0.1, 0, q)
        for r in references
        for q in [r if random.random() < 0.5 else blocks(random, 0.7)]
    ]
    return references, predictions


def scores_of(number: int, reference: np.ndarray, guess: np.ndarray | None) -> list[Score]:
    return score_case(
        reference,
        guess,
        SPACING,
        STRUCTURES,
        case_id=f"case_{number}",
        subject=f"subject_{number // 2}",
    )


def results_of(cases: list[list[Score]]) -> Results:
    names = tuple(structure.name for structure in STRUCTURES)
    scores = tuple(score for case in cases for score in case)
    return Results(names, scores, resamples=RESAMPLES)


def scored(references: list[np.ndarray], predictions: list[np.ndarray | None]) -> Results:
    pairs = zip(references, predictions, strict=True)
    return results_of([scores_of(number, *pair) for number, pair in enumerate(pairs)])


Summaries = dict[str, dict[str, Summary]]


def assert_not_better(new: Summaries, old: Summaries) -> None:
    """No aggregate of `new` is better than in `old`; one that vanished would count as better."""
    for name in (*(structure.name for structure in STRUCTURES), MEAN):
        for metric in METRICS:
            for end in ("mean", "low", "high"):
                was, now = getattr(old[name][metric], end), getattr(new[name][metric], end)
                assert was is None or now is not None
                if was is not None:
                    better = now - was if metric != "hd95_mm" else was - now
                    assert better <= 1e-12, (name, metric, end, was, now)
            assert new[name][metric].missed >= old[name][metric].missed


def assert_never_pays(seed: int, spoiled: Callable[..., Iterable[np.ndarray | None]]) -> None:
    """No way of spoiling the prediction of one case improves an aggregate of the cohort."""
    references, predictions = cohort(seed)
    pairs = list(zip(references, predictions, strict=True))
    cases = [scores_of(number, *pair) for number, pair in enumerate(pairs)]
    before = results_of(cases).summary()
    for number, (reference, guess) in enumerate(pairs):
        for worse in spoiled(reference, guess):
            changed = [*cases[:number], scores_of(number, reference, worse), *cases[number + 1 :]]
            assert_not_better(results_of(changed).summary(), before)


def deleted(_reference: np.ndarray, _guess: np.ndarray | None) -> Iterable[None]:
    yield None


def emptied(reference: np.ndarray, guess: np.ndarray | None) -> Iterable[np.ndarray]:
    """Without one structure that the reference has: taking out a hallucination may well pay."""
    for structure in STRUCTURES:
        value = structure.values[0]
        if guess is not None and (reference == value).any() and (guess == value).any():
            yield np.where(guess == value, 0, guess)


@pytest.mark.parametrize("spoiled", [deleted, emptied])
@pytest.mark.parametrize("part", range(4))
def test_deleting_or_emptying_a_prediction_never_improves_any_aggregate(
    spoiled: Callable[..., Iterable[np.ndarray | None]], part: int
) -> None:
    for seed in range(50 * part, 50 * part + 50):
        assert_never_pays(seed, spoiled)


def some_results() -> Results:
    return scored(*cohort(3))


def test_means_never_hold_nan_and_absent_everywhere_is_no_mean() -> None:
    empty = np.zeros((9, 10, 6), np.uint8)
    liver = empty.copy()
    liver[2:5, 2:6, 1:4] = 1

    summary = scored([liver, empty], [liver, empty]).summary()

    assert (summary["liver"]["dice"].mean, summary["liver"]["dice"].n) == (1.0, 1)
    assert summary["liver"]["dice"].absent == 1
    assert (summary["tumour"]["dice"].mean, summary["tumour"]["dice"].low) == (None, None)
    assert (summary["tumour"]["dice"].n, summary["tumour"]["dice"].absent) == (0, 2)
    assert summary[MEAN]["dice"].mean == 1.0
    text = json.dumps(scored([liver, empty], [liver, empty]).as_json(), allow_nan=False)
    assert "NaN" not in text


def test_a_hallucination_lowers_the_mean_and_is_counted() -> None:
    empty = np.zeros((9, 10, 6), np.uint8)
    liver = empty.copy()
    liver[2:5, 2:6, 1:4] = 1

    honest = scored([liver, empty], [liver, empty]).summary()["liver"]["dice"]
    flattering = scored([liver, empty], [liver, liver]).summary()["liver"]["dice"]

    assert (flattering.mean, flattering.hallucinated, flattering.n) == (0.5, 1, 2)
    assert flattering.mean_where_both_present == honest.mean == 1.0
    assert flattering.n_where_both_present == 1


def test_summary_counts_and_means_are_those_of_the_scores() -> None:
    results = some_results()

    for name in results.structures:
        own = [score for score in results.scores if score.structure == name]
        for metric in METRICS:
            summary = results.summary()[name][metric]
            values = [v for score in own if (v := getattr(score, metric)) is not None]
            assert summary.n + summary.absent == len(own)
            assert summary.mean == (pytest.approx(np.mean(values)) if values else None)
    means = [results.summary()[name]["nsd"].mean for name in results.structures]
    known = [mean for mean in means if mean is not None]
    assert results.summary()[MEAN]["nsd"].mean == pytest.approx(np.mean(known))


def test_file_has_the_documented_form(tmp_path: Path) -> None:
    results = replace(some_results(), notes=("one note",))

    path, beside = results.write(tmp_path / "results.json")

    content = json.loads(path.read_text())
    assert {"format", "classes", "cases", "summary", "versions", "convention"} <= set(content)
    assert content["classes"] == ["liver", "tumour", "cyst"]
    fields = ["case_id", "subject", "class", "dice", "hd95_mm", "nsd", "counted_as"]
    assert list(content["cases"][0]) == fields
    assert set(content["summary"]) == {"liver", "tumour", "cyst", "mean"}
    for metric in METRICS:
        wanted = {"mean", "low", "high", "n", "missed", "hallucinated", "absent"}
        assert wanted <= set(content["summary"]["liver"][metric])
    assert content["versions"]["python"]
    rows = list(csv.DictReader(io.StringIO(beside.read_text())))
    assert len(rows) == len(results.scores)
    assert list(rows[0]) == fields


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    results = some_results()
    results.write(tmp_path / "r.json")

    assert read_results(tmp_path / "r.json") == results


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 99}'])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)

    with pytest.raises(UserError, match="results"):
        read_results(tmp_path / "r.json")


def test_table_prints_means_intervals_and_counts() -> None:
    scores = [
        Score(f"case_{i}", f"case_{i}", "liver", 0.5 + i / 10, 2.0, 1.0, "case") for i in range(3)
    ]
    scores.append(Score("case_3", "case_3", "liver", 0.0, 31.0, 0.0, "missed"))
    results = Results(("liver",), tuple(scores), nsd_tolerance_mm=0.15, notes=("mind this",))

    plain, markdown = table(results), table(results, "markdown")

    head, rule, liver, mean = plain.splitlines()[:4]
    assert head.split()[:8] == ["class", "Dice", "HD95", "mm", "NSD", "@", "0.15", "mm"]
    assert head.split()[8:] == ["n", "missed", "hallucinated", "absent"]
    assert set(rule) == {"-", " "}
    assert liver.startswith("liver")
    assert "0.450 [" in liver
    assert "9.25 [" in liver
    assert liver.split()[-4:] == ["4", "1", "0", "0"]
    assert mean.startswith("mean")
    assert "4 cases of 4 subjects" in plain
    assert plain.endswith("note: mind this")
    assert markdown.splitlines()[1].startswith("| --- | ---: |")
    assert "| 4 | 1 | 0 | 0 |" in markdown


def test_no_cases_make_no_table_of_nan() -> None:
    assert not math.isnan(len(table(Results((), ()))))
    assert "nan" not in table(Results(("liver",), ()))
