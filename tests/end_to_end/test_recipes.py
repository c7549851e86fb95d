"""Every shipped config is read, and the papers' recipes take two steps on a phantom of their shape.

The width of the encoder is a preset's; here it is the tiny one's, so that the suite stays short.
Crop, channels, classes, patch, depth, taps, masking, loss and schedule are the recipe's own. One
that is another recipe but for the share it masks is compared with that one instead. The published
width of each runs in the slow tier.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mim3d.config.reading import read_config
from mim3d.config.shipped import shipped_names
from mim3d.config.verbs import FinetuneConfig, PrepareConfig, PretrainConfig
from mim3d.data.files import write_label, write_volume
from mim3d.data.phantom import PhantomRule, make_volume
from mim3d.data.volume import Volume
from mim3d.foundation.reporting import Silent
from mim3d.tokens.masking import count
from mim3d.training.optim import schedule
from mim3d.workflows.finetune import finetune
from mim3d.workflows.prepare import prepare
from mim3d.workflows.pretrain import pretrain

KINDS = {"prepare": PrepareConfig, "pretrain": PretrainConfig, "finetune": FinetuneConfig}
BTCV = PhantomRule(shape=(100, 98, 97), spacing_mm=(1.5, 1.5, 2.0), organs=13, tumour=False,
                   modality="ct")  # fmt: skip
BRATS = PhantomRule(shape=(128, 128, 128), spacing_mm=(1, 1, 1), channels=4, organs=2, tumour=True)
ONE = PhantomRule(shape=(100, 98, 97), spacing_mm=(1, 1, 1), organs=2, tumour=True)

PRETRAINING = {
    "mimmed3d_mae_btcv": "btcv",
    "mimmed3d_simmim_btcv": "btcv",
    "mimmed3d_mae_brats21_t1": "one",
    "mimmed3d_mae_brats21_t1ce": "one",
    "mimmed3d_simmim_brats21_t1": "one",
    "mimmed3d_simmim_brats21_t1ce": "one",
    "selfmedmae_btcv_m0125": "btcv",
    "selfmedmae_btcv_m075": "btcv",
    "selfmedmae_msdbrats_m0125": "brats2021",
    "selfmedmae_msdbrats_m0875": "brats2021",
    "selfmedmae_msdbrats_m075": "brats2021",
}
TWINS = {
    "mimmed3d_mae_brats21_t1ce": ("mimmed3d_mae_brats21_t1", 162),
    "mimmed3d_simmim_brats21_t1ce": ("mimmed3d_simmim_brats21_t1", 162),
    "selfmedmae_btcv_m075": ("selfmedmae_btcv_m0125", 162),
    "selfmedmae_msdbrats_m075": ("selfmedmae_msdbrats_m0125", 384),
    "selfmedmae_msdbrats_m0875": ("selfmedmae_msdbrats_m0125", 448),
}
"""Recipes that are another one but for the share they mask, and how many tokens that is."""
FINETUNING = {
    "mimmed3d_btcv": "btcv",
    "mimmed3d_brats21": "brats2021",
    "selfmedmae_btcv": "btcv",
    "selfmedmae_msdbrats": "msd_task01",
}
Stores = Callable[[str], str]


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    made: dict[str, str] = {}

    def store(kind: str) -> str:
        if kind not in made:
            made[kind] = _store(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return store


def _store(kind: str, folder: Path) -> str:
    rule = {"btcv": BTCV, "one": ONE}.get(kind, BRATS)
    values = np.arange(len(rule.class_names))
    if kind == "brats2021":
        values = np.array([0, 2, 1, 4])  # oedema, necrosis, enhancing: this scheme has no 3
    voxels, labels = make_volume(0, 0, rule)
    grid = Volume.from_array(voxels, np.diag([*rule.spacing_mm, 1.0]))
    write_volume(folder / "source/imagesTr/case.nii.gz", voxels, grid)
    write_label(folder / "source/labelsTr/case.nii.gz", values[labels].astype(np.uint8), grid)
    content = {
        "name": kind,
        "labels": {str(value): f"class {value}" for value in sorted(values.tolist())},
        "modality": {str(c): "CT" if kind == "btcv" else "MRI" for c in range(rule.channels)},
        "training": [{"image": "./imagesTr/case.nii.gz", "label": "./labelsTr/case.nii.gz"}],
        "validation": [],
        "test": [],
    }
    (folder / "source/dataset.json").write_text(json.dumps(content))
    config = read_config(
        "btcv" if kind == "btcv" else "brats", PrepareConfig, {"prepare.workers": "0"}
    )
    prepare(str(folder / "source"), out=str(folder / "store"), config=config, reporter=Silent())
    return str(folder / "store")


@pytest.mark.parametrize(
    ("verb", "name"), [(verb, name) for verb in KINDS for name in shipped_names(verb)]
)
def test_a_shipped_config_is_read(verb: str, name: str) -> None:
    config = read_config(name, KINDS[verb])

    assert config != KINDS[verb]()


def test_all_recipes_of_the_papers_ship() -> None:
    assert set(PRETRAINING) <= set(shipped_names("pretrain"))
    assert set(FINETUNING) <= set(shipped_names("finetune"))


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_is_another_recipe_but_for_the_share_it_masks(name: str) -> None:
    other, masked = TWINS[name]
    mine, theirs = (read_config(each, PretrainConfig) for each in (name, other))
    objective = replace(mine.objective, mask_ratio=theirs.objective.mask_ratio)

    assert replace(mine, objective=objective) == theirs
    assert isinstance(mine.objective.mask_ratio, float)
    sides = zip(mine.data.crop_size, mine.encoder.patch, strict=True)
    n = math.prod(side // patch for side, patch in sides)
    assert count(mine.objective.mask_ratio, n, mine.objective.rounding) == masked


@pytest.mark.parametrize("name", [name for name in PRETRAINING if name not in TWINS])
def test_a_pretraining_recipe_takes_two_steps(name: str, stores: Stores, tmp_path: Path) -> None:
    _pretrain(name, stores, tmp_path, {"encoder.preset": "tiny"})


@pytest.mark.parametrize("name", FINETUNING)
def test_a_finetuning_recipe_takes_two_steps(name: str, stores: Stores, tmp_path: Path) -> None:
    _finetune(name, stores, tmp_path, {"encoder.preset": "tiny"})


@pytest.mark.slow
@pytest.mark.parametrize("name", PRETRAINING)
def test_a_pretraining_recipe_takes_two_steps_at_its_width(
    name: str, stores: Stores, tmp_path: Path
) -> None:
    _pretrain(name, stores, tmp_path, {})


@pytest.mark.slow
@pytest.mark.parametrize("name", FINETUNING)
def test_a_finetuning_recipe_takes_two_steps_at_its_width(
    name: str, stores: Stores, tmp_path: Path
) -> None:
    _finetune(name, stores, tmp_path, {})


def _short(store: str) -> dict[str, str]:
    return {
        "data.store": store,
        "training.steps": "2",
        "training.batch_size": "1",
        "training.validate_every": "0",
        "training.pictures_every": "0",
        "training.device": "cpu",
    }


def _pretrain(name: str, stores: Stores, folder: Path, changes: dict[str, str]) -> None:
    short = _short(stores(PRETRAINING[name]))
    # With two steps there is no warm-up.
    own = {"optim.warmup_steps": "0", "probes.every": "0", **changes}
    config = read_config(name, PretrainConfig, {**short, **own})

    result = pretrain(config, out=str(folder / "run"), reporter=Silent())

    assert result.facts["steps"] == 2
    assert result.facts["skipped"] == 0
    assert np.isfinite(result.facts["loss"])


def _finetune(name: str, stores: Stores, folder: Path, changes: dict[str, str]) -> None:
    short = _short(stores(FINETUNING[name]))
    del short["training.pictures_every"]
    overrides = {**short, "optim.warmup_steps": "0", "init": "none", **changes}
    config = read_config(name, FinetuneConfig, overrides)

    result = finetune(config, out=str(folder / "run"), reporter=Silent())

    assert result.facts["steps"] == 2
    assert result.facts["skipped"] == 0
    assert np.isfinite(result.facts["loss"])


@pytest.mark.parametrize(
    ("name", "kind", "warmup", "peak"),
    [
        # SelfMedMAE: actual rate = lr * volumes a batch / 256; warm-up epochs x steps an epoch.
        ("selfmedmae_btcv_m0125", PretrainConfig, 100 * 3, 6.4e-3 * 6 / 256),
        ("selfmedmae_msdbrats_m0125", PretrainConfig, 10 * 65, 6.4e-3 * 6 / 256),
        ("selfmedmae_btcv", FinetuneConfig, 50 * 3, 3.44e-2 * 6 / 256),
        ("selfmedmae_msdbrats", FinetuneConfig, 10 * 65, 1.72e-2 * 6 / 256),
        # MIM-Med3D: 24 volumes, 4 a batch: 6 steps an epoch.
        ("mimmed3d_mae_btcv", PretrainConfig, 300 * 6, 3e-4),
        ("mimmed3d_btcv", FinetuneConfig, 300 * 6, 3e-4),
    ],
)
def test_the_rate_at_the_end_of_the_warmup_is_the_papers(
    name: str, kind: type, warmup: int, peak: float
) -> None:
    config = read_config(name, kind)

    rate = config.optim.lr * schedule(warmup, config.training.steps, config.optim)

    assert config.optim.warmup_steps == warmup
    assert rate == pytest.approx(peak, rel=2e-3)  # the tables have three digits
