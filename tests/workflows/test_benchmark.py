"""`mim3d benchmark`: what it refuses, what it says before it starts, what it writes."""

from __future__ import annotations

import json

import pytest

from mim3d.config.verbs import BenchmarkConfig, ThroughputConfig
from mim3d.foundation.errors import ConfigError
from mim3d.workflows.benchmark import benchmark
from mim3d.workflows.throughput import stage


class Said:
    def __init__(self):
        self.texts = []

    def say(self, text):
        self.texts.append(text)

    def warn(self, text):
        self.texts.append(text)

    def progress(self, done, total, text):
        self.texts.append(text)


def config(**fields):
    return BenchmarkConfig(ThroughputConfig(**fields))


def test_an_unknown_kind_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="`thruput` is no benchmark") as caught:
        benchmark("thruput")

    assert caught.value.remedy == "did you mean `throughput`?"


@pytest.mark.parametrize("key", ["repeats", "threads"])
def test_nothing_is_measured_no_times(key):
    with pytest.raises(ConfigError, match=f"`throughput.{key}` is 0"):
        benchmark("throughput", config=config(**{key: 0}))


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path):
    out = tmp_path / "here.json"

    result = benchmark(
        "throughput", config=config(stages=("window", "read")), out=str(out), dry_run=True
    )

    assert "times read, window" in result.text
    assert "about" in result.text
    assert f"`{tmp_path / 'here.md'}`" in result.text
    assert list(tmp_path.iterdir()) == []


def test_a_profile_is_announced_and_written_as_numbers_and_as_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "QUICK", stage.SMALLEST)
    said = Said()

    result = benchmark(
        "throughput",
        config=config(stages=("read",), monai=False, device="cpu"),
        out=str(tmp_path / "here.json"),
        reporter=said,
    )

    content = json.loads((tmp_path / "here.json").read_text())
    assert said.texts[0].startswith("times read, without MONAI")
    assert [one["stage"] for one in content["stages"]] == ["read"]
    assert (tmp_path / "here.md").read_text().rstrip() == result.text
    assert "| read | 48 x 40 x 36 int16" in result.text
