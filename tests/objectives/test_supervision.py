"""The supervised term beside a pretext task: one softmax, per sample, the same in any grouping."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from placed_crops import ENCODER, SMALL, batch, moment
from scipy.special import logsumexp

from mim3d.config.objective import PretextConfig, SupervisedConfig
from mim3d.data.batch import CropBatch, CropBatches, Target
from mim3d.foundation.errors import ConfigError
from mim3d.models.vit import VolumeViT
from mim3d.objectives.heads import crop_features
from mim3d.objectives.masked import Masked
from mim3d.objectives.registry import PRETEXT_TASKS

NAN = float("nan")
SUPERVISED = SupervisedConfig("grade", (3.0, 5.0, 7.0), weight=0.1)


def task(name: str = "mae", supervised: SupervisedConfig = SUPERVISED, **encoder: Any) -> Masked:
    torch.manual_seed(0)
    config = replace(SMALL, name=name, supervised=supervised)  # type: ignore[arg-type]
    made: Any = PRETEXT_TASKS[name](VolumeViT(replace(ENCODER, **encoder)), config)
    return made


def labelled(classes: list[float]) -> CropBatch:
    return replace(batch(crops=len(classes)), targets=torch.tensor(classes)[:, None])


def test_cases_that_are_not_told_are_as_those_without_a_class() -> None:
    some, all_known = labelled([2.0, NAN, 0.0, NAN]), labelled([2.0, 1.0, 0.0, 2.0])
    made, now = task(), moment()
    expected = made(some, now)

    assert made.supervision is not None
    made.supervision.tell_of([some.case_ids[0], some.case_ids[2]])

    found = made(all_known, now)
    assert found.loss == expected.loss
    assert found.logs["labelled_share"] == 0.5


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_the_term_is_the_cross_entropy_of_logits_summed_over_known_cases_over_all_crops(
    name: str, class_token: bool
) -> None:
    made = task(name, class_token=class_token)
    crops, now = labelled([2.0, NAN, 0.0, 2.0]), moment()

    outcome = made(crops, now)
    assert made.supervision is not None
    made.supervision.config = replace(SUPERVISED, weight=0.0)
    plain = made(crops, now).loss
    states = made.states(crops, made.question(crops, now))
    logits = made.supervision.head(crop_features(states)).detach().double().numpy()

    errors = [logsumexp(row) - row[c] for row, c in zip(logits, (2, 0, 0, 2), strict=True)]
    expected = (errors[0] + errors[2] + errors[3]) / 4
    assert outcome.loss.item() == pytest.approx(plain.item() + 0.1 * expected, rel=1e-5)
    assert outcome.logs["supervised_loss"].item() == pytest.approx(expected, rel=1e-5)
    assert outcome.logs["labelled_share"] == 0.75
    right = sum(logits[i].argmax() == c for i, c in ((0, 2), (2, 0), (3, 2))) / 4
    assert outcome.logs["supervised_right"] == right
    assert outcome.logs["loss"] == outcome.loss


def test_a_batch_without_known_cases_trains_by_reconstruction_alone_and_keeps_the_graph() -> None:
    made = task()
    crops, now = labelled([NAN, NAN]), moment()

    made(crops, now).loss.backward()

    assert made.supervision is not None
    gradient = made.supervision.head.weight.grad
    assert gradient is not None
    assert gradient.eq(0).all()
    plain = task(supervised=SupervisedConfig())
    plain.load_state_dict(
        {k: v for k, v in made.state_dict().items() if not k.startswith("supervision.")}
    )
    assert torch.equal(made(crops, now).loss, plain(crops, now).loss)


def test_two_micro_batches_have_the_gradient_of_one_though_labels_lie_unevenly() -> None:
    crops, now = labelled([1.0, 2.0, 0.0, NAN]), moment()
    gradients = []
    for parts in ([range(4)], [range(2), range(2, 4)]):
        made = task()
        for part in parts:
            rows = list(part)
            some = replace(
                crops,
                voxels=crops.voxels[rows],
                affine=crops.affine[rows],
                case_ids=tuple(crops.case_ids[i] for i in rows),
                crop_ids=crops.crop_ids[rows],
                targets=crops.targets[rows],  # type: ignore[index]
            )
            (made(some, now).loss / len(parts)).backward()
        gradients.append({n: p.grad for n, p in made.named_parameters() if p.grad is not None})

    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-7)


def test_crops_of_several_sizes_count_each_the_same() -> None:
    made, now = task(), moment()
    large, small = labelled([1.0, NAN, 0.0]), labelled([2.0])
    small = replace(small, voxels=small.voxels[..., :8, :], crop_ids=torch.tensor([3]))

    outcome = made(CropBatches((large, small)), now)

    assert made.supervision is not None
    terms = [made(part, now).logs["supervised_loss"].item() * len(part.voxels)
             for part in (large, small)]  # fmt: skip
    assert outcome.logs["supervised_loss"].item() == pytest.approx(sum(terms) / 4, rel=1e-4)


def test_the_feed_is_asked_for_an_optional_target_and_judging_leaves_it_out() -> None:
    made, plain = task(), task(supervised=SupervisedConfig())

    assert made.needs.targets == (Target("grade", (3.0, 5.0, 7.0), is_optional=True),)
    assert plain.needs.targets == ()
    crops, now = labelled([1.0, 2.0]), moment()
    judged = made.eval()(crops, now)
    assert "supervised_loss" not in judged.logs
    assert not any(name.startswith("supervision.") for name in made.weights())


def test_a_head_learns_what_crops_show() -> None:
    made = task(supervised=replace(SUPERVISED, weight=1.0))
    optimiser = torch.optim.AdamW(made.parameters(), lr=3e-3)
    crops = labelled([0.0, 1.0, 2.0, 1.0])
    bright = torch.tensor([0.0, 1.5, 3.0, 1.5])[:, None, None, None, None]
    crops = replace(crops, voxels=crops.voxels * 0.3 + bright)
    for step in range(60):
        outcome = made(crops, moment(step, 60))
        optimiser.zero_grad()
        outcome.loss.backward()
        optimiser.step()

    # A softmax in front of the cross-entropy could not fall below log(e + 2) - 1 = 0.55.
    assert outcome.logs["supervised_loss"] < 0.1
    assert outcome.logs["supervised_right"] == 1


@pytest.mark.parametrize(
    ("name", "supervised", "why"),
    [
        ("smit", SUPERVISED, "is not for `objective.name smit`"),
        ("mae", replace(SUPERVISED, weight=-0.1), "weight` is -0.1"),
        ("mae", replace(SUPERVISED, classes=None), "has 0 classes"),
        ("mae", replace(SUPERVISED, classes=(1.0,)), "has 1 classes"),
    ],
)
def test_what_cannot_be_learnt_is_refused(
    name: str, supervised: SupervisedConfig, why: str
) -> None:
    config = PretextConfig(name=name, supervised=supervised)  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match=why):
        PRETEXT_TASKS[name](VolumeViT(ENCODER), config)
