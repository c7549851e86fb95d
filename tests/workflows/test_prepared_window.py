"""The window by which crops are normalised reaches the target that counts back by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mim3d.config.data import DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig, ProbesConfig, TargetsConfig
from mim3d.config.reading import read_config
from mim3d.config.training import TrainingConfig
from mim3d.config.verbs import PreparationConfig, PrepareConfig, PretrainConfig
from mim3d.data.phantom import PhantomRule, make_cohort
from mim3d.data.store import Store, open_store, open_stores
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.reporting import Silent
from mim3d.workflows.prepare import prepare
from mim3d.workflows.prepared_window import with_window
from mim3d.workflows.pretrain import chooses_best, pretrain

WINDOWS = PretextConfig(target="windows", decoder_width=24, decoder_depth=1, decoder_heads=2)


def made(folder: Path, modality: str, window_hu: tuple[float, float], seed: int) -> Store:
    rule = PhantomRule(shape=(22, 18, 14), organs=1, modality=modality)
    make_cohort(folder / "cohort", seed=seed, training=2, validation=0, rule=rule)
    settings = PrepareConfig(PreparationConfig(workers=0, window_hu=window_hu))
    prepare(str(folder / "cohort"), out=str(folder / "store"), config=settings, reporter=Silent())
    return open_store(folder / "store")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return made(tmp_path_factory.mktemp("narrow"), "ct", (-1000.0, 400.0), 1)


def test_the_window_is_that_of_the_store_unless_data_says_another(narrow: Store) -> None:
    noted = with_window(WINDOWS, DataConfig(), narrow).targets.prepared_hu
    said = with_window(WINDOWS, DataConfig(window_hu=(-500.0, 500.0)), narrow).targets.prepared_hu

    assert noted == (-1000.0, 400.0)
    assert said == (-500.0, 500.0)
    assert with_window(WINDOWS, DataConfig(), None).targets.prepared_hu == (-1000.0, 1000.0)
    assert with_window(PretextConfig(), DataConfig(), narrow) == PretextConfig()


def test_another_window_than_the_crops_have_is_refused(narrow: Store) -> None:
    asked = PretextConfig(target="windows", targets=TargetsConfig(prepared_hu=(-1000.0, 1000.0)))

    with pytest.raises(ConfigError, match=r"normalised by \[-1000, 400\] HU"):
        with_window(asked, DataConfig(), narrow)


def test_stores_of_two_windows_or_without_ct_are_refused(narrow: Store, tmp_path: Path) -> None:
    wide = made(tmp_path / "wide", "ct", (-1000.0, 1000.0), 2)
    mr = made(tmp_path / "mr", "mr", (-1000.0, 1000.0), 3)
    both = open_stores((str(narrow.path), str(wide.path)))

    with pytest.raises(ConfigError, match=r"\[-1000, 400\] and \[-1000, 1000\] HU"):
        with_window(WINDOWS, DataConfig(), both)
    found = with_window(WINDOWS, DataConfig(window_hu=(-200.0, 300.0)), both).targets.prepared_hu
    assert found == (-200.0, 300.0)
    with pytest.raises(ConfigError, match="is for CT, and the store holds mr"):
        with_window(WINDOWS, DataConfig(), mr)


def test_pretraining_on_windows_writes_the_window_down_and_goes_on(
    narrow: Store, tmp_path: Path
) -> None:
    path = tmp_path / "windows.yaml"
    path.write_text(
        "objective:\n  target: windows\n  targets:\n"
        "    windows_hu: [[-1000, 200], [-160, 240]]\n"
        "  decoder_width: 24\n  decoder_depth: 1\n  decoder_heads: 2\n"
    )
    config = PretrainConfig(
        data=DataConfig(store=str(narrow.path), crop_size=(16, 16, 12)),
        encoder=EncoderConfig(width=24, depth=1, heads=2, patch=(4, 4, 4)),
        objective=read_config(path, PretrainConfig).objective,
        training=TrainingConfig(
            steps=2, batch_size=2, pictures_every=1, threads=1, device="cpu", precision="fp32"
        ),
        probes=ProbesConfig(every=0),
    )

    first = pretrain(config, out=str(tmp_path / "run"), reporter=Silent())
    second = pretrain(config, out=str(tmp_path / "run"), reporter=Silent())

    written = read_config(tmp_path / "run" / "config.yaml", PretrainConfig).objective.targets
    assert written.prepared_hu == (-1000.0, 400.0)
    assert written.windows_hu == ((-1000.0, 200.0), (-160.0, 240.0))
    assert any(file.suffix == ".png" for file in first.files)
    assert "done" in second.text


def test_the_loss_against_a_moving_teacher_chooses_no_checkpoint() -> None:
    assert not chooses_best(PretextConfig(target="teacher"))
    assert chooses_best(PretextConfig(target="hog"))
