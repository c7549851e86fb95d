"""Trainings that start from another run: whose encoder they have, and what of it is adapted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_benchmark import FINETUNE, PRETRAIN, make_store, write_benchmark

from mim3d.config.encoder import EncoderConfig
from mim3d.config.plan import FinetunePlanConfig
from mim3d.config.reading import read_config
from mim3d.config.verbs import BenchmarkConfig, FinetuneConfig, PretrainConfig
from mim3d.foundation.errors import ConfigError, UserError, WeightsError
from mim3d.foundation.reporting import Silent
from mim3d.models.resize import resized_kernel
from mim3d.training.checkpoints import read_weights
from mim3d.workflows import initial
from mim3d.workflows.convergence.arms import Arm, read_arms
from mim3d.workflows.convergence.planning import _as_traced as as_traced
from mim3d.workflows.finetune import finetune
from mim3d.workflows.initial import encoder_for
from mim3d.workflows.loading import load_segmenter
from mim3d.workflows.plan import subject
from mim3d.workflows.pretrain import pretrain
from mim3d.workflows.run_weights import checkpoint_of, encoder_of

KERNEL = "encoder.embedding.projection.weight"
STORE_MM = (1.0, 1.0, 2.5)
FOUND = EncoderConfig(
    preset="tiny", depth=3, patch=(8, 8, 8), channels=1, learned_grid=(2, 3, 4),
    positions="rotary_mm", default_spacing_mm=(1.0, 2.0, 3.0),
)  # fmt: skip


class Lines(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def store_of(*names: str) -> Any:
    return SimpleNamespace(
        path="stores/one", channel_names=names, median_spacing_mm=(1.0, 1.0, 2.5)
    )


def asked(found: EncoderConfig, monkeypatch: pytest.MonkeyPatch, *names: str,
          said: set[str] | None = None, adapt: tuple[Any, ...] | None = None,
          **fields: Any) -> EncoderConfig:  # fmt: skip
    """The encoder of a fine-tuning that starts from a run of `found`."""
    monkeypatch.setattr(initial, "encoder_of", lambda run, which: found)
    config = FinetuneConfig(encoder=EncoderConfig(**fields), init="runs/one", init_adapt=adapt)
    return encoder_for(config, store_of(*(names or ("t1",))), said)


def test_where_nothing_is_said_the_encoder_is_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked(FOUND, monkeypatch, said=set(), drop_path=0.1)

    # Spacing is the store's: that of the run may be another cohort's.
    assert found == replace(FOUND, drop_path=0.1, default_spacing_mm=STORE_MM)


def test_listed_settings_may_differ_and_the_rest_stays_the_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = asked(
        FOUND, monkeypatch, "t1", "t2", said={"encoder.patch", "encoder.wavelengths_mm"},
        adapt=("patch", "channels", "positions"), patch=(16, 16, 4), wavelengths_mm=(1.0, 99.0),
    )  # fmt: skip

    expected = replace(FOUND, patch=(16, 16, 4), channels=2, wavelengths_mm=(1.0, 99.0))
    assert encoder == replace(expected, default_spacing_mm=STORE_MM)


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"patch": (4, 4, 4)}, "--init_adapt positions,patch"),
        ({"wavelengths_mm": (1.0, 9.0)}, "--encoder.wavelengths_mm 8.0,800.0"),
        ({"preset": "small"}, "--encoder.preset tiny"),
    ],
)
def test_what_contradicts_the_run_is_refused_with_the_option_to_type(
    fields: dict[str, Any], remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapt = ("positions",) if "patch" in fields else None

    with pytest.raises(ConfigError) as refused:
        asked(FOUND, monkeypatch, adapt=adapt, **fields)

    assert remedy in str(refused.value.remedy)
    assert ("--init_adapt" in str(refused.value.remedy)) == ("preset" not in fields)


def test_a_store_of_more_channels_names_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match="has 1 channel, but `stores/one` has 2: t1, t2"
    ) as refused:
        asked(FOUND, monkeypatch, "t1", "t2", adapt=("patch",))

    assert "--init_adapt patch,channels" in str(refused.value.remedy)


def test_channels_that_cannot_be_adapted_are_refused_before_the_run_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(WeightsError, match="weights of 3 channels cannot be adapted to 2"):
        asked(replace(FOUND, channels=3), monkeypatch, "t1", "t2", adapt=("channels",))


def test_a_learned_table_goes_to_the_grid_of_the_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    found = replace(FOUND, positions="learned")

    stays = asked(found, monkeypatch, said=set())
    goes = asked(found, monkeypatch, said=set(), adapt=("positions",))

    assert stays.learned_grid == (2, 3, 4)
    # Crops of 96 in patches of 8.
    assert goes == replace(found, learned_grid=(12, 12, 12), default_spacing_mm=STORE_MM)


def test_adapting_to_the_default_patch_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what was written down, a default could not be told from silence."""
    assert asked(FOUND, monkeypatch, adapt=("patch",)).patch == (16, 16, 16)
    assert asked(FOUND, monkeypatch, adapt=("patch",), said=set()).patch == (8, 8, 8)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store, and a run of two steps in patches of 4 x 4 x 4."""
    folder = tmp_path_factory.mktemp("initial")
    store = make_store(folder, subjects=4)
    (folder / "pretrain.yaml").write_text(PRETRAIN)
    changes = {"data.store": str(store), "training.steps": 2}
    config = read_config(folder / "pretrain.yaml", PretrainConfig, changes)
    pretrain(config, out=str(folder / "run"), reporter=Silent())
    return store, folder / "run"


def finetuning(begun: tuple[Path, Path], folder: Path, **changes: Any) -> FinetuneConfig:
    store, run = begun
    path = folder / "finetune.yaml"
    path.write_text(FINETUNE.replace("patch: [4, 4, 4]", "patch: [8, 8, 2]"))
    plain = {"data.store": str(store), "init": str(run), "training.steps": 2}
    return read_config(path, FinetuneConfig, {**plain, **changes})


def test_a_start_from_a_run_that_saw_those_who_judge_is_told(
    begun: tuple[Path, Path], tmp_path: Path
) -> None:
    config = finetuning(begun, tmp_path, init_adapt="patch", **{"data.inner_fold": 0})
    reporter = Lines()

    finetune(config, out=str(tmp_path / "tuned"), reporter=reporter)

    told = [line for line in reporter.lines if "judged cases, without their labels" in line]
    assert len(told) == 1
    assert told[0].startswith(f"`{begun[1]}` was pre-trained on the images of")


def test_a_fine_tuning_adapts_the_patch_says_so_and_keeps_a_record(
    begun: tuple[Path, Path], tmp_path: Path
) -> None:
    config = finetuning(begun, tmp_path, init_adapt="patch", **{"optim.lr": 0.0})
    reporter, out = Lines(), tmp_path / "tuned"

    finetune(config, out=str(out), reporter=reporter)

    said = f"`{KERNEL.removeprefix('encoder.')}` was 24 x 64, now 24 x 128"
    assert any(line.startswith(f"adapted {said}") for line in reporter.lines)
    assert not any("judged cases" in line for line in reporter.lines)
    (adapted,) = json.loads((out / "init.json").read_text())["adapted"]
    assert (adapted["found"], adapted["made"]) == ([24, 64], [24, 128])
    assert adapted["reason"] == "`encoder.patch` 4,4,4 to 8,8,2"
    # At a rate of 0 the run still has what it began with, and it predicts from its folder alone.
    before, _ = read_weights(checkpoint_of(begun[1]))
    after, _ = read_weights(checkpoint_of(out))
    expected = resized_kernel(before[KERNEL], (4, 4, 4), (8, 8, 2), 1)
    assert torch.equal(after[KERNEL], expected)
    assert load_segmenter(out, device="cpu").network.encoder.patch == (8, 8, 2)  # type: ignore[attr-defined]


def test_without_the_option_nothing_is_written(begun: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`encoder.patch` is \(8, 8, 2\)") as refused:
        finetune(finetuning(begun, tmp_path), out=str(tmp_path / "tuned"), reporter=Silent())

    assert "`--init_adapt patch`" in str(refused.value.remedy)
    assert not (tmp_path / "tuned").exists()


def test_a_run_that_adapts_nothing_keeps_the_record_it_always_kept(
    begun: tuple[Path, Path], tmp_path: Path
) -> None:
    config = finetuning(begun, tmp_path, **{"encoder.patch": "4,4,4"}, init_adapt="patch,channels")

    finetune(config, out=str(tmp_path / "tuned"), reporter=Silent())

    assert "adapted" not in json.loads((tmp_path / "tuned" / "init.json").read_text())


def test_pretraining_goes_on_with_the_runs_encoder_at_another_patch(
    begun: tuple[Path, Path], tmp_path: Path
) -> None:
    """Width and depth are silent in this config: before, it was `base` and its weights misfits."""
    store, run = begun
    path = tmp_path / "pretrain.yaml"
    size = "preset: tiny, width: 24, depth: 4, heads: 2, "
    path.write_text(PRETRAIN.replace(f"{size}patch: [4, 4, 4]", "patch: [8, 8, 4]"))
    changes = {"data.store": str(store), "training.steps": 1, "init": str(run)}
    plain = read_config(path, PretrainConfig, changes)
    config = replace(plain, init_adapt=("patch",))

    with pytest.raises(UserError, match=r"encoder.patch"):
        pretrain(plain, out=str(tmp_path / "run"), said={"encoder.patch"}, reporter=Silent())
    pretrain(config, out=str(tmp_path / "run"), said={"encoder.patch"}, reporter=Silent())

    found = encoder_of(tmp_path / "run")
    assert (found.width, found.depth, found.patch) == (24, 4, (8, 8, 4))
    assert json.loads((tmp_path / "run" / "init.json").read_text())["adapted"]


def arms_of(folder: Path, finetuning: str) -> dict[str, Arm]:
    """Arms of which one fine-tunes in another patch than it is pre-trained with."""
    arms = f"  scratch: {{}}\n  mae: {{pretrain: {{}}, finetune: {{{finetuning}}}}}\n"
    path = write_benchmark(folder, "stores/one", arms)
    settings = read_config(path, BenchmarkConfig).convergence
    return {arm.name: arm for arm in read_arms(path, settings)}


def test_an_arm_may_be_fine_tuned_in_another_patch_and_is_planned_so(tmp_path: Path) -> None:
    arms = arms_of(tmp_path, "encoder: {patch: [16, 16, 16]}, init_adapt: [patch]")

    traced = as_traced(arms["mae"], arms)

    assert arms["mae"].pretrain is not None
    assert arms["mae"].pretrain.encoder.patch == (4, 4, 4)
    assert (traced.encoder.patch, traced.encoder.width) == ((16, 16, 16), 24)


def test_an_arm_of_two_patches_is_refused_with_the_line_to_write(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`encoder.patch` \(4, 4, 4\) in its") as refused:
        arms_of(tmp_path, "encoder: {patch: [8, 8, 8]}")

    assert "`init_adapt: [patch]` under `finetune`" in str(refused.value.remedy)


def test_a_plan_counts_the_tokens_of_the_adapted_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "encoder_of", lambda run, which: FOUND)
    plain = FinetunePlanConfig(encoder=EncoderConfig(patch=(16, 8, 4)), init="runs/one")
    config = replace(plain, data=replace(plain.data, crop_size=(32, 32, 32)))

    planned = subject.subject_of(replace(config, init_adapt=("patch",)))

    assert (planned.encoder.patch, planned.encoder.depth) == ((16, 8, 4), 3)
    assert planned.tokens["all"] == 2 * 4 * 8
    with pytest.raises(ConfigError, match=r"encoder.patch"):
        subject.subject_of(config)
