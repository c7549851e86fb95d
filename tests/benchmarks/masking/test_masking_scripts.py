"""The scripts of benchmarks/masking run through, and their numbers are those of slow counts."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_benchmark import PRETRAIN, make_store

from mim3d.config.encoder import EncoderConfig
from mim3d.config.reading import read_config
from mim3d.config.verbs import PretrainConfig
from mim3d.foundation.reporting import Silent
from mim3d.workflows.pretrain import pretrain

SCRIPTS = Path(__file__).resolve().parents[3] / "benchmarks" / "masking"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """As `python script.py` finds them."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])


@pytest.mark.parametrize("side", [16, 40])
def test_flop_of_prediction_are_those_counted_by_hand(side):
    """64 tokens have plain attention, 1,000 the fused one, of which torch itself counts nothing."""
    import efficiency

    width, tokens, voxels = 24, (side // 4) ** 3, 64
    encoder = EncoderConfig(width=width, depth=2, heads=2, patch=(4, 4, 4), channels=1,
                            class_token=True)  # fmt: skip
    scene = efficiency.Scene(encoder, (12, 1, 2), (side,) * 3, 3, "fp32", torch.device("cpu"))
    found = {way: efficiency.flop(build)
             for way, build in efficiency.ways(scene)["prediction"].items()}  # fmt: skip

    def by_hand(seen):
        embedding = 2 * seen * voxels * width
        n = seen + 1  # the class token
        blocks = 2 * (24 * n * width**2 + 4 * n**2 * width)
        return 3 * (embedding + blocks + 2 * width * 2)

    whole, quarter, looks = found.values()
    assert whole == by_hand(tokens)
    assert quarter == by_hand(tokens // 4)
    # The first look gives no answer.
    assert looks == 2 * quarter - 3 * 2 * width * 2


def test_efficiency_runs_through_and_says_what_each_way_costs(tmp_path, monkeypatch, capsys):
    import efficiency

    monkeypatch.setattr(sys, "argv", [
        "efficiency.py", "--size", "16,16,16", "--patch", "4,4,4", "--crops", "2",
        "--decoder", "12,1,2", "--repeats", "1", "--out", str(tmp_path / "found.json"),
    ])  # fmt: skip
    # A child of a process with many threads would hang; the sizes are tried in the script's own.
    monkeypatch.setattr(efficiency, "peak_mb", lambda build, device: 1.0)
    wide = EncoderConfig
    monkeypatch.setattr(
        efficiency, "EncoderConfig", lambda **said: wide(width=24, depth=2, heads=2, **said)
    )

    efficiency.main()

    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["what"] for row in rows] == [
        *["pre-training step"] * 4, *["fine-tuning step"] * 3, *["prediction"] * 3,
    ]  # fmt: skip
    assert all(row["flop"] > 0 and row["ms"][0] > 0 for row in rows)
    assert capsys.readouterr().out.count("\n") == 12


def test_shares_are_those_of_a_slow_loop():
    import anatomy

    rng = np.random.default_rng(1)
    cells = rng.random((3, 4, 2))
    cells[1, 2, 0] = np.nan
    shape = (11, 13, 7)
    labels = rng.integers(0, 3, shape).astype(np.uint8)
    labels[0, 0, :3] = 255

    weights = anatomy.spread_over(cells, (4, 4, 4), shape)
    found = anatomy.shares(weights, labels, 3)

    total, voxels, inside, count = 0.0, 0, [0.0] * 3, [0] * 3
    for x, y, z in np.ndindex(*shape):
        weight, label = cells[x // 4, y // 4, z // 4], int(labels[x, y, z])
        if np.isnan(weight) or label == 255:
            continue
        total, voxels = total + weight, voxels + 1
        for place in [label - 1, 2] if label else []:
            inside[place] += weight
            count[place] += 1
    np.testing.assert_allclose(found[0], np.array(inside) / total)
    np.testing.assert_allclose(found[1], np.array(count) / voxels)


def test_maps_of_a_run_are_read_drawn_and_compared_with_chance(tmp_path, monkeypatch, capsys):
    import anatomy

    store = make_store(tmp_path, 8)
    (tmp_path / "pretrain.yaml").write_text(
        PRETRAIN.replace("objective: {", "objective: {guide: {by: attention}, ")
    )
    config = read_config(tmp_path / "pretrain.yaml", PretrainConfig)
    config = replace(config, data=replace(config.data, store=str(store)))
    pretrain(config, out=str(tmp_path / "run"), reporter=Silent())
    monkeypatch.setattr(sys, "argv", [
        "anatomy.py", str(tmp_path / "run"), "--store", str(store), "--out", str(tmp_path / "out"),
    ])  # fmt: skip

    anatomy.main()

    (row,) = json.loads((tmp_path / "out" / "anatomy.json").read_text())["runs"]
    assert row["by"] == "attention"
    assert 0 < row["seen"] <= 1
    assert all(0 < one["low"] <= one["value"] <= one["high"] for one in row["ratio"])
    assert (tmp_path / "out" / "anatomy_run.png").stat().st_size > 10_000
    assert "| run | attention |" in capsys.readouterr().out
