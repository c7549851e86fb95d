"""The loops of `docs/examples` run as they stand, and the page shows those files and no others."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import exporting
import pytest
from preparing import config_with

from mim3d.data.phantom import PhantomRule, make_cohort
from mim3d.foundation.reporting import Silent
from mim3d.workflows.prepare import prepare

DOCS = Path(__file__).resolve().parents[1] / "docs"
LOOPS = ("plain_loop", "monai_loop", "lightning_loop")
MOST_LINES = 40


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, DOCS / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A store and a run of pre-training."""
    folder = tmp_path_factory.mktemp("loops")
    rule = PhantomRule(shape=(24, 20, 12), spacing_mm=(1.5, 1.2, 3.0), organs=2)
    source = make_cohort(folder / "source", 0, training=2, validation=1, rule=rule)
    prepare(str(source), out=str(folder / "store"), config=config_with(), reporter=Silent())
    exporting.pretrained(folder / "run")
    return str(folder / "store"), str(folder / "run")


@pytest.mark.parametrize("name", LOOPS)
def test_an_example_is_short_and_shown_on_the_page(name: str) -> None:
    source = (DOCS / "examples" / f"{name}.py").read_text()

    assert len(source.splitlines()) <= MOST_LINES
    assert f'--8<-- "examples/{name}.py"' in (DOCS / "loops.md").read_text()


def test_a_plain_loop_trains_and_saves(made: tuple[str, str], tmp_path: Path) -> None:
    loss = example("plain_loop").main(*made, str(tmp_path / "out.pt"), steps=3, crop=16)

    assert math.isfinite(loss)
    assert (tmp_path / "out.pt").is_file()


@pytest.mark.filterwarnings("ignore")  # MONAI's own
def test_monais_transforms_loss_inferer_and_metric_take_our_network(made: tuple[str, str]) -> None:
    dice = example("monai_loop").main(*made, epochs=1, crop=(16, 16, 8))

    assert 0 <= dice <= 1


@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_lightnings_trainer_takes_our_network(made: tuple[str, str], tmp_path: Path) -> None:
    pytest.importorskip("lightning")

    module = example("lightning_loop").main(
        *made, crop=(16, 16, 8), accelerator="cpu", devices=1, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip

    assert math.isfinite(float(module.trainer.callback_metrics.get("loss", 0.0)))
    assert module.trainer.global_step == 2
