"""What all tasks that compare views promise, and SimCLR and VICReg against their definitions."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.losses import ContrastiveLoss
from view_crops import ALL, ENCODER, SIZE, SMALL, TWO_VIEWS, batch, made, moment, trained

from mim3d.foundation.errors import ConfigError
from mim3d.objectives.base import Task
from mim3d.objectives.heads import crop_features
from mim3d.workflows.plan.trace import trace_step

SPACED = replace(ENCODER, default_spacing_mm=(0.5, 1.0, 3.0))


@pytest.mark.parametrize("name", ALL)
def test_the_same_seed_and_step_give_the_same_loss(name: str) -> None:
    first, second = (made(name)(batch(name), moment()).loss for _ in range(2))

    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ALL)
def test_all_that_learns_has_a_gradient_and_the_teacher_has_none(name: str) -> None:
    task = made(name)

    task(batch(name), moment()).loss.backward()

    without = {n for n, p in task.named_parameters() if p.grad is None or not p.grad.any()}
    still = {n for n in without if not n.startswith(("teacher.", "encoder.embedding."))}
    assert not still
    assert all(n in without for n in dict(task.named_parameters()) if n.startswith("teacher."))
    is_frozen = "encoder.embedding.projection.weight" in without
    assert is_frozen == (name == "mocov3")


@pytest.mark.parametrize("name", ALL)
def test_only_the_encoder_is_what_prediction_uses(name: str) -> None:
    task = made(name)

    assert {key.split(".")[0] for key in task.weights()} == {"encoder"}
    assert len(task.weights()) == len(task.encoder.state_dict())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_planner_can_trace_a_step(name: str, precision: Any) -> None:
    trace = trace_step(
        lambda: made(name, SPACED),
        crops=4,
        channels=2,
        crop_size=SIZE,
        precision=precision,
        on_gpu=True,
    )

    rows, tokens = {"voco": (4 * (3 + 6), 2 * 1 * 4)}.get(name, (4 * 2, 3 * 4 * 4))
    taught = {"byol": rows, "mocov3": rows, "voco": 4 * 6}.get(name, 0)
    width, patch = 24, 2 * 4 * 4 * 2
    crop = 2 * tokens * patch * width + 2 * (24 * tokens * width**2 + 4 * tokens**2 * width)
    heads = 2 * (width * 32 + 32 * 16) * (rows + taught)
    if name in ("byol", "mocov3"):
        heads += 2 * (16 * 32 + 32 * 16) * rows
    # Embeddings multiplied with each other come on top.
    assert trace.forward_flop == pytest.approx(crop * (rows + taught) + heads, rel=0.01)


@pytest.mark.parametrize("name", ALL)
def test_losses_under_autocast_are_float32_and_near_the_exact_ones(name: str) -> None:
    task = made(name)

    exact = task(batch(name), moment()).loss
    with torch.autocast("cpu", torch.bfloat16):
        under = task(batch(name), moment()).loss

    assert under.dtype == torch.float32
    torch.testing.assert_close(under, exact, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("name", ALL)
def test_what_stands_in_padding_does_not_matter(name: str) -> None:
    task, crops = made(name), batch(name)
    valid = torch.ones(len(crops.voxels), *SIZE, dtype=torch.bool)
    valid[0, :6] = False
    valid[1, :, 9:, 4:] = False
    blank = torch.where(valid[:, None], crops.voxels, 0.0)
    noisy = torch.where(valid[:, None], crops.voxels, torch.nan)

    first, second = (
        task(replace(crops, voxels=voxels, valid=valid), moment()).loss for voxels in (blank, noisy)
    )
    second.backward()

    assert torch.equal(first, second)
    assert first != task(crops, moment()).loss
    gradients = [p.grad for p in task.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [(9, 16, 5), (24, 12, 10)])
def test_crops_of_any_size_will_do(name: str, size: tuple[int, int, int]) -> None:
    outcome = made(name)(batch(name, size=size), moment())

    assert outcome.loss.isfinite()


@pytest.mark.parametrize("name", ALL)
def test_signs_of_life_of_encoder_and_projector_are_logged(name: str) -> None:
    logs = made(name)(batch(name), moment()).logs

    for key in ("rank", "spread", "cosine"):
        assert not logs[key].requires_grad
        assert logs[f"projector_{key}"] != logs[key]


@pytest.mark.parametrize("name", ALL)
def test_a_few_crops_are_learnt_without_collapse(name: str) -> None:
    # MoCo v3's teacher would hardly move in so few steps; BYOL's must be slow.
    task = made(name, momentum=0.99 if name == "byol" else 0.9)

    losses = trained(task, name, steps=60)

    # BYOL's answers move away from it while it learns: its loss alone says nothing.
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5]) or name == "byol"
    with torch.no_grad():
        logs = task(batch(name, range(6), step=99, size=SMALL), moment(59, 60)).logs
        crops = batch("simclr", range(6), step=99, size=SMALL)
        one, two = F.normalize(crop_features(task.encoder(crops.voxels, crops.spacing_mm))).chunk(2)
    for place in ("", "projector_"):
        assert logs[f"{place}spread"] > 0.3
        assert logs[f"{place}cosine"] < 0.9
        assert logs[f"{place}rank"] > 2
    if name in TWO_VIEWS:
        nearest = ((one - one.mean(dim=0)) @ (two - two.mean(dim=0)).T).argmax(dim=1)
        assert (nearest == torch.arange(6)).sum() >= 4


@pytest.mark.parametrize("name", ALL)
def test_a_state_that_was_saved_goes_on_bit_by_bit(name: str) -> None:
    task, other = made(name), made(name, seed=1)
    trained(task, name, steps=3)

    other.load_state_dict(copy.deepcopy(task.state_dict()))

    losses = [trained(each, name, steps=3) for each in (task, other)]
    assert losses[0] == losses[1]
    theirs = other.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in task.state_dict().items())


@pytest.mark.parametrize("name", ["simclr", "vicreg", "mocov3"])
def test_a_micro_batch_of_one_crop_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="one alone"):
        made(name)(batch(name, range(1)), moment())


@pytest.mark.parametrize("name", ["byol", "voco"])
def test_one_crop_is_enough_where_crops_are_not_compared(name: str) -> None:
    task = made(name, projector_norm="layer")
    assert task(batch(name, range(1)), moment()).loss.isfinite()


def test_batch_norm_over_one_crop_is_refused() -> None:
    with pytest.raises(ConfigError, match="projector_norm batch` is over the crops"):
        made("byol")(batch("byol", range(1)), moment())


@pytest.mark.parametrize("name", TWO_VIEWS)
def test_the_feed_is_asked_for_two_views_with_the_overlap_of_the_config(name: str) -> None:
    needs = made(name, min_overlap=0.4).needs

    assert (needs.views, needs.min_overlap, needs.labels) == (2, 0.4, False)


@pytest.mark.parametrize("name", TWO_VIEWS)
def test_the_order_of_crops_does_not_matter(name: str) -> None:
    task, crops = made(name), batch(name)
    rows = torch.tensor([2, 0, 3, 1])
    moved = replace(
        crops,
        voxels=crops.voxels[torch.cat([rows, rows + 4])],
        case_ids=tuple(crops.case_ids[i] for i in rows) * 2,
        crop_ids=crops.crop_ids[torch.cat([rows, rows])],
    )

    first, second = (task(each, moment()).loss for each in (crops, moved))

    torch.testing.assert_close(first, second)


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", 0.0), ("min_overlap", -0.1), ("min_overlap", 1.5)]
)
def test_numbers_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        made("simclr", **{field: value})


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_views_may_share_nothing_or_everything(share: float) -> None:
    assert made("simclr", min_overlap=share).needs.min_overlap == share


def projections(task: Any, crops: Any) -> tuple[torch.Tensor, torch.Tensor]:
    states = task.encoder(crops.voxels, crops.spacing_mm)
    one, two = task.projector(states.tokens.mean(dim=1)).chunk(2)
    return one, two


def test_simclr_is_monais_contrastive_loss_of_its_projections() -> None:
    task, crops = made("simclr", temperature=0.3), batch("simclr")

    outcome = task(crops, moment())

    expected = ContrastiveLoss(temperature=0.3)(*projections(task, crops))
    torch.testing.assert_close(outcome.loss, expected)


@pytest.mark.parametrize("name", ["simclr", "mocov3"])
def test_crops_of_one_case_are_no_negatives(name: str) -> None:
    """With a crop and its like of the same case, no crop is left to tell it from."""
    task, crops = made(name), batch(name)
    all_alike = replace(crops, case_ids=("case",) * 8)
    unknown = replace(crops, case_ids=("",) * 8)
    pairs = replace(crops, case_ids=("a", "a", "b", "b") * 2)

    expected = task(crops, moment()).loss

    assert task(all_alike, moment()).loss.item() == pytest.approx(0, abs=1e-6)
    assert 0 < task(pairs, moment()).loss < expected
    assert torch.equal(task(unknown, moment()).loss, expected)


@pytest.mark.parametrize("name", ["simclr", "mocov3"])
@pytest.mark.parametrize("cases", ["abcd", "aabc", "aaab", "    ", "aaaa"])
def test_the_loss_of_guessing_is_that_of_answers_that_are_all_alike(name: str, cases: str) -> None:
    """Written out: the loss of the same crops through heads that give one answer to all."""
    task, crops = made(name, temperature=0.3), batch(name)
    crops = replace(crops, case_ids=tuple(case.strip() for case in cases) * 2)
    answering = task.projector if name == "simclr" else task.teacher.module.projector
    head = answering.layers[-1]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.arange(1.0, 1.0 + len(head.bias)))

    outcome = task(crops, moment())

    torch.testing.assert_close(outcome.logs["chance"], outcome.loss.detach())
    assert not outcome.logs["chance"].requires_grad


def test_the_loss_of_guessing_is_the_logarithm_of_the_candidates() -> None:
    """Of four crops: one positive and six other views; MoCo v3 sees four answers, twice, at 2 T."""
    ours = {name: made(name, temperature=0.3)(batch(name), moment()).logs for name in ALL}

    assert ours["simclr"]["chance"].item() == pytest.approx(math.log(7))
    assert ours["mocov3"]["chance"].item() == pytest.approx(2 * 0.3 * 2 * math.log(4))
    assert [name for name, logs in ours.items() if "chance" in logs] == ["simclr", "mocov3"]
    # Crops 0 and 1 of one case: they choose from 5 views, the other two from 7.
    pairs = replace(batch("simclr"), case_ids=("a", "a", "b", "c") * 2)
    found = made("simclr")(pairs, moment()).logs["chance"].item()
    assert found == pytest.approx((math.log(5) + math.log(7)) / 2)


def test_vicreg_is_the_weighted_sum_of_its_terms() -> None:
    weights = {"invariance_weight": 3.0, "variance_weight": 5.0, "covariance_weight": 0.5}
    task, crops = made("vicreg", **weights), batch("vicreg")

    outcome = task(crops, moment())

    one, two = projections(task, crops)
    matrices = [torch.cov(view.T) for view in (one, two)]
    hinges = [F.relu(1 - (matrix.diagonal() + 1e-4).sqrt()).mean() for matrix in matrices]
    hinge = torch.stack(hinges).mean()
    apart = [(matrix - matrix.diag().diag()).square().sum() / 16 for matrix in matrices]
    covariance = torch.stack(apart).sum()
    expected = 3 * F.mse_loss(one, two) + 5 * hinge + 0.5 * covariance
    torch.testing.assert_close(outcome.loss, expected)
    assert outcome.logs["variance"].item() == pytest.approx(float(hinge.detach()), rel=1e-5)


def test_losses_of_fixed_crops_are_what_they_were() -> None:
    found = {name: made(name)(batch(name), moment()).loss.item() for name in ALL}
    expected = {
        "simclr": 0.340478, "vicreg": 23.137966, "byol": 3.737936, "mocov3": 1.597433,
        "voco": 2.085148,
    }  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_class_token_is_what_views_are_compared_by() -> None:
    task: Task = made("simclr", replace(ENCODER, class_token=True, registers=1))
    crops = batch("simclr")

    outcome = task(crops, moment())

    states = task.encoder(crops.voxels, crops.spacing_mm)  # type: ignore[operator]
    one, two = task.projector(states.prefix[:, 0]).chunk(2)  # type: ignore[operator]
    torch.testing.assert_close(outcome.loss, ContrastiveLoss(temperature=0.2)(one, two))
