"""Seconds, bytes and hours, by numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mim3d.workflows.plan import arithmetic as reckon
from mim3d.workflows.plan.arithmetic import Cohort, Sharing
from mim3d.workflows.plan.machines import GPUS, Hardware
from mim3d.workflows.plan.trace import Op

# 100 GFLOP/s in bf16, 10 GB/s, and round shares.
DEVICE = Hardware("test", "by hand", 100e9, 25e9, 10e9, 16e9, product=0.5, attention=0.25,
                  convolution=0.2, launch_seconds=0.0, node_link=8e9, network_link=1e9)  # fmt: skip
COHORT = Cohort(
    volumes=1000,
    volume_shape=(512, 384, 192),
    channels=2,
    crop_size=(96, 64, 32),
    origin_grid=None,
    compression=2.0,
)


def seconds(ops: list[Op], device: Hardware = DEVICE, **changes: object) -> float:
    given = {"passes": 1, "parameters": 0, "is_compiled": False}
    return reckon.step_seconds(ops, device, "bf16", **{**given, **changes})  # type: ignore[arg-type]


def test_each_op_takes_the_longer_of_arithmetic_and_memory() -> None:
    bound_by_flop = Op("product", 5_000_000_000, 1_000, True)  # 5 G / (100 G x 0.5) = 0.1 s
    bound_by_bytes = Op("product", 1_000, 2_000_000_000, True)  # 2 G / 10 G = 0.2 s
    elementwise = Op("other", 0, 1_000_000_000, False)  # 0.1 s
    attention = Op("attention", 5_000_000_000, 0, False)  # 5 G / 25 G = 0.2 s
    convolution = Op("convolution", 5_000_000_000, 0, False)  # 5 G / 20 G = 0.25 s

    assert seconds([bound_by_flop]) == pytest.approx(0.1)
    assert seconds([bound_by_bytes]) == pytest.approx(0.2)
    assert seconds([attention, convolution]) == pytest.approx(0.45)
    assert seconds([bound_by_flop, elementwise], passes=3) == pytest.approx(0.6)
    assert seconds([bound_by_flop, elementwise], is_compiled=True) == pytest.approx(0.15)
    # AdamW: 28 bytes a parameter, once an update.
    assert seconds([elementwise], passes=2, parameters=1_000_000_000) == pytest.approx(0.2 + 2.8)
    # fp32: 25 G x 0.5
    assert reckon.step_seconds(
        [bound_by_flop], DEVICE, "fp32", passes=1, parameters=0, is_compiled=False
    ) == pytest.approx(0.4)


def test_short_kernels_wait_for_their_launches() -> None:
    gpu = replace(DEVICE, launch_seconds=1e-3)

    assert seconds([Op("other", 0, 1000, True)] * 70, gpu) == pytest.approx(0.07)


def test_ddp_and_fsdp_send_what_a_ring_sends() -> None:
    """PERFORMANCE 11: base (85.3 M) 0.68 GB, large (303 M) 2.4 GB, for many devices."""
    assert reckon.exchanged_bytes(85_300_000, Sharing(1024)) / 1e9 == pytest.approx(0.68, abs=0.01)
    assert reckon.exchanged_bytes(303_000_000, Sharing(1024)) / 1e9 == pytest.approx(2.42, abs=0.01)
    assert reckon.exchanged_bytes(100, Sharing(2)) == 400
    assert reckon.exchanged_bytes(100, Sharing(2, is_sharded=True)) == 600
    assert reckon.exchanged_bytes(100, Sharing(1)) == 0


def test_only_what_the_backward_pass_does_not_hide_is_waited_for() -> None:
    # 2 devices send 400 MB: 0.05 s inside a node, 0.4 s between nodes.
    near, far = Sharing(2, per_node=2), Sharing(2, per_node=1)

    assert reckon.exposed_seconds(100_000_000, near, DEVICE, 0.09) == 0.0
    assert reckon.exposed_seconds(100_000_000, near, DEVICE, 0.03) == pytest.approx(0.03)
    assert reckon.exposed_seconds(100_000_000, far, DEVICE, 0.03) == pytest.approx(0.38)
    assert reckon.exposed_seconds(100_000_000, Sharing(1), DEVICE, 0.0) == 0.0


def test_weights_and_moments_are_twelve_bytes_and_shared_out_by_fsdp() -> None:
    alone, eight = Sharing(1, is_sharded=True), Sharing(8, is_sharded=True)

    assert reckon.standing_bytes(1000, 900, 100, alone, has_mean=False) == 4000 + 7200
    assert reckon.standing_bytes(1000, 900, 100, Sharing(8), has_mean=True) == 4000 + 10800
    assert reckon.standing_bytes(1000, 900, 100, eight, has_mean=False) == 11200 / 8 + 400
    assert reckon.checkpoint_bytes(1000, 900, has_mean=True) == 4 * (2000 + 1800 + 900)


@pytest.mark.parametrize("grid", [None, (32, 32, 32), (1, 32, 16)])
def test_bytes_read_for_a_crop_are_those_of_a_walk_over_its_places(grid: object) -> None:
    cohort = replace(COHORT, origin_grid=grid)  # type: ignore[arg-type]
    touched, places = 0, 0
    step_x, step_y, step_z = grid or (1, 1, 1)  # type: ignore[misc]
    for x in range(0, 32, step_x):
        for y in range(0, 32, step_y):
            for z in range(0, 32, step_z):
                boxes = 1
                for start, size in zip((x, y, z), cohort.crop_size, strict=True):
                    boxes *= len({voxel // 32 for voxel in range(start, start + size)})
                touched, places = touched + boxes, places + 1

    assert cohort.read_bytes == pytest.approx(touched / places * 32**3 * 2 * 2)


def test_crops_that_are_read_one_by_one_cost_the_chunks_they_touch() -> None:
    found = reckon.read_seconds(COHORT, 100, 1e9)

    assert found == pytest.approx(100 * COHORT.read_bytes / 2 / 1e9)


def test_a_store_of_different_volumes_counts_each_and_labels_add_a_byte() -> None:
    cohort = replace(COHORT, volumes=5, known_sizes=(100, 300), has_labels=True)

    assert cohort.sizes == [100, 300, 100, 300, 100]
    assert cohort.cohort_bytes == 900 * 2 * 2
    assert cohort.bytes_a_voxel == 2 * 2 + 1
    assert COHORT.bytes_a_voxel == 4
    assert COHORT.volume_bytes == 512 * 384 * 192 * 2 * 2


def test_known_gpus_are_plausible() -> None:
    assert GPUS["h200"].bf16 == 790e12
    assert GPUS["h200"].bandwidth == 4.3e12
    assert not GPUS["v100"].has_bf16
    for gpu in GPUS.values():
        assert gpu.peak("bf16") >= gpu.fp32 > 1e13
        assert 2e10 < gpu.memory < 2e11
