"""The plan of a training, from config to table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plans import DATA, MASKED, TINY, facts

from mim3d.cli.main import main
from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.plan import FinetunePlanConfig, PlanConfig
from mim3d.config.reading import read_config
from mim3d.config.task import DecoderConfig, SegmentationConfig
from mim3d.config.training import TrainingConfig
from mim3d.config.verbs import PrepareConfig
from mim3d.data.batch import BatchNeeds
from mim3d.data.feed import make_feed, share
from mim3d.data.files import write_label, write_volume
from mim3d.data.phantom import PhantomRule, make_volume
from mim3d.data.store import open_store
from mim3d.data.volume import Volume
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.reporting import Silent
from mim3d.workflows.plan import plan as room
from mim3d.workflows.plan.machines import GPUS, Hardware
from mim3d.workflows.plan.plan import plan
from mim3d.workflows.prepare import prepare


def test_parameters_tokens_and_checkpoint_are_those_of_the_real_modules() -> None:
    found = facts()

    task = room.subject_of(MASKED).build()
    total = sum(p.numel() for p in task.parameters())
    assert found["parameters"]["total"] == total
    assert found["parameters"]["encoder"] == sum(p.numel() for p in task.encoder.parameters())
    # Grid 4 x 4 x 6; a quarter is visible.
    assert found["tokens"] == {"all": 96, "visible": 24, "decoded": 72}
    assert found["checkpoint_mb"] == 4 * 5 * total / 1e6
    assert found["batch"] == {"global": 16, "micro": 16, "accumulation": 1}


def test_steps_follow_from_passes_over_the_cohort() -> None:
    """10 volumes of 64 x 64 x 48 hold 160 crops of 16 x 32 x 24: 10 steps of 16 a pass."""
    found = facts(epochs=2.5)

    assert found["time"]["steps"] == 25
    assert found["time"]["hours"] == pytest.approx(25 * found["time"]["step_seconds"] / 3600)
    assert facts()["time"]["epochs"] == pytest.approx(MASKED.training.steps / 10)


def test_a_batch_that_does_not_divide_is_refused_as_training_refuses_it() -> None:
    with pytest.raises(ConfigError, match="does not divide into 3 devices"):
        facts(devices=3)


@pytest.mark.parametrize("name", ["devices", "volumes", "epochs", "disk_mb_s", "resident_gb"])
def test_numbers_with_which_nothing_can_be_planned_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"`plan.{name}` is 0"):
        facts(**{name: 0})


def test_a_step_that_does_not_fit_comes_with_a_change_that_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed = facts()["memory"]["needed_gb"]
    small = Hardware("small", "made up", 1e12, 1e12, 1e11, 0.8 * needed * 1e9)
    monkeypatch.setitem(GPUS, "h200", small)

    (warning,) = facts()["warnings"]

    assert "a step needs" in warning
    assert "--training.accumulation" in warning
    accumulation = int(warning.split("accumulation ")[1].split("`")[0])
    training = replace(MASKED.training, accumulation=accumulation)
    assert facts(replace(MASKED, training=training))["memory"]["fits"]


def test_a_slow_disk_is_the_bound_and_is_told() -> None:
    slow = facts(disk_mb_s=0.001)

    assert slow["time"]["is_bound_by_feed"]
    assert slow["time"]["step_seconds"] == pytest.approx(slow["feed"]["feed_seconds"])
    assert any("the disk delivers" in warning for warning in slow["warnings"])
    assert not facts(disk_mb_s=1e6)["time"]["is_bound_by_feed"]


RESIDENT = replace(MASKED, data=replace(DATA, feed="resident"))
VOLUME_GB = 64 * 64 * 48 * 2 / 1e9


def test_a_cohort_beyond_memory_comes_with_a_window_that_fits() -> None:
    said = {"resident_gb": 8.5 * VOLUME_GB, "volumes": 100, "devices": 2, "disk_mb_s": 1}

    (warning,) = facts(RESIDENT, **said)["warnings"]

    assert "each device keeps the whole cohort: it needs 0.0393 GB and has 0.00334" in warning
    window, visit = (
        int(warning.split(f"{word} ")[1].split("`")[0].split()[0])
        for word in ("window_cases", "max_crops_per_visit")
    )
    assert window % 2 == 0
    data = replace(RESIDENT.data, window_cases=window, max_crops_per_visit=visit)
    bounded = facts(replace(RESIDENT, data=data), **said)
    assert bounded["warnings"] == []
    assert bounded["feed"]["resident"]["fits"]
    assert bounded["feed"]["resident"]["residence"]["volumes"] == window // 2
    assert bounded["feed"]["feed_seconds"] <= bounded["time"]["compute_seconds"]
    fewer = replace(data, max_crops_per_visit=max(1, visit // 2))
    waiting = facts(replace(RESIDENT, data=fewer), **said)
    assert waiting["time"]["is_bound_by_feed"]
    assert f"`--data.max_crops_per_visit {visit}` suffices" in waiting["warnings"][0]


def test_devices_do_not_share_out_a_cohort_without_a_window() -> None:
    """Half of the volumes would fit on each of two devices; the feed keeps all on both."""
    said = {"resident_gb": 60.5 * VOLUME_GB, "volumes": 100, "devices": 2}

    found = facts(RESIDENT, **said)

    assert found["feed"]["resident"]["reserved_gb"] == pytest.approx(100 * VOLUME_GB)
    assert not found["feed"]["resident"]["fits"]
    assert facts(RESIDENT, **{**said, "resident_gb": 100.5 * VOLUME_GB})["warnings"] == []


def test_a_window_beyond_memory_or_not_shared_out_is_told() -> None:
    def warned(window: int, volumes: float) -> list[str]:
        data = replace(RESIDENT.data, window_cases=window, max_crops_per_visit=10**6)
        config = replace(RESIDENT, data=data)
        return list(
            facts(config, volumes=100, devices=2, resident_gb=volumes * VOLUME_GB)["warnings"]
        )

    (large,), (odd,) = warned(48, 20), warned(33, 90)

    assert "`--data.window_cases 48` takes" in large
    assert "the feed refuses to begin; draw from a window" in large
    assert "`--data.window_cases 33` is no multiple of 2 devices" in odd
    assert "each reads 33 of its volumes; take `--data.window_cases 32`" in odd
    assert warned(32, 90) == []


def test_the_host_of_a_gpu_keeps_volumes_without_a_word_about_its_memory() -> None:
    host = replace(RESIDENT, data=replace(RESIDENT.data, resident_on="host"))

    found = facts(host, volumes=10**5)

    assert found["feed"]["resident"]["free_gb"] is None
    assert found["warnings"] == []
    assert not facts(host, volumes=10**5, resident_gb=1)["feed"]["resident"]["fits"]


def test_only_a_resident_feed_has_rows_of_resident_volumes() -> None:
    store, resident = (plan(config, reporter=Silent()).text for config in (MASKED, RESIDENT))

    assert "| resident" not in store
    assert "GB a device of" in resident
    assert "the whole cohort |" in resident


def test_the_table_says_one_device_and_units() -> None:
    one = plan(MASKED, reporter=Silent()).text
    two = plan(replace(MASKED, plan=replace(MASKED.plan, devices=2)), reporter=Silent()).text
    parts = replace(MASKED, training=replace(MASKED.training, accumulation=4))

    assert "16 crops: 1 device x 1 part x 16 |" in one
    assert "16 crops: 2 devices x 1 part x 8 |" in two
    assert "16 crops: 1 device x 4 parts x 4 |" in plan(parts, reporter=Silent()).text
    assert "the disk gives 1.00 GB/s |" in one
    with pytest.raises(ConfigError, match="into 1 device x 3 accumulation steps"):
        facts(replace(MASKED, training=replace(MASKED.training, accumulation=3)))


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("--plan.volume_shape 0,512,300", "`plan.volume_shape` is 0"),
        ("--data.crop_size 0,32,24", "`data.crop_size` is 0"),
        ("--training.accumulation 0", "`training.accumulation` is 0"),
        ("--training.batch_size 0", "`training.batch_size` is 0"),
        ("--training.steps 0", "`training.steps` is 0"),
        ("--verb finetune --plan.classes 1", "`plan.classes` is 1, expected at least 2"),
        ("--gpu h2000", "`plan.gpu` is `h2000`"),
        ("--data.feed resident --data.window_cases 5", "needs `data.max_crops_per_visit`"),
        ("--data.resident_on device", "needs `data.feed resident`"),
    ],
)
def test_numbers_that_cannot_be_end_as_wrong_usage_and_not_as_a_bug(
    line: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "any.yaml"
    path.write_text("encoder: {preset: tiny}\n")
    gpu = [] if "--gpu" in line else ["--gpu", "a100"]

    code = main(["plan", str(path), *gpu, *line.split()])

    told = capsys.readouterr().err
    assert code == 2
    assert what in told


def test_a_gpu_may_be_written_in_capitals() -> None:
    assert facts(gpu="H200")["machine"]["name"] == "H200"
    with pytest.raises(ConfigError, match="`plan.gpu` is `h20`") as caught:
        facts(gpu="h20")
    assert "--gpu h200" in str(caught.value.remedy)


def test_a_name_of_two_verbs_is_planned_as_the_first_and_the_table_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = main(["plan", "hippocampus", "--gpu", "a100"])

    told = capsys.readouterr().out
    assert code == 0
    assert "assumed: a config of `pretrain` (for another add `--verb finetune`)" in told


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Hardware("here", "by hand", 1e9, 1e9, 1e9, 64e9)
    monkeypatch.setattr(room, "this_machine", lambda: here)

    found = facts(gpu="cpu", measure=False, devices=4, devices_per_node=2)

    assert found["machine"]["memory"] == 32e9


def test_fsdp_needs_less_memory_than_ddp() -> None:
    base = replace(MASKED, encoder=EncoderConfig(preset="base", depth=6, patch=(8, 8, 8)))
    sharded = replace(base, training=TrainingConfig(batch_size=16, strategy="fsdp"))

    ddp, fsdp = (facts(config, devices=8) for config in (base, sharded))

    assert fsdp["memory"]["needed_gb"] < 0.7 * ddp["memory"]["needed_gb"]
    assert (ddp["machine"]["strategy"], fsdp["machine"]["strategy"]) == ("ddp", "fsdp")


@pytest.mark.parametrize("regions", [None, "brats2021"])
@pytest.mark.parametrize("decoder", ["unetr", "half", "interpolate", "hybrid", "light"])
def test_every_decoder_is_planned(decoder: Any, regions: str | None) -> None:
    config = FinetunePlanConfig(
        data=DATA,
        encoder=TINY,
        decoder=DecoderConfig(name=decoder),
        objective=SegmentationConfig(regions=regions),
        training=TrainingConfig(batch_size=2),
        plan=PlanConfig(gpu="a100"),
    )

    found = facts(config)

    assert found["flop"]["gflop_per_crop"] > 0
    assert found["parameters"]["decoder"] > 0
    assert found["tokens"]["visible"] == found["tokens"]["all"] == 96
    has_default_classes = any("14 classes" in line for line in found["assumptions"])
    assert has_default_classes == (regions is None)


def test_on_this_machine_a_real_step_corrects_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Hardware("here", "by hand", 1e9, 1e9, 1e9, 64e9)
    monkeypatch.setattr(room, "this_machine", lambda: here)

    found = facts(gpu="cpu")
    blind = facts(gpu="cpu", measure=False)

    measured = found["time"]["measured"]
    assert measured["seconds"] > 0
    assert found["time"]["correction"] == pytest.approx(
        found["time"]["compute_seconds"] / blind["time"]["compute_seconds"]
    )
    if measured["crops"] == 16:
        assert found["time"]["compute_seconds"] == pytest.approx(measured["seconds"])
    assert blind["time"]["measured"] is None
    assert blind["time"]["correction"] == 1.0


def test_the_table_can_be_pasted_and_the_file_holds_the_same(tmp_path: Path) -> None:
    result = plan(MASKED, out=str(tmp_path / "plan.json"), reporter=Silent())

    lines = result.text.splitlines()
    assert lines[0].startswith("| what")
    assert all(line.count("|") == 3 for line in lines if line.startswith("|"))
    assert len({line.index("|", 2) for line in lines if line.startswith("|")}) == 1
    assert json.loads((tmp_path / "plan.json").read_text()) == json.loads(json.dumps(result.facts))
    assert result.files == (tmp_path / "plan.json",)


def test_a_store_says_channels_classes_volumes_and_their_shape(tmp_path: Path) -> None:
    rule = PhantomRule(shape=(33, 28, 25), spacing_mm=(1.0, 1.5, 2.0), channels=2, organs=3)
    pairs = []
    for index in range(4):
        rule = replace(rule, shape=(33 + 4 * index, 28, 25))
        voxels, labels = make_volume(0, index, rule)
        grid = Volume.from_array(voxels, np.diag([*rule.spacing_mm, 1.0]))
        image, label = (f"{part}/case_{index}.nii.gz" for part in ("imagesTr", "labelsTr"))
        write_volume(tmp_path / "source" / image, voxels, grid)
        write_label(tmp_path / "source" / label, labels.astype(np.uint8), grid)
        pairs.append({"image": f"./{image}", "label": f"./{label}"})
    content = {
        "name": "phantom",
        "labels": {str(i): name for i, name in enumerate(rule.class_names)},
        "modality": {"0": "MRI", "1": "MRI"},
        "training": pairs[:3],
        "validation": pairs[3:],
        "test": [],
    }
    (tmp_path / "source/dataset.json").write_text(json.dumps(content))
    settings = {"prepare.workers": "0", "prepare.crop_to_body": "false"}
    preparing = read_config(None, PrepareConfig, settings)
    store = str(tmp_path / "store")
    prepare(str(tmp_path / "source"), out=store, config=preparing, reporter=Silent())
    config = FinetunePlanConfig(
        data=replace(DATA, store=store),
        encoder=TINY,
        decoder=DecoderConfig(name="light", feature_size=4),
        plan=PlanConfig(gpu="h200"),
    )

    found = facts(config)

    assert found["feed"]["volumes"] == 3
    # 33, 37 and 41 planes are trained on, 45 validate; the store's median is of all.
    assert found["feed"]["volume_shape"] == [39, 28, 25]
    assert found["feed"]["cohort_gb"] == pytest.approx((33 + 37 + 41) * 28 * 25 * 2 * 2 / 1e9)
    assert found["assumptions"] == []
    task = room.subject_of(config).build()
    assert task.encoder.channels == 2
    assert task.decoder.out.out_channels == len(rule.class_names)
    for window in ({}, {"window_cases": 2, "max_crops_per_visit": 5}):
        data = replace(config.data, feed="resident", resident_on="device", **window)
        planned = facts(replace(config, data=data), devices=2)["feed"]["resident"]
        assert planned["reserved_gb"] * 1e9 == pytest.approx(reserved_by_feed(store, data))


def reserved_by_feed(store: str, data: DataConfig) -> int:
    """Bytes that the first of two devices really takes for volumes with labels."""
    opened = open_store(store)
    feed = make_feed(
        opened,
        opened.ids("training"),
        data=data,
        augmentation=AugmentationConfig(),
        needs=BatchNeeds(labels=True),
        batch_size=TrainingConfig().batch_size,
        seed=0,
        device=torch.device("cpu"),
    )
    memory = feed._residency(range(1), share(TrainingConfig().batch_size, 0, 2, 1), 1).volumes
    assert memory.labels is not None
    return memory.voxels.nbytes + memory.labels.nbytes


def test_the_command_prints_the_plan_of_a_config_that_ships(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = main(["plan", "mimmed3d_mae_btcv", "--gpu", "a100", "--devices", "2", "--json"])

    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found["facts"]["machine"]["devices"] == 2
    assert found["facts"]["verb"] == "pretrain"


def test_a_plan_leaves_torchs_generator_and_attention_as_they_were() -> None:
    before = torch.random.get_rng_state()

    facts()

    assert torch.equal(torch.random.get_rng_state(), before)
