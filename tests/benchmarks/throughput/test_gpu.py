"""The script for a GPU runs through on a CPU, and says what it could not do."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[3] / "benchmarks" / "throughput"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """Scripts import each other by name, as `python script.py` lets them."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])


@pytest.fixture
def frame():
    import gpu_frame

    return gpu_frame


def bench(frame, seconds=600.0):
    return frame.Bench(CPU, frame.SMOKE, time.monotonic() + seconds)


PARTS = (
    ("ceilings", "equality", "pretrain", "monai"),
    ("profile", "resident"),
    ("finetune",),
    ("window",),
)


@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
@pytest.mark.parametrize("names", PARTS, ids="-".join)
def test_every_section_runs_in_tiny_and_is_written(names, tmp_path, capsys):
    import gpu

    code = gpu.main(["--smoke", "--out", str(tmp_path), "--only", *names])

    (path,) = tmp_path.glob("gpu_cpu_torch*_smoke.json")
    sections = json.loads(path.read_text())["sections"]
    text = path.with_suffix(".md").read_text()
    for part in sections.values():
        assert "error" not in part, part["error"]
        assert part["expected"] in text
    assert code == 0
    assert list(sections) == list(names)
    assert all(f"## {name} (" in text for name in names)
    assert f"written to {path}" in capsys.readouterr().out
    for row in sections.get("pretrain", {"rows": []})["rows"]:
        assert row["mfu"] > 0
    assert sections.get("resident", {"equality": "bit for bit"})["equality"] == "bit for bit"


def test_no_section_is_forgotten():
    import gpu

    assert [name for names in PARTS for name in names] == [one.name for one in gpu.SECTIONS]


def test_a_section_that_fails_leaves_the_others_their_results(frame, tmp_path):
    import gpu

    def broken(_):
        raise RuntimeError("out of patience")

    sections = [
        gpu.Section("ceilings", 1, broken, "much"),
        gpu.Section("pretrain", 1, lambda _: {"rows": []}, "more", "ceilings"),
        gpu.Section("equality", 1, lambda _: {"tiny/16": "equal"}, "equal"),
    ]

    content = gpu.run(sections, bench(frame), tmp_path / "results.json")

    written = json.loads((tmp_path / "results.json").read_text())["sections"]
    assert written == content["sections"]
    assert "out of patience" in written["ceilings"]["error"]
    assert written["pretrain"]["skipped"] == "`ceilings` gave no result"
    assert written["equality"]["tiny/16"] == "equal"
    assert "Failed: `RuntimeError: out of patience`" in (tmp_path / "results.md").read_text()


def test_without_time_a_section_is_skipped_and_says_so(frame, tmp_path):
    import gpu

    section = gpu.Section("window", 60, lambda _: pytest.fail("ran"), "fast")

    content = gpu.run([section], bench(frame, seconds=5), tmp_path / "results.json")

    assert "s left of the budget" in content["sections"]["window"]["skipped"]


def test_a_batch_grows_while_a_crop_gets_cheaper(frame, monkeypatch):
    # Milliseconds of a step: 1 crop 10, 2 crops 12, 4 crops 24: the last doubling gains nothing.
    spent = {1: 10.0, 2: 12.0, 4: 24.0}
    sizes = frame.Sizes(**{**vars(frame.SMOKE), "most": 64})
    run = frame.Bench(CPU, sizes, time.monotonic() + 60)
    monkeypatch.setattr(frame, "milliseconds", lambda call, *_, **__: spent[call(0)])

    found = frame.growing(1, lambda count: lambda _: count, run)

    assert found["batch"] == 2
    assert found["crops_per_second"] == pytest.approx(2e3 / 12)
    assert list(found["tried"]) == [1, 2, 4]


def test_a_batch_that_does_not_fit_ends_the_growth(frame, monkeypatch):
    def make(count):
        if count > 2:
            raise torch.OutOfMemoryError("full")
        return lambda _: count

    sizes = frame.Sizes(**{**vars(frame.SMOKE), "most": 64})
    run = frame.Bench(CPU, sizes, time.monotonic() + 60)
    monkeypatch.setattr(frame, "milliseconds", lambda call, *_, **__: 10.0)

    found = frame.growing(1, make, run)

    assert (found["batch"], found["tried"][4]) == (2, 0.0)


def test_kernels_are_sorted_by_what_they_do_and_gaps_are_what_none_covers():
    from gpu_trace import STEPS, summed

    # Two overlap from 0 to 30, then 20 of nothing, then 50: busy 80 of 100.
    found = summed([
        {"name": "sm90_xmma_gemm_bf16", "ts": 0, "dur": 20},
        {"name": "vectorized_layer_norm_kernel", "ts": 10, "dur": 20},
        {"name": "void FusedAdamMathFunctor", "ts": 50, "dur": 50},
    ] * STEPS)  # fmt: skip

    assert found["gaps"] == pytest.approx(0.2)
    assert found["kernels"] == 3
    assert found["shares"] == pytest.approx({"optimiser": 5 / 9, "matrix": 2 / 9, "norm": 2 / 9})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("flash_fwd_kernel<Flash_fwd_kernel_traits>", "attention"),
        ("nvjet_tst_128x256_64x4_TNT", "matrix"),
        ("sm90_xmma_fprop_implicit_gemm_bf16", "convolution"),
        ("elementwise_kernel<direct_copy_kernel_cuda>", "copy or cast"),
        ("GeluCUDAKernelImpl", "gelu"),
        ("triton_poi_fused_add_0", "compiled"),
        ("vectorized_elementwise_kernel<add>", "elementwise"),
    ],
)
def test_a_kernel_is_known_by_its_name(name, kind):
    from gpu_trace import kind_of

    assert kind_of(name) == kind


def test_the_attention_constants_follow_from_the_times():
    from attention import plain_below

    times = {100: {"plain": 1.0, "per_head": 2.0}, 500: {"plain": 3.0, "per_head": 2.9},
             900: {"plain": 5.0, "per_head": 4.0}}  # fmt: skip

    assert plain_below(times) == (500, "per_head")
    assert plain_below({100: {"plain": 1.0, "sdpa": 2.0}}) == (None, "plain")


def test_the_attentions_agree_before_they_are_raced():
    from attention import jobs

    found = [(job.stage, job.what, len(job.contestants)) for job in jobs(CPU, [11, 54])]

    assert found == [("bf16", "11", 3), ("bf16", "54", 3), ("fp32", "11", 3), ("fp32", "54", 3)]
