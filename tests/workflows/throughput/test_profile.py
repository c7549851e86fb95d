"""The table of a machine, on a cohort too small to say anything of speed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import pytest
import torch

from mim3d.foundation.reporting import Silent
from mim3d.workflows.throughput.ceilings import measure_ceilings
from mim3d.workflows.throughput.profile import (
    STAGES,
    Line,
    as_json,
    as_markdown,
    expected_seconds,
    profile,
)
from mim3d.workflows.throughput.race import require
from mim3d.workflows.throughput.stage import SMALLEST, Scene

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ceilings():
    return measure_ceilings(CPU, seconds=0.0, shapes=[(32, 48, 64)], buffer_bytes=2**16)


def scene(folder, *, against_monai):
    return Scene(folder, CPU, SMALLEST, bf16=False, against_monai=against_monai)


@pytest.fixture(scope="module")
def alone(ceilings, tmp_path_factory):
    """All stages without MONAI."""
    where = scene(tmp_path_factory.mktemp("alone"), against_monai=False)
    return profile(where, ceilings, tuple(STAGES), Silent(), repeats=2)


def test_every_stage_is_timed_and_bounded(alone):
    assert list(dict.fromkeys(line.stage for line in alone)) == list(STAGES)
    for line in alone:
        assert len(line.ms) == 2
        assert all(math.isfinite(ms) for ms in line.ms)
        assert line.limit_ms > 0
        assert (line.monai, line.equality) == ([], "-")


def test_the_shares_of_a_step_make_one_whole(alone):
    shares = {line.stage: line.share for line in alone if line.share is not None}

    assert set(shares) == {"crop", "augment", "pretrain"}
    assert sum(shares.values()) == pytest.approx(1)


def test_without_the_step_there_is_nothing_to_have_a_share_of(ceilings, tmp_path):
    (store, memory) = profile(
        scene(tmp_path, against_monai=False), ceilings, ["crop"], Silent(), repeats=1
    )

    assert store.share is None
    assert memory.share is None


def test_a_stage_whose_results_differ_is_left_out_and_said_so(ceilings, tmp_path, monkeypatch):
    class Told(Silent):
        def warn(self, text: str) -> None:
            said.append(text)

    def differing(_: object) -> Iterator[object]:
        require(False, "volumes that were read")
        yield

    said: list[str] = []
    monkeypatch.setitem(STAGES, "read", differing)

    lines = profile(
        scene(tmp_path, against_monai=False), ceilings, ["read", "crop"], Told(), repeats=1
    )

    assert {line.stage for line in lines} == {"crop"}
    assert len(said) == 1
    assert "volumes that were read" in said[0]


def test_results_are_compared_with_monai_before_the_race(ceilings, tmp_path):
    stages = ["read", "crop", "evaluate"]

    lines = profile(scene(tmp_path, against_monai=True), ceilings, stages, Silent(), repeats=1)

    equality = {line.stage: line.equality for line in lines if line.monai}
    assert set(equality) == {"read", "crop", "evaluate"}
    assert equality["read"] == "equal"
    assert all(word == "equal" or word.startswith("within") for word in equality.values())


def test_a_result_file_says_where_it_was_made_and_holds_every_line(alone, ceilings):
    content = json.loads(json.dumps(as_json(alone, ceilings, CPU, 2), allow_nan=False))
    text = as_markdown(content, alone)

    assert content["machine"]["threads"] == torch.get_num_threads()
    assert content["versions"]["torch"] == torch.__version__
    assert [stage["stage"] for stage in content["stages"]] == [line.stage for line in alone]
    assert f"allocator {content['machine']['allocator']}" in text
    assert all(f"| {line.stage} | {line.what} |" in text for line in alone)


def test_the_ratio_to_the_limit_is_by_the_median():
    line = Line("read", "a file", [4.0, 2.0, 9.0], None, "inflate", 1.0, [], "-")

    assert line.median == 4.0
    assert line.of_limit == 0.25


def test_the_quick_profile_is_expected_within_two_minutes_and_the_full_one_is_not():
    assert expected_seconds(tuple(STAGES), quick=True) < 120
    assert expected_seconds(tuple(STAGES), quick=False) > 600
    assert expected_seconds(["read"], quick=True) < expected_seconds(["read", "crop"], quick=True)
