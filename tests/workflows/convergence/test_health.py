"""Which trainings are dead, by their features, their loss and their Dice."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_benchmark import make_store
from training_logs import write_log

from mim3d.config.data import DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig, ProbesConfig
from mim3d.config.training import TrainingConfig
from mim3d.config.verbs import PretrainConfig
from mim3d.data.splits import pretraining_cases
from mim3d.data.store import open_store
from mim3d.foundation.reporting import Silent
from mim3d.models.vit import VolumeViT
from mim3d.workflows.convergence import health as module
from mim3d.workflows.convergence.health import (
    embedding_health,
    last_levels,
    tells_crops_apart,
    why_collapsed,
    why_hopeless,
    why_unlearnt,
)
from mim3d.workflows.pretrain import pretrain
from mim3d.workflows.run_weights import encoder_of, start_from


def health_of(rank, spread, cosine, untrained=(8.0, 0.24, 0.92)):
    names = ("rank", "spread", "cosine")
    return {
        **dict(zip((f"crops_{name}" for name in names), (rank, spread, cosine), strict=True)),
        **dict(zip((f"untrained_{name}" for name in names), untrained, strict=True)),
    }


# Of 0.24 a half is 0.12 and a hundredth 0.0024.
@pytest.mark.parametrize(
    ("rank", "spread", "tells_apart", "is_dead"),
    [
        (1.99, 0.119, False, True),
        (1.99, 0.12, False, False),
        (2.0, 0.119, False, False),
        (1.99, 0.119, True, False),
        (1.0, 0.0025, True, False),
        (5.0, 0.0023, True, True),
        (math.nan, 0.24, True, True),
        (math.nan, math.nan, True, True),
    ],
)
def test_features_are_dead_by_what_is_left_of_the_untrained_ones(
    rank, spread, tells_apart, is_dead
):
    health = health_of(rank, spread, 0.99)

    assert (why_collapsed(health, tells_apart=tells_apart) is not None) == is_dead


def test_a_collapse_is_told_with_all_numbers():
    # Those of `mocov3-seed1` on hippocampus in patches of 4.
    health = health_of(1.954, 0.06718, 0.9938, untrained=(7.87, 0.2534, 0.9258))

    assert why_collapsed(health, tells_apart=False) == (
        "collapsed: of 32 crops rank 1.95 (untrained 7.87), spread 0.0672 (untrained 0.2534), "
        "cosine 0.9938 (untrained 0.9258)"
    )


def test_crops_that_look_alike_have_alike_features_in_a_sound_encoder_too():
    alike = (1.3, 0.008, 0.9999)

    assert why_collapsed(health_of(1.2, 0.004, 0.9999, alike), tells_apart=False) is None
    assert why_collapsed(health_of(1.2, 0.003, 0.9999, alike), tells_apart=False) is not None


@pytest.mark.parametrize(
    ("name", "target", "levels", "tells"),
    [
        ("mae", "raw", {"loss": 0.18, "mean_predictor": 0.88}, True),
        ("mae", "raw", {"loss": 0.88, "mean_predictor": 0.88}, False),
        ("mae", "teacher", {"loss": 0.18, "mean_predictor": 0.88}, False),
        ("mae", "raw", {"loss": 0.18}, False),
        ("simclr", "raw", {"loss": 2.1, "chance": 2.398}, True),
        ("mocov3", "raw", {"loss": 0.729, "chance": 0.7167}, False),
        ("mocov3", "raw", {"loss": math.nan, "chance": 0.7167}, False),
        ("byol", "raw", {"loss": 2.0}, False),
        ("byol", "raw", {}, False),
    ],
)
def test_a_loss_proves_life_where_a_constant_does_not_reach_it(name, target, levels, tells):
    assert tells_crops_apart(PretextConfig(name=name, target=target), levels) == tells


def test_the_last_levels_are_means_by_steps_over_the_last_tenth(tmp_path):
    write_log(
        tmp_path,
        {"step": 80, "loss": 9.0, "chance": 9.0},
        {"step": 92, "loss": 4.0, "chance": 3.0},  # of steps 81 to 92
        {"step": 100, "loss": 2.0, "chance": 1.0},  # of 8 steps
    )

    assert last_levels(tmp_path) == pytest.approx({"loss": 3.2, "chance": 2.2})
    assert last_levels(tmp_path / "none") == {}


def test_a_loss_that_was_not_a_number_is_one_in_the_levels(tmp_path):
    write_log(tmp_path, {"step": 100, "loss": None, "mean_predictor": 1.0})

    levels = last_levels(tmp_path)

    assert math.isnan(levels["loss"])
    assert why_unlearnt(levels, 100) is not None


@pytest.mark.parametrize(
    ("levels", "why"),
    [
        ({"loss": 3.135, "chance": math.log(23)}, "3.135 is not 2 % below 3.135 of guessing"),
        ({"loss": 3.115, "chance": math.log(23)}, "3.115 is not 2 % below 3.135 of guessing"),
        ({"loss": 3.0, "chance": math.log(23)}, None),
        ({"loss": 1.0, "mean_predictor": 1.0}, "1 is not below 1 of predicting the mean"),
        ({"loss": 0.999, "mean_predictor": 1.0}, None),
        ({"loss": 7.0}, None),
        ({}, None),
    ],
)
def test_a_pre_training_that_knows_nothing_of_its_task_is_told_of(levels, why):
    found = why_unlearnt(levels, 91)

    assert found == (None if why is None else f"learned nothing: loss {why}")
    assert why_unlearnt(levels, 19) is None


def test_a_dice_below_a_hundredth_is_hopeless():
    assert why_hopeless([0.0, 0.0198]) == "Dice 0.0099 after the last step"
    assert why_hopeless([0.0, 0.02]) is None


def test_cases_without_anything_to_find_do_not_make_a_network_that_finds_nothing_sound():
    assert why_hopeless([1.0, 0.0, 1.0, 0.003]) == "Dice 0.0015 after the last step"
    assert why_hopeless([1.0, 1.0]) is None  # every case is as it should be


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[PretrainConfig, Path]:
    """A short pre-training, whose crops are whole volumes: there is nothing to draw."""
    folder = tmp_path_factory.mktemp("health")
    config = PretrainConfig(
        data=DataConfig(store=str(make_store(folder)), crop_size=(22, 18, 14)),
        encoder=EncoderConfig(width=24, depth=2, heads=2, patch=(4, 4, 4)),
        objective=PretextConfig(decoder_width=24, decoder_depth=1, decoder_heads=2),
        training=TrainingConfig(
            steps=2, batch_size=3, pictures_every=0, threads=1, device="cpu", precision="fp32"
        ),
        probes=ProbesConfig(every=0),
    )
    pretrain(config, out=str(folder / "run"), reporter=Silent())
    return config, folder / "run"


def test_health_is_that_of_the_pooled_features_of_crops_of_all_cases(trained, monkeypatch):
    config, run = trained
    store = open_store(config.data.store)
    cases = pretraining_cases(store, config.data, config.training.seed)
    monkeypatch.setattr(module, "PROBE_CROPS", len(cases))

    found = embedding_health(config, run)

    torch.manual_seed(0)
    encoder = VolumeViT(encoder_of(run)).eval()
    crops = []
    for case in cases:
        with store.open(case) as there:
            assert there.shape[1:] == config.data.crop_size
            voxels = torch.from_numpy(there.read_normalised((0, 0, 0), there.shape[1:]))[None]
            crops.append((voxels, torch.tensor([there.spacing_mm])))
    for whose in ("untrained", "crops"):
        if whose == "crops":
            start_from(encoder, str(run), "last", Silent())
        with torch.no_grad():
            tokens = [encoder(*crop).tokens[0] for crop in crops]
        z = np.stack([one.double().mean(0).numpy() for one in tokens])
        p = np.linalg.svd(z, compute_uv=False)
        p = p / p.sum() + 1e-7
        unit = z / np.linalg.norm(z, axis=1, keepdims=True)
        cosines = [unit[i] @ unit[j] for i in range(len(z)) for j in range(len(z)) if i != j]
        spread = unit.std(0, ddof=1).mean() * 24**0.5
        assert found[f"{whose}_rank"] == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-4)
        assert found[f"{whose}_spread"] == pytest.approx(spread, rel=1e-3)
        assert found[f"{whose}_cosine"] == pytest.approx(np.mean(cosines), rel=1e-5)


def test_looking_at_health_draws_no_random_number_of_the_process(trained):
    config, run = trained
    torch.manual_seed(7)
    before = torch.get_rng_state()

    found = embedding_health(config, run)

    assert torch.equal(torch.get_rng_state(), before)
    assert embedding_health(config, run) == found


def test_a_pre_training_on_crops_of_several_sizes_is_looked_at_by_the_first(trained):
    config, run = trained
    sizes = ((22, 18, 14), (12, 12, 12))

    several = replace(config, data=replace(config.data, crop_sizes=sizes))

    assert embedding_health(several, run) == embedding_health(config, run)


def test_an_encoder_that_sees_no_voxel_is_collapsed(trained, monkeypatch):
    config, run = trained

    def blind(encoder: VolumeViT, *where: object) -> None:
        start_from(encoder, *where)  # type: ignore[arg-type]
        with torch.no_grad():
            encoder.embedding.projection.weight.zero_()  # type: ignore[union-attr]

    monkeypatch.setattr(module, "start_from", blind)

    health = embedding_health(config, run)

    assert health["crops_cosine"] == pytest.approx(1, abs=1e-5)
    for tells_apart in (False, True):
        why = why_collapsed(health, tells_apart=tells_apart)
        assert (why or "").startswith("collapsed: of 32 crops rank 1.0")


def test_a_sound_encoder_lives_whose_crops_look_alike(trained, monkeypatch):
    """It was dead by a rank below 2, whatever its loss said."""
    config, run = trained
    real = module.VolumeViT.forward

    def alike(encoder, voxels, spacing_mm, **others):
        faint = 0.02 * (voxels - voxels.mean())
        return real(encoder, torch.ones_like(voxels) + faint, spacing_mm, **others)

    monkeypatch.setattr(module.VolumeViT, "forward", alike)

    health = embedding_health(config, run)

    assert health["crops_rank"] < 2
    assert why_collapsed(health, tells_apart=False) is None
