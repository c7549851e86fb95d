"""A pretext task of the caller's own is trained, and noted, as those of the registry are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from preparing import config_with
from torch import nn

from mim3d import CropBatch, Moment, Outcome, Task, VolumeViT
from mim3d.cli.main import main
from mim3d.config.data import DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig
from mim3d.config.reading import read_config
from mim3d.config.training import TrainingConfig
from mim3d.config.verbs import PretrainConfig
from mim3d.data.phantom import PhantomRule, make_cohort
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.reporting import Silent
from mim3d.workflows.plan.subject import subject_of
from mim3d.workflows.prepare import prepare
from mim3d.workflows.pretrain import pretrain
from mim3d.workflows.run_record import load_preparation


class Brightness(Task):
    """Asks for the mean of a crop."""

    def __init__(self, encoder: VolumeViT, config: PretextConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.width, 1)

    def forward(self, batch: CropBatch, moment: Moment) -> Outcome:
        tokens = self.encoder(batch.voxels, batch.spacing_mm, valid=batch.valid).tokens
        told = self.head(tokens.mean(dim=1))[:, 0]
        loss = (told - batch.voxels.mean(dim=(1, 2, 3, 4))).square().mean()
        # Reads values, which a step on tensors without content cannot do.
        return Outcome(loss, {"loss": loss.detach(), "highest": torch.tensor(told.max().item())})


class Other(Brightness):
    """Another one of the same weights."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    folder = tmp_path_factory.mktemp("own")
    rule = PhantomRule(shape=(22, 18, 14), organs=1)
    source = make_cohort(folder / "cohort", training=3, validation=0, rule=rule)
    prepare(str(source), out=str(folder / "store"), config=config_with(), reporter=Silent())
    return PretrainConfig(
        data=DataConfig(store=str(folder / "store"), crop_size=(12, 8, 8)),
        encoder=EncoderConfig(width=24, depth=1, heads=2, patch=(4, 4, 4)),
        training=TrainingConfig(steps=2, batch_size=2, log_every=1, checkpoint_every=1),
    )


def trained(config: PretrainConfig, folder: Path, own_task: Any = Brightness, **more: Any) -> Any:
    return pretrain(config, out=str(folder), own_task=own_task, reporter=Silent(), **more)


def test_an_own_task_is_trained_and_its_encoder_loads(
    config: PretrainConfig, tmp_path: Path
) -> None:
    result = trained(config, tmp_path / "run")

    assert VolumeViT.load(tmp_path / "run").width == 24
    assert result.facts["steps"] == 2
    assert '"highest"' in (tmp_path / "run" / "log.jsonl").read_text()


def test_a_run_says_that_the_task_was_not_ours_and_whose(
    config: PretrainConfig, tmp_path: Path
) -> None:
    trained(config, tmp_path / "run")

    assert read_config(tmp_path / "run" / "config.yaml", PretrainConfig).objective.name == "own"
    assert load_preparation(tmp_path / "run")["own_task"].endswith("test_own_task.Brightness")


def test_a_run_goes_on_with_the_task_it_began_with_alone(
    config: PretrainConfig, tmp_path: Path
) -> None:
    trained(config, tmp_path / "run")
    # As if it had been interrupted behind its last checkpoint.
    (tmp_path / "run" / "status.json").unlink()

    with pytest.raises(ConfigError) as caught:
        trained(config, tmp_path / "run", Other)
    assert "own_task" in str(caught.value)


def test_the_name_alone_is_refused_and_says_what_to_do(
    config: PretrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = replace(config, objective=PretextConfig(name="own"))

    with pytest.raises(ConfigError) as caught:
        pretrain(named, out=str(tmp_path / "run"), reporter=Silent())
    with pytest.raises(ConfigError):
        subject_of(_plan(named)).build()
    line = ["pretrain", "demo", "--data.store", str(config.data.store), "--objective.name", "own"]
    code = main([*line, "--out", str(tmp_path / "run")])

    assert "own_task" in str(caught.value.remedy)
    assert code == 2
    assert "own_task" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_an_own_task_writes_nothing(config: PretrainConfig, tmp_path: Path) -> None:
    trained(config, tmp_path / "run", dry_run=True)

    assert not (tmp_path / "run").exists()


def _plan(config: PretrainConfig) -> Any:
    from mim3d.config.plan import PretrainPlanConfig

    return PretrainPlanConfig(**vars(config))
