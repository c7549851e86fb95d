"""From a config to its pretext task, and which checkpoint of it is `best`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from safetensors.torch import load_file

from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig, ProbesConfig, TeacherConfig
from mim3d.config.reading import read_config
from mim3d.config.training import OptimConfig, TrainingConfig
from mim3d.config.verbs import PreparationConfig, PrepareConfig, PretrainConfig
from mim3d.data.phantom import PhantomRule, make_cohort
from mim3d.data.store import open_store
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.reporting import Silent
from mim3d.models.vit import VolumeViT
from mim3d.training.checkpoints import Saved
from mim3d.training.run import Run
from mim3d.workflows import pretrain
from mim3d.workflows.assembly import preparation_record
from mim3d.workflows.prepare import prepare
from mim3d.workflows.run_record import keep_preparation, load_preparation


def test_a_teacher_begins_as_a_copy_of_the_encoder_that_init_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Loaded behind the task, the encoder had a teacher of random weights."""

    def start_from(encoder: VolumeViT, *_: Any) -> None:
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.fill_(0.25)

    monkeypatch.setattr(pretrain, "start_from", start_from)
    config = PretrainConfig(
        data=DataConfig(store="none"),
        encoder=EncoderConfig(width=24, depth=1, heads=2, patch=(4, 4, 4)),
        objective=PretextConfig(name="byol"),
        init="runs/before",
    )

    task: Any = pretrain.pretext_task(config, Silent())

    for mine, theirs in zip(
        task.teacher.module.encoder.parameters(), task.encoder.parameters(), strict=True
    ):
        assert torch.equal(mine, torch.full_like(mine, 0.25))
        assert torch.equal(mine, theirs)


def test_the_fixed_loss_chooses_for_tasks_that_predict_voxels_alone() -> None:
    names = get_args(get_type_hints(PretextConfig)["name"])
    choosing = {name for name in names if pretrain.chooses_best(PretextConfig(name=name))}

    assert choosing == {"mae", "simmim", "smit", "autoencoder", "denoising"}
    assert {"simclr", "mocov3", "byol", "vicreg", "dino", "voco"} <= set(names) - choosing
    ibot = PretextConfig(name="smit", teacher=TeacherConfig(voxel_weight=0.0))
    assert not pretrain.chooses_best(ibot)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    rule = PhantomRule(shape=(22, 18, 14), organs=1)
    make_cohort(folder / "cohort", seed=1, training=4, validation=0, rule=rule)
    settings = PrepareConfig(PreparationConfig(workers=0))
    prepare(str(folder / "cohort"), out=str(folder / "store"), config=settings, reporter=Silent())
    return folder / "store"


class Warned(Silent):
    """Keeps what a user is warned of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.parametrize(
    ("task", "noise", "expected"), [("simclr", 0.0, 1), ("simclr", 0.1, 0), ("mae", 0.0, 0)]
)
def test_views_that_differ_in_place_alone_are_warned_of(
    store: Path, tmp_path: Path, task: Any, noise: float, expected: int
) -> None:
    config = PretrainConfig(
        data=DataConfig(store=str(store), crop_size=(16, 16, 12)),
        augmentation=AugmentationConfig(noise=noise),
        encoder=EncoderConfig(width=24, depth=2, heads=2, patch=(4, 4, 4)),
        objective=PretextConfig(name=task, decoder_width=24, decoder_depth=1, decoder_heads=2),
        training=TrainingConfig(steps=1, batch_size=2, pictures_every=0, threads=1, device="cpu"),
        probes=ProbesConfig(every=0),
    )
    reporter = Warned()

    pretrain.pretrain(config, out=str(tmp_path / "run"), reporter=reporter)

    said = [text for text in reporter.warnings if "every `augmentation` is off" in text]
    assert len(said) == expected


def test_a_run_goes_on_with_the_store_it_began_with_alone(store: Path, tmp_path: Path) -> None:
    opened = open_store(store)
    record = preparation_record(opened, tuple(opened.cases), "pretrain")
    other = {**record, "trained_on": {**record["trained_on"], opened.cases[0]: "0" * 64}}
    run = Run(tmp_path)

    keep_preparation(run, other)  # nothing was learned from it yet
    keep_preparation(run, record)
    run.checkpoints.write(1, weights={}, header={}, saved=Saved({}, {}), is_best=True)
    keep_preparation(run, record)
    with pytest.raises(ConfigError, match=rf"`trained_on.{opened.cases[0]}` differs"):
        keep_preparation(run, other)

    assert load_preparation(tmp_path)["trained_on"] == record["trained_on"]


def test_a_finished_run_is_lost_only_when_the_one_that_overwrites_it_begins(
    store: Path, tmp_path: Path
) -> None:
    """Each of these was refused, and the finished run was empty."""
    done = drawing(store)
    done = replace(done, training=replace(done.training, steps=1), probes=ProbesConfig(every=0))
    folder = tmp_path / "run"
    pretrain.pretrain(done, out=str(folder), reporter=Silent())
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    for refused in (
        replace(done, augmentation=AugmentationConfig(zoom=1.5)),
        replace(done, training=replace(done.training, accumulation=3)),
        replace(done, data=replace(done.data, overhang=(-1, 0, 0))),
        replace(done, optim=OptimConfig(lr=-1.0)),
    ):
        with pytest.raises(ConfigError):
            pretrain.pretrain(refused, out=str(folder), reporter=Silent(), overwrite=True)

        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before

    other = replace(done, training=replace(done.training, seed=1))
    pretrain.pretrain(other, out=str(folder), reporter=Silent(), overwrite=True)
    kept = read_config(folder / "config.yaml", PretrainConfig)
    steps = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert kept.training.seed == 1
    assert sum(line["kind"] == "train" for line in steps) == 1
    assert (folder / "preparation.json").is_file()


@pytest.mark.parametrize("task", ["mae", "vicreg"])
def test_best_is_the_smallest_fixed_loss_or_the_last(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Any
) -> None:
    """The loss of step 1 is the smallest here; a collapse looks like that to `vicreg`."""
    real = pretrain.fixed_loss

    def growing(*arguments: Any) -> Any:
        looker = real(*arguments)
        return replace(looker, function=lambda task, moment: {"fixed_loss": float(moment.step)})

    monkeypatch.setattr(pretrain, "fixed_loss", growing)
    config = PretrainConfig(
        data=DataConfig(store=str(store), crop_size=(16, 16, 12)),
        encoder=EncoderConfig(width=24, depth=4, heads=2, patch=(4, 4, 4)),
        objective=PretextConfig(
            name=task, decoder_width=24, decoder_depth=1, decoder_heads=2
        ),
        optim=OptimConfig(lr=1e-3),
        training=TrainingConfig(
            steps=3, batch_size=4, validate_every=1, pictures_every=0, threads=1, device="cpu",
            precision="fp32",
        ),
        probes=ProbesConfig(every=0),
    )  # fmt: skip

    result = pretrain.pretrain(config, out=str(tmp_path / "run"), reporter=Silent())

    places = tmp_path / "run" / "checkpoints"
    steps = {name: int((places / name).resolve().name) for name in ("best", "last")}
    assert steps == {"best": 1 if task == "mae" else 3, "last": 3}
    said = "`best` is the last checkpoint: the loss of vicreg chooses nothing"
    assert (said in result.text) == (task == "vicreg")
    logged = (tmp_path / "run" / "log.jsonl").read_text()
    assert logged.count("fixed_loss") >= 3


def test_pretraining_on_several_sizes_without_air_runs_and_logs(
    store: Path, tmp_path: Path
) -> None:
    config = PretrainConfig(
        data=DataConfig(
            store=str(store), crop_size=(16, 16, 12), crop_sizes=((16, 16, 12), (20, 12, 8))
        ),
        encoder=EncoderConfig(width=24, depth=4, heads=2, patch=(4, 4, 4)),
        objective=PretextConfig(
            name="mae", drop_air=True, decoder_width=24, decoder_depth=1, decoder_heads=2
        ),
        optim=OptimConfig(lr=1e-3),
        training=TrainingConfig(
            steps=3, batch_size=4, accumulation=2, validate_every=2, pictures_every=2, threads=1,
            device="cpu", precision="fp32", log_every=1,
        ),
        probes=ProbesConfig(every=2, subjects=4, crops=4),
    )  # fmt: skip

    pretrain.pretrain(config, out=str(tmp_path / "run"), reporter=Silent())

    logged = (tmp_path / "run" / "log.jsonl").read_text()
    assert logged.count('"masked_share"') >= 3
    assert "fixed_loss" in logged
    assert list((tmp_path / "run" / "pictures").glob("*.png"))


def drawing(store: Path, *patches: tuple[int, int, int]) -> PretrainConfig:
    return PretrainConfig(
        data=DataConfig(
            store=str(store), crop_size=(16, 16, 12), crop_sizes=((16, 16, 12), (20, 12, 8))
        ),
        encoder=EncoderConfig(width=24, depth=4, heads=2, patch=(4, 4, 4)),
        objective=PretextConfig(
            name="mae", patches=patches, decoder_width=24, decoder_depth=1, decoder_heads=2
        ),
        optim=OptimConfig(lr=1e-3),
        training=TrainingConfig(
            steps=8, batch_size=4, accumulation=2, validate_every=4, pictures_every=4, threads=1,
            device="cpu", precision="fp32", log_every=1,
        ),
        probes=ProbesConfig(every=4, subjects=4, crops=4),
    )  # fmt: skip


def test_pretraining_with_patches_drawn_per_step_logs_each_and_keeps_one(
    store: Path, tmp_path: Path
) -> None:
    config = drawing(store, (4, 4, 4), (8, 8, 2))

    pretrain.pretrain(config, out=str(tmp_path / "run"), reporter=Silent())

    written = (tmp_path / "run" / "log.jsonl").read_text()
    lines = [json.loads(line) for line in written.splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    drawn = ["loss_4x4x4" if "loss_4x4x4" in line else "loss_8x8x2" for line in steps]
    assert len(steps) == 8
    assert set(drawn) == {"loss_4x4x4", "loss_8x8x2"}
    for line, name in zip(steps, drawn, strict=True):
        assert [key for key in line if key.startswith("loss_")] == [name]
        assert line[name] == pytest.approx(line["loss"], rel=1e-6)
    weights = load_file(tmp_path / "run" / "checkpoints" / "last" / "weights.safetensors")
    assert weights["encoder.embedding.projection.weight"].shape == (24, 4 * 4 * 4)
    kept = read_config(tmp_path / "run" / "config.yaml", PretrainConfig)
    assert kept.objective == config.objective


def test_a_patch_that_no_crop_can_be_masked_with_is_refused_before_there_is_a_run(
    store: Path, tmp_path: Path
) -> None:
    """20 x 12 x 8 voxels are one token of 20 x 16 x 8; it would stop the run when it is drawn."""
    config = drawing(store, (4, 4, 4), (20, 16, 8))

    with pytest.raises(ConfigError, match="20 x 16 x 8 in `objective.patches`"):
        pretrain.pretrain(config, out=str(tmp_path / "run"), reporter=Silent())

    assert not (tmp_path / "run").exists()
