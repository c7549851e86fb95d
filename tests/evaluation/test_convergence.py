"""Records of fine-tunings: written, read back, refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from synthetic_study import pretraining, record, rising, without_curve

from mim3d.evaluation.convergence import Record
from mim3d.foundation.errors import UserError


def test_a_record_comes_back_from_its_file() -> None:
    run = record("mae", rising, noise=0.05, replicate=2)

    again = Record.from_json(json.loads(json.dumps(run.as_json(), allow_nan=False)))

    assert again == run


def test_a_record_of_an_older_version_is_read() -> None:
    run = record("mae", rising)
    content = json.loads(json.dumps(run.as_json()))
    for name in ("against", "zeroed_cases", "machine", "made_by"):
        del content[name]
    del content["pretraining"]["machine"], content["pretraining"]["made_by"]

    assert Record.from_json(content) == run


def test_partner_audit_and_machines_come_back_from_the_file() -> None:
    run = replace(record("mae", rising), against="scratch-4", machine="EPYC, 1 thread, fp32",
                  made_by="mim3d 0.1.0 at 1a2b3c, torch 2.13.0")  # fmt: skip
    run = replace(run, zeroed_cases=tuple(value / 2 for value in run.dice[-1]))
    run = replace(run, pretraining=replace(pretraining("mae"), machine="H200, bf16",
                                           made_by="mim3d 0.0.9 at 0, torch 2.12"))  # fmt: skip

    assert Record.from_json(json.loads(json.dumps(run.as_json()))) == run


def test_a_dead_record_without_a_curve_comes_back_from_its_file() -> None:
    run = replace(without_curve(record("mae", rising), "not finite"), pretraining=None)

    assert Record.from_json(json.loads(json.dumps(run.as_json()))) == run


def test_a_fact_that_is_not_finite_is_written_as_null() -> None:
    before = replace(pretraining("mae"), facts={"loss": math.nan, "rank": 3.0})
    run = replace(record("mae", rising), pretraining=before)

    content = json.loads(json.dumps(run.as_json(), allow_nan=False))
    again = Record.from_json(content)

    assert content["pretraining"]["facts"] == {"loss": None, "rank": 3.0}
    assert again.pretraining is not None
    assert math.isnan(again.pretraining.facts["loss"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": "red"}, "unknown field `colour`"),
        ({"format": 2}, "format 2"),
        ({"steps": "all"}, "`steps` of a record must be a list"),
        ({"replicate": 1.5}, "whole number"),
        ({"replicate": True}, "whole number"),
        ({"seconds": -1.0}, "at least 0"),
        ({"lr": "high"}, "finite number"),
        ({"kind": "magic"}, "`scratch` or `masked`"),
        ({"arm": None}, "text"),
        ({"against": 4}, "text"),
        ({"zeroed_cases": [0.1, "x"]}, "finite number"),
        ({"pretraining": 3}, "a pretraining must be a JSON object"),
    ],
)
def test_a_damaged_record_is_refused(change: dict[str, object], words: str) -> None:
    content = {**record("mae", rising).as_json(), **change}

    with pytest.raises(UserError, match=words):
        Record.from_json(content)


def test_a_record_that_lacks_a_field_is_refused() -> None:
    content = record("mae", rising).as_json()
    del content["lr"]

    with pytest.raises(UserError, match="lacks `lr`"):
        Record.from_json(content)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": (0, 10, 10)}, "must grow"),
        ({"steps": (-5, 10, 20)}, "not be negative"),
        ({"steps": (0, 10)}, "Dice at 3 steps, expected 2"),
        ({"dice": ((0.1, 0.2), (0.3, 0.4), (0.5,))}, "another number of cases"),
        ({"dice": ((0.1, 0.2), (0.3, 0.4), (0.5, 1.2))}, "0 to 1"),
        ({"dice": ((0.1, 0.2), (0.3, 0.4), (0.5, math.nan))}, "0 to 1"),
        ({"cases": ("a", "a")}, "named twice"),
        ({"case_subjects": ("a",)}, "2 cases but 1 subjects"),
        ({"zeroed_cases": (0.1,)}, "1 zeroed Dice of 2 cases"),
        ({"zeroed_cases": (0.1, 1.1)}, "0 to 1"),
    ],
)
def test_a_curve_that_does_not_fit_is_refused(change: dict[str, object], words: str) -> None:
    run = record("mae", rising, steps=(0, 10, 20), cases=2)

    with pytest.raises(UserError, match=words):
        replace(run, **change)  # type: ignore[arg-type]


def test_only_a_dead_run_may_have_no_curve() -> None:
    with pytest.raises(UserError, match="needs a curve"):
        replace(without_curve(record("mae", rising), "gone"), dead=None)


def test_a_run_from_a_dead_pretraining_is_dead() -> None:
    run = replace(record("byol", rising), pretraining=pretraining("byol", dead="rank 1.0"))

    assert run.why_dead == "pre-training: rank 1.0"
