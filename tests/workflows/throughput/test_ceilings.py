"""The limits of a machine, measured small."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from mim3d.workflows.throughput.ceilings import measure_ceilings, product_error
from mim3d.workflows.throughput.clock import fastest

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ceilings():
    return measure_ceilings(CPU, seconds=0.0, shapes=[(32, 48, 64)], buffer_bytes=2**16)


def test_every_limit_of_a_cpu_is_a_positive_number(ceilings):
    found = ceilings.as_json()
    words = ("bf16", "fp32", "fp32_medium", "copy", "read", "write", "inflate")

    assert all(math.isfinite(found[word]) and found[word] > 0 for word in words)
    assert found["best_bf16_shape"] == (32, 48, 64)
    assert found["host_to_device"] is None
    assert json.loads(json.dumps(found))["device"] == "cpu"


def test_the_matrix_setting_is_left_as_it_was():
    torch.set_float32_matmul_precision("high")
    try:
        measure_ceilings(CPU, seconds=0.0, shapes=[(8, 8, 8)], buffer_bytes=2**12)

        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_error_tells_bf16_from_fp32():
    # Rounding to 8 bits of mantissa is off by 2^-9 = 2e-3 at most, by about 2e-3 over a whole sum.
    assert 5e-4 < product_error(CPU, torch.bfloat16) < 1e-2
    assert 0 < product_error(CPU, torch.float32) < 1e-5


def test_without_bf16_work_is_measured_against_fp32(ceilings):
    without = replace(ceilings, bf16=None)

    assert without.rate("bf16") == ceilings.fp32
    assert ceilings.rate("bf16") == ceilings.bf16
    assert without.rate("copy") == ceilings.copy


def test_the_fastest_of_several_calls_counts():
    calls = []

    seconds = fastest(lambda: calls.append(sum(range(1000))), CPU, 0.0)

    assert len(calls) == 4  # one more, to warm up
    assert seconds > 0
