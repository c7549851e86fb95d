"""Probes of a pre-training run: whose labels they read, what they say, and no trace of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mim3d.config.data import DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig, ProbesConfig
from mim3d.config.training import OptimConfig, TrainingConfig
from mim3d.config.verbs import PretrainConfig
from mim3d.data.classes import IGNORE_INDEX
from mim3d.data.feed import make_feed
from mim3d.data.phantom import PhantomRule, make_cohort
from mim3d.data.splits import pretraining_cases, validation_cases
from mim3d.data.store import open_store
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.randomness import RandomStream
from mim3d.foundation.reporting import Silent
from mim3d.objectives.base import Moment
from mim3d.training.run import Run
from mim3d.workflows import probes
from mim3d.workflows.prepare import prepare
from mim3d.workflows.pretrain import pretext_task, pretrain
from mim3d.workflows.probed_crops import _thinned, cells_of, labelled_crops

PATCH = (4, 5, 3)
RULE = PhantomRule(shape=(26, 22, 14), organs=2, tumour=False)


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("probes")
    make_cohort(folder / "labelled", seed=1, training=7, validation=2, rule=RULE)
    shutil.copytree(folder / "labelled" / "imagesTr", folder / "plain")
    made = {}
    for name in ("labelled", "plain"):
        made[name] = str(folder / f"{name}-store")
        prepare(str(folder / name), out=made[name], reporter=Silent())
    return made


def config(store: str, *, steps: int = 4, seed: int = 0, name: Any = "mae", **probing: Any) -> Any:
    return PretrainConfig(
        data=DataConfig(store=store, crop_size=(17, 14, 11), overhang=(3, 3, 3)),
        encoder=EncoderConfig(width=24, depth=3, heads=2, patch=PATCH, channels=1),
        objective=PretextConfig(name=name, decoder_width=12, decoder_depth=1, decoder_heads=2),
        optim=OptimConfig(lr=1e-3, ema=0.5),
        training=TrainingConfig(
            steps=steps, batch_size=3, precision="fp32", device="cpu", seed=seed,
            log_every=1, checkpoint_every=2,
        ),
        probes=ProbesConfig(**{"subjects": 5, "crops": 7, "neighbours": 3, **probing}),
    )  # fmt: skip


def run(wanted: PretrainConfig, out: Path, reporter: Any = None) -> dict[str, Any]:
    return pretrain(wanted, out=str(out), reporter=reporter or Silent()).facts


def looks(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("name") == probes.NAME]


@pytest.fixture(scope="module")
def probed(
    stores: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Heard, dict[str, Any]]:
    folder, heard = tmp_path_factory.mktemp("probed") / "run", Heard()
    facts = run(config(stores["labelled"], every=3), folder, heard)
    return folder, heard, facts


Probed = tuple[Path, Heard, dict[str, Any]]


def test_weights_are_bit_for_bit_those_of_a_run_without_probes(
    probed: Probed, stores: dict[str, str], tmp_path: Path
) -> None:
    without = run(config(stores["labelled"], every=0), tmp_path / "without")

    assert without["digest"] == probed[2]["digest"]
    assert not looks(tmp_path / "without")


def test_looks_are_taken_before_the_first_step_on_the_grid_and_at_the_end(
    probed: Probed,
) -> None:
    found = looks(probed[0])

    assert [look["step"] for look in found] == [0, 3, 4]
    names = {"probe_r2", "probe_dice", "knn_dice", "rank", "constant_share", "residual_rms", "psnr",
             "ssim", "probe_r2_step0", "probe_dice_step0", "rank_step0", "probe_r2_voxels",
             "probe_dice_voxels", "probe_r2_position", "probe_dice_position"}  # fmt: skip
    assert all(names <= set(look) for look in found)


def test_controls_stay_what_they_were_before_the_first_step(probed: Probed) -> None:
    first, *later = looks(probed[0])

    for name in ("probe_r2", "probe_dice", "rank"):
        assert first[f"{name}_step0"] == first[name]
        assert all(look[f"{name}_step0"] == first[name] for look in later)
    assert later[-1]["probe_r2"] != first["probe_r2"]
    assert later[-1]["probe_r2_voxels"] == first["probe_r2_voxels"]


def test_the_run_says_what_is_probed_and_draws_it(probed: Probed) -> None:
    folder, heard, _ = probed
    look = next(text for text in heard.said if text.startswith("step 0  "))

    assert any(
        text.startswith("probes every 3 steps on labelled crops of the training list: 5 of")
        for text in heard.said
    )
    assert "probe_r2_step0" in look
    assert "residual_rms" not in look
    assert (folder / "pictures" / "curves.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("store", "probing", "why"),
    [
        ("plain", {}, "fewer than two subjects of the training list have labels"),
        ("labelled", {"subjects": 0}, "`probes.subjects` is 0"),
    ],
)
def test_without_labels_rank_and_reconstruction_are_left(
    stores: dict[str, str], tmp_path: Path, store: str, probing: dict[str, int], why: str
) -> None:
    heard = Heard()

    run(config(stores[store], every=2, **probing), tmp_path / "run", heard)

    assert sum(f"no segmentation probes: {why};" in text for text in heard.said) == 1
    for look in looks(tmp_path / "run"):
        assert {"rank", "rank_step0", "constant_share", "psnr", "ssim"} <= set(look)
        assert not any(name.startswith(("probe_", "knn_")) for name in look)


def test_a_run_that_goes_on_keeps_its_controls(probed: Probed, stores: dict[str, str]) -> None:
    wanted = config(stores["labelled"], every=1, seed=1)  # another encoder than the run's
    look = look_of(wanted, probed[0])

    with torch.no_grad():
        found = look(task_of(wanted), Moment(2, 4, RandomStream(0, 2)))

    before = looks(probed[0])[0]
    assert found["probe_r2"] != before["probe_r2"]
    assert found["probe_r2_step0"] == before["probe_r2"]
    assert found["probe_r2_position"] == before["probe_r2_position"]


def test_a_run_that_replaces_another_has_controls_of_its_own(
    probed: Probed, stores: dict[str, str]
) -> None:
    look = look_of(config(stores["labelled"], every=1), probed[0], replaces=True)

    assert look.controls == {}


def test_a_task_that_reconstructs_nothing_has_no_psnr(
    stores: dict[str, str], tmp_path: Path
) -> None:
    wanted = config(stores["plain"])
    task, moment = task_of(wanted), Moment(1, 4, RandomStream(0, 1))
    forward = task.forward
    task.forward = lambda batch, moment: replace(forward(batch, moment), pictures=None)

    with torch.no_grad():
        found = look_of(wanted, tmp_path)(task, moment)

    assert set(found) == {"rank", "constant_share", "residual_rms"}


def test_features_are_those_of_whole_crops_after_the_final_norm(stores: dict[str, str]) -> None:
    wanted = config(stores["labelled"])
    parts = labelled_crops(open_store(stores["labelled"]), wanted)
    assert parts is not None
    encoder = task_of(wanted).encoder

    with torch.no_grad():
        seen = probes._seen(encoder, parts[1].batches, parts[1].kept)
        batch, kept = parts[1].batches[0], parts[1].kept[0]
        states = encoder(batch.voxels, batch.spacing_mm, valid=batch.valid, taps=(3,))

    count = int(kept.sum())
    assert len(seen.last) == len(parts[1].shares)
    torch.testing.assert_close(seen.last[:count], states.tokens[kept])
    torch.testing.assert_close(seen.taps[-1][:count], states.taps[0][kept])


SOUND = {"probe_r2": 0.3, "probe_r2_step0": 0.2, "constant_share": 0.5, "rank": 30.0,
         "rank_step0": 100.0}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "step", "expected"),
    [
        ({}, 100, []),
        ({"probe_r2": 0.1}, 100, ["probe"]),
        ({"probe_r2": 0.1}, 75, ["probe"]),
        ({"probe_r2": 0.1}, 74, []),
        ({"probe_r2": 0.196}, 100, []),
        ({"constant_share": 0.91}, 25, ["constant"]),
        ({"rank": 24.9}, 25, ["rank"]),
        ({"constant_share": 0.99, "rank": 1.0}, 24, []),
        ({"probe_r2": 0.1, "constant_share": 0.99, "rank": 1.0}, 0, []),
        ({"probe_r2": 0.1, "constant_share": 0.99, "rank": 1.0}, 90, ["probe", "constant", "rank"]),
    ],
)
def test_alarms(changes: dict[str, float], step: int, expected: list[str]) -> None:
    found = probes.alarms({**SOUND, **changes}, Moment(step, 100, RandomStream(0, step)))

    assert list(found) == expected
    assert all(f"step {step}" in text for text in found.values())


def test_without_labels_and_controls_only_what_is_known_alarms() -> None:
    found = probes.alarms({"constant_share": 0.95, "rank": 1.0}, Moment(9, 9, RandomStream(0, 9)))

    assert list(found) == ["constant"]


def test_an_alarm_is_told_once_and_again_at_the_end(stores: dict[str, str], tmp_path: Path) -> None:
    look = look_of(config(stores["plain"]), tmp_path)
    bad = {**SOUND, "rank": 1.0}

    told = [len(look.alarms(bad, Moment(step, 9, RandomStream(0, step)))) for step in (3, 6, 9)]

    assert told == [1, 0, 1]


@pytest.mark.parametrize("wrong", [{"every": -1}, {"subjects": 1}, {"crops": 1}, {"neighbours": 0}])
def test_numbers_with_which_nothing_is_probed_are_refused(
    wrong: dict[str, int], stores: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"`probes.{next(iter(wrong))}`"):
        look_of(config(stores["plain"], **wrong), tmp_path)


def test_probes_are_taken_ten_times_where_nothing_is_said() -> None:
    assert probes._steps_between(config("x", steps=800)) == 80
    assert probes._steps_between(config("x", steps=4)) == 1
    assert probes._steps_between(config("x", steps=800, every=0)) == 0


@pytest.mark.parametrize(
    ("patch", "cells"), [((8, 8, 8), (2, 2, 2)), ((16, 9, 1), (2, 3, 1)), ((5, 7, 6), (5, 1, 2))]
)
def test_cells_divide_every_patch(patch: Any, cells: Any) -> None:
    assert cells_of(patch) == cells


def test_thinned_tokens_are_as_many_as_may_be_and_among_the_labelled() -> None:
    known = [torch.rand(2, 50, generator=torch.Generator().manual_seed(i)) < 0.5 for i in range(3)]

    kept = _thinned(known, 40, seed=3)

    assert sum(int(where.sum()) for where in kept) == 40
    assert all((where <= there).all() for where, there in zip(kept, known, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(kept, _thinned(known, 40, seed=3), strict=True))
    every = _thinned(known, 4000, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(every, known, strict=True))


def test_no_case_that_judges_and_no_subject_on_both_sides(stores: dict[str, str]) -> None:
    store = open_store(stores["labelled"])
    for seed in range(4):
        wanted = config(stores["labelled"], seed=seed)
        parts = labelled_crops(store, wanted)
        assert parts is not None
        fit, test = ({c for b in part.batches for c in b.case_ids} for part in parts)

        assert not (fit | test) & set(validation_cases(store, wanted.data))
        assert not {store.subject(c) for c in fit} & {store.subject(c) for c in test}
        assert (parts[0].count, parts[1].count) == (5, 2)
        assert parts[0].people + parts[1].people == 5


def test_shares_are_those_of_counted_voxels_and_padding_has_none(stores: dict[str, str]) -> None:
    parts = labelled_crops(open_store(stores["labelled"]), config(stores["labelled"]))
    assert parts is not None
    part, place, padded = parts[0], 0, 0
    for batch, kept in zip(part.batches, part.kept, strict=True):
        assert batch.labels is not None
        grid = [-(-side // edge) for side, edge in zip(batch.labels.shape[1:], PATCH, strict=True)]
        for b, n in np.ndindex(*kept.shape):
            x, y, z = (int(i) * e for i, e in zip(np.unravel_index(n, grid), PATCH, strict=True))
            box = np.full(PATCH, IGNORE_INDEX)
            seen = batch.labels[b, x : x + 4, y : y + 5, z : z + 3].numpy()
            box[tuple(slice(0, side) for side in seen.shape)] = seen
            if (box == IGNORE_INDEX).all():
                padded += 1
                assert not kept[b, n]
            if not kept[b, n]:
                continue
            # Cells of 2 x 1 x 1 voxels: 4, 5, 3 divide by 2, 5, 3.
            cells = [(i, j, k) for i in range(2) for j in range(5) for k in range(3)]
            for c, (i, j, k) in enumerate(cells):
                cell = box[2 * i : 2 * i + 2, j, k]
                known = cell[cell != IGNORE_INDEX]
                expected = [(known == value).mean() for value in range(3)]
                np.testing.assert_allclose(part.shares[place, c], expected, atol=1e-6)
            place += 1
    assert padded
    assert place == len(part.shares)


def look_of(wanted: PretrainConfig, folder: Path, *, replaces: bool = False) -> Any:
    store = open_store(str(wanted.data.store))
    task = task_of(wanted)
    feed = make_feed(
        store, pretraining_cases(store, wanted.data, 0), data=wanted.data,
        augmentation=wanted.augmentation, needs=task.needs, batch_size=3, seed=0,
    )  # fmt: skip
    written = Run(folder, writes=False, replaces=replaces)
    return probes.probe_validators(store, wanted, feed, written, Silent())[0].function


def task_of(wanted: PretrainConfig) -> Any:
    return pretext_task(wanted, Silent()).eval()
