"""What a step costs: FLOP against counts by hand, seconds with the crops that it waits for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_benchmark import make_store

from mim3d.config.data import DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import GuideConfig, PretextConfig
from mim3d.config.training import TrainingConfig
from mim3d.config.verbs import FinetuneConfig, PretrainConfig
from mim3d.data.batch import BatchNeeds
from mim3d.data.feed import Feed
from mim3d.data.store import open_store
from mim3d.workflows.convergence import cost
from mim3d.workflows.convergence.cost import feed_seconds, step_cost

SIDE, EDGE, WIDTH, DEPTH = 32, 8, 48, 2
TOKENS, VISIBLE = 64, 16
W = 24


def pretraining(**training):
    return PretrainConfig(
        data=DataConfig(crop_size=(SIDE,) * 3),
        encoder=EncoderConfig(width=WIDTH, depth=DEPTH, heads=3, patch=(EDGE,) * 3),
        objective=PretextConfig(
            decoder="cross", decode_fraction=0.25, decoder_width=W, decoder_depth=2,
            decoder_heads=3,
        ),
        training=TrainingConfig(**{"precision": "fp32", "device": "cpu", "threads": 1, **training}),
    )  # fmt: skip


def by_hand(crops):
    """FLOP of a CrossMAE step: three forwards, but nothing asks for the voxels' gradient."""
    embedding = 2 * VISIBLE * EDGE**3 * WIDTH
    blocks = DEPTH * 2 * (12 * VISIBLE * WIDTH**2 + 2 * VISIBLE**2 * WIDTH)
    asked = 12  # a quarter of the 48 masked tokens
    decoder = 2 * (2 * asked * 10 * W**2 + 4 * VISIBLE * W**2 + 4 * asked * VISIBLE * W)
    ends = 2 * VISIBLE * WIDTH * W + 2 * asked * W * EDGE**3
    return crops * (3 * (embedding + blocks + decoder + ends) - embedding)


def test_a_steps_flop_are_those_counted_by_hand():
    assert step_cost(pretraining(batch_size=4)).flop == by_hand(4)


def test_accumulation_changes_memory_and_no_flop():
    whole, parts = (
        step_cost(pretraining(batch_size=4, accumulation=count)).flop for count in (1, 2)
    )

    assert parts == whole


def test_a_step_whose_patch_is_drawn_costs_the_mean_over_the_patches():
    def flop(*patches):
        config = pretraining(batch_size=2)
        return step_cost(replace(config, objective=replace(config.objective, patches=patches))).flop

    own, half = (EDGE,) * 3, (EDGE, EDGE, EDGE // 2)

    assert flop(own) == by_hand(2)
    assert flop(half) > 1.5 * flop(own)
    assert flop(own, half, half) == pytest.approx((flop(own) + 2 * flop(half)) / 3, rel=1e-12)


@pytest.mark.parametrize(
    "ratio", [{"mask_ratio": (0.5, 1 - 1 / 64)}, {"mask_ratio": 0.5, "mask_ratio_end": 1 - 1 / 64}]
)
def test_a_step_whose_ratio_changes_costs_that_of_the_middle(ratio):
    config = pretraining(batch_size=2)
    middle = replace(config, objective=replace(config.objective, mask_ratio=(1.5 - 1 / 64) / 2))
    moving = replace(config, objective=replace(config.objective, **ratio))

    assert step_cost(moving).flop == step_cost(middle).flop


@pytest.mark.parametrize(("every", "share"), [(1, 1 / 3), (4, 1 / 12)])
def test_a_guides_teacher_adds_a_forward_pass_where_it_is_asked(every, share):
    config = pretraining(batch_size=2)
    guide = GuideConfig(by="loss", source="teacher", every=every)
    own = replace(guide, source="network")
    taught, alone = (
        step_cost(replace(config, objective=replace(config.objective, guide=one))).flop
        for one in (guide, own)
    )

    assert alone == by_hand(2)
    assert taught == pytest.approx((1 + share) * alone)


def test_a_teacher_without_gradient_counts_once():
    objective = replace(pretraining().objective, name="byol")
    views = step_cost(replace(pretraining(batch_size=2), objective=objective)).flop

    # Student: two views of all tokens, forward and backward (three forwards, less the voxels'
    # gradient); teacher: one forward of the same. Heads come on top and are small beside them.
    forward = DEPTH * 2 * (12 * TOKENS * WIDTH**2 + 2 * TOKENS**2 * WIDTH)
    embedding = 2 * TOKENS * EDGE**3 * WIDTH
    least = 2 * 2 * (3 * (forward + embedding) - embedding + forward + embedding)
    assert least < views < 1.5 * least


class Ticks:
    """A clock that moves only where a test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("cohort"))


@pytest.fixture
def feeds(monkeypatch):
    """Every feed that is made, and a clock by which their steps take 100, 1, 7 and 2 seconds."""
    ticks, made = Ticks(), []
    batches = Feed.batches

    def slowly(feed, *args, **settings):
        made.append(feed)
        for (step, found), seconds in zip(
            batches(feed, *args, **settings), (100, 1, 7, 2), strict=True
        ):
            ticks.now += seconds
            made.append(found)
            yield step, found

    monkeypatch.setattr(Feed, "batches", slowly)
    return ticks, made


@pytest.mark.parametrize("views", [1, 2])
def test_the_crops_of_a_step_are_timed_as_training_has_them(store, feeds, views):
    ticks, made = feeds
    config = replace(
        pretraining(batch_size=4, accumulation=2),
        data=DataConfig(store=str(store), crop_size=(8, 8, 8), workers=3, window_cases=2),
    )

    seconds = feed_seconds(config, BatchNeeds(views=views), torch.device("cpu"), ticks)

    feed, *steps = made
    assert feed.data.workers == 0  # another process's work would not be timed
    assert seconds == 2  # the median of 1, 7 and 2: volumes are loaded in the first
    assert [len(found) for found in steps] == [2] * 4
    assert all(len(one.voxels) == 2 * views for found in steps for one in found)
    assert set(feed.plan.cases) <= set(open_store(store).ids("training"))


def test_labelled_crops_are_timed_for_a_fine_tuning(store, feeds):
    ticks, made = feeds
    data = DataConfig(store=str(store), crop_size=(8, 8, 8), labels=1)
    config = FinetuneConfig(data=data, training=TrainingConfig(batch_size=2))

    assert feed_seconds(config, BatchNeeds(labels=True), torch.device("cpu"), ticks) == 2
    assert all(one.labels is not None for found in made[1:] for one in found)


def test_without_a_store_there_is_no_feed_to_time():
    config = pretraining(batch_size=2)

    assert feed_seconds(config, BatchNeeds(), torch.device("cpu"), Ticks()) == 0.0


@pytest.mark.parametrize(
    ("workers", "fed", "expected"),
    [(0, 2.0, 7.0), (0, 11.0, 16.0), (2, 8.0, 5.0), (2, 12.0, 6.0)],
)
def test_a_step_waits_for_crops_unless_workers_make_them_meanwhile(
    monkeypatch, workers, fed, expected
):
    monkeypatch.setattr(cost, "_seconds", lambda *_: 5.0)
    monkeypatch.setattr(cost, "feed_seconds", lambda *_: fed)
    config = pretraining(batch_size=2)
    config = replace(config, data=replace(config.data, workers=workers))

    assert step_cost(config).seconds == expected
