"""The tasks of whole volumes against losses written out in NumPy."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize

from mim3d.config.encoder import EncoderConfig
from mim3d.config.task import ClassificationConfig
from mim3d.data.asked_target import AskedTarget
from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.randomness import RandomStream
from mim3d.models.classifier import VolumeClassifier
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.objectives.classification import Classification, blended
from mim3d.objectives.weight_maps import VolumeGrid

GRADE = AskedTarget("grade", (1.0, 3.0, 7.0), counts=(6, 3, 1))
SICK = AskedTarget("sick", (0.0, 1.0), counts=(8, 2), is_sigmoid=True)
OLD = AskedTarget("old", (0.0, 1.0), counts=(5, 5), is_sigmoid=True)
AGE = AskedTarget("age", None, mean=40.0, deviation=8.0)
MOMENT = Moment(3, 10, RandomStream(5, 3))


def _network(outputs: int, **fields) -> VolumeClassifier:
    torch.manual_seed(0)
    encoder = EncoderConfig(
        width=24, depth=2, heads=2, patch=(4, 4, 2), channels=2, class_token=True,
        default_spacing_mm=(1.0, 1.0, 2.0),
    )  # fmt: skip
    network = VolumeClassifier(VolumeViT(encoder), outputs, **fields)
    torch.nn.init.normal_(network.decoder.linear.weight, std=0.5)
    return network


def _task(table, config=None, **fields) -> Classification:
    network = _network(sum(one.outputs for one in table), **fields)
    return Classification(network, config or ClassificationConfig(), table)


def _batch(targets, count: int = 4) -> CropBatch:
    generator = torch.Generator().manual_seed(1)
    return CropBatch(
        voxels=torch.randn((count, 2, 11, 13, 7), generator=generator),
        affine=torch.diag(torch.tensor([1.0, 1.2, 2.0, 1.0], dtype=torch.float64)).repeat(
            count, 1, 1
        ),
        case_ids=tuple("abcdefghij"[:count]),
        crop_ids=torch.arange(count) + 8,
        targets=torch.tensor(targets, dtype=torch.float32),
    )


def _outputs(task: Classification, batch: CropBatch) -> np.ndarray:
    with torch.no_grad():
        return task.network(batch.voxels, batch.spacing_mm).double().numpy()


def _log_softmax(row):
    top = max(row)
    total = math.log(sum(math.exp(x - top) for x in row)) + top
    return [x - total for x in row]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", ["none", "balanced", (1.0, 2.0, 5.0)])
def test_cross_entropy_is_that_of_a_slow_loop(smoothing, weights):
    config = ClassificationConfig(label_smoothing=smoothing, class_weights=weights)
    task, batch = _task([GRADE], config), _batch([[0.0], [2.0], [1.0], [0.0]])

    outcome = task.eval()(batch, MOMENT)

    # Balanced: 10 cases, 3 classes: 10 / (3 n_c).
    by_class = {"none": [1, 1, 1], "balanced": [10 / 18, 10 / 9, 10 / 3]}.get(weights, weights)
    total = 0.0
    for row, true in zip(_outputs(task, batch), (0, 2, 1, 0), strict=True):
        logs = _log_softmax(row)
        for place in range(3):
            share = (1 - smoothing) * (place == true) + smoothing / 3
            total -= by_class[place] * share * logs[place] / 4
    # The task's sums are float32.
    assert float(outcome.loss.detach()) == pytest.approx(total, rel=1e-5)


def test_cross_entropy_without_weights_is_that_of_torch():
    task, batch = (
        _task([GRADE], ClassificationConfig(label_smoothing=0.1)),
        _batch([[0.0], [2.0], [1.0], [0.0]]),
    )

    loss = task.eval()(batch, MOMENT).loss

    logits = torch.from_numpy(_outputs(task, batch))
    expected = F.cross_entropy(logits, torch.tensor([0, 2, 1, 0]), label_smoothing=0.1)
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_sigmoids_of_several_labels_are_those_of_a_slow_loop(weights):
    config = ClassificationConfig(loss="bce", class_weights=weights)
    truth = [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    task, batch = _task([SICK, OLD], config), _batch(truth)

    loss = task.eval()(batch, MOMENT).loss

    # Balanced: 10 cases, 2 classes: 10 / (2 n_c).
    by_class = [[10 / 16, 10 / 4], [1, 1]] if weights == "balanced" else [[1, 1], [1, 1]]
    total = 0.0
    for row, labels in zip(_outputs(task, batch), truth, strict=True):
        for place, (answer, label) in enumerate(zip(row, labels, strict=True)):
            chance = 1 / (1 + math.exp(-answer))
            own = by_class[place][int(label)] * math.log(chance if label else 1 - chance)
            total -= own / 8
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("loss", [None, "l1", "l2", "smooth_l1"])
def test_errors_of_a_number_are_in_deviations_of_the_training_cases(loss):
    ages = [31.0, 64.0, 40.0, 47.5]
    task, batch = (
        _task([AGE], ClassificationConfig(loss=loss)),
        _batch([[age] for age in ages]),
    )

    outcome = task.eval()(batch, MOMENT)

    errors = np.abs(_outputs(task, batch)[:, 0] - (np.array(ages) - 40) / 8)
    each = {
        "l1": errors,
        "l2": errors**2,
        "smooth_l1": np.where(errors < 1, errors**2 / 2, errors - 0.5),
    }[loss or "smooth_l1"]
    assert float(outcome.loss.detach()) == pytest.approx(float(each.mean()), rel=1e-5)
    assert float(outcome.logs["error"]) == pytest.approx(float(8 * errors.mean()), rel=1e-5)


def test_the_loss_of_several_targets_is_their_mean_and_each_has_outputs_of_its_own():
    both = _task([GRADE, replace(GRADE, name="other", counts=(1, 1, 1))])
    batch = _batch([[0.0, 2.0], [2.0, 1.0], [1.0, 1.0], [0.0, 0.0]])

    loss = both.eval()(batch, MOMENT).loss

    outputs = torch.from_numpy(_outputs(both, batch))
    each = [
        F.cross_entropy(outputs[:, 3 * place : 3 * place + 3], batch.targets[:, place].long())
        for place in (0, 1)
    ]
    assert float(loss.detach()) == pytest.approx(float(sum(each) / 2), rel=1e-5)


def test_accuracy_counts_the_most_probable_class():
    task = _task([GRADE])
    batch = _batch([[0.0], [2.0], [1.0], [0.0]])
    guesses = _outputs(task, batch).argmax(axis=1)

    logged = task.eval()(batch, MOMENT).logs["accuracy"]

    assert float(logged) == np.mean(guesses == [0, 2, 1, 0])


def test_a_batch_in_two_parts_has_the_mean_of_their_losses():
    config = ClassificationConfig(class_weights="balanced", label_smoothing=0.1)
    task, batch = _task([GRADE], config).eval(), _batch([[0.0], [2.0], [1.0], [0.0]])

    def part(rows: slice) -> float:
        return float(
            task(
                replace(
                    batch,
                    voxels=batch.voxels[rows],
                    affine=batch.affine[rows],
                    crop_ids=batch.crop_ids[rows],
                    targets=batch.targets[rows],
                ),
                MOMENT,
            ).loss.detach()
        )

    assert (part(slice(0, 2)) + part(slice(2, 4))) / 2 == pytest.approx(
        float(task(batch, MOMENT).loss.detach()), rel=1e-5
    )


def test_blended_crops_are_blended_with_their_targets():
    task = _task([GRADE], ClassificationConfig(mixup=0.4)).train()
    batch = _batch([[0.0], [2.0], [1.0], [0.0]])

    loss = task(batch, Moment(4, 10, RandomStream(5, 4))).loss

    draws = [RandomStream(5, 4).generator(crop, "mixup").beta(0.4, 0.4) for crop in range(8, 12)]
    shares = [max(draw, 1 - draw) for draw in draws]
    voxels = batch.voxels.numpy()
    mixed = np.stack([s * voxels[i] + (1 - s) * voxels[(i + 1) % 4] for i, s in enumerate(shares)])
    outputs = _outputs(task, replace(batch, voxels=torch.from_numpy(mixed).float()))
    truth, total = (0, 2, 1, 0), 0.0
    for i, share in enumerate(shares):
        logs = _log_softmax(outputs[i])
        total -= (share * logs[truth[i]] + (1 - share) * logs[truth[(i + 1) % 4]]) / 4
    assert float(loss.detach()) == pytest.approx(total, rel=1e-4)
    assert min(draws) < 0.5  # the larger part is not always the first


def test_blending_is_for_training_alone():
    plain, mixing = _task([GRADE]), _task([GRADE], ClassificationConfig(mixup=0.4))
    batch = _batch([[0.0], [2.0], [1.0], [0.0]])

    assert torch.equal(plain.eval()(batch, MOMENT).loss, mixing.eval()(batch, MOMENT).loss)
    assert not torch.equal(plain.train()(batch, MOMENT).loss, mixing.train()(batch, MOMENT).loss)


def test_what_stands_in_padding_blends_into_nothing():
    batch = _batch([[0.0], [2.0]], count=2)
    valid = torch.ones((2, 11, 13, 7), dtype=torch.bool)
    valid[0, 8:] = False
    dirty = batch.voxels.clone()
    dirty[0, :, 8:] = torch.nan

    shown = blended(replace(batch, voxels=dirty, valid=valid), torch.tensor([0.75, 0.6]))

    assert shown.valid.all()
    assert torch.equal(shown.voxels[0, :, 8:], 0.25 * batch.voxels[1, :, 8:])
    assert torch.allclose(shown.voxels[1, :, 8:], 0.6 * batch.voxels[1, :, 8:])


def test_in_training_only_a_share_of_the_tokens_is_seen_and_it_is_drawn_anew():
    task = _task([GRADE], ClassificationConfig(keep=0.25), keep=0.25).train()
    batch, lengths = _batch([[0.0], [2.0], [1.0], [0.0]]), []
    task.encoder.blocks[0].register_forward_hook(
        lambda module, given, made: lengths.append(given[0].shape[1])
    )

    first = task(batch, MOMENT).loss
    again = task(batch, MOMENT).loss
    later = task(batch, Moment(4, 10, RandomStream(5, 4))).loss
    task.eval()(batch, MOMENT)

    # 3 x 4 x 4 tokens, of which a quarter, and the class token.
    assert lengths == [13, 13, 13, 49]
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


@pytest.mark.parametrize("weights", ["none", "balanced", (1.0, 2.0, 5.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_no_other_answer_for_all_is_better_than_the_one_that_is_logged(weights, smoothing):
    """10 crops as frequent as the training cases: SciPy finds no lower loss of a constant."""
    config = ClassificationConfig(class_weights=weights, label_smoothing=smoothing)
    task = _task([GRADE], config)
    rows = [0] * 6 + [1] * 3 + [2]
    batch = _batch([[float(row)] for row in rows], count=10)

    logged = float(task.train()(batch, MOMENT).logs["same_answer"])

    by_class = {"none": [1, 1, 1], "balanced": [10 / 18, 10 / 9, 10 / 3]}.get(weights, weights)

    def loss(logits):
        logs = _log_softmax(logits)
        each = [
            -by_class[c] * ((1 - smoothing) * (c == row) + smoothing / 3) * logs[c]
            for row in rows
            for c in range(3)
        ]
        return sum(each) / 10

    assert logged == pytest.approx(minimize(loss, [0.0, 0.0, 0.0]).fun, rel=1e-4)


def test_the_answer_for_all_of_numbers_is_the_mean_and_of_labels_their_share():
    number, ages = _task([AGE], ClassificationConfig(loss="l1")), [31.0, 64.0, 40.0, 47.5]
    label = _task([SICK], ClassificationConfig(loss="bce"))

    of_ages = number.train()(_batch([[age] for age in ages]), MOMENT).logs["same_answer"]
    of_labels = label.train()(_batch([[0.0], [0.0], [1.0], [0.0]]), MOMENT).logs["same_answer"]

    assert float(of_ages) == pytest.approx(np.mean([9, 24, 0, 7.5]) / 8)  # 40 +- 8
    assert float(of_labels) == pytest.approx(-(3 * math.log(0.8) + math.log(0.2)) / 4)
    assert "same_answer" not in number.eval()(_batch([[age] for age in ages]), MOMENT).logs


def _guided(polarity: str = "high", **fields) -> Classification:
    config = ClassificationConfig(keep=0.25, keep_by="attention", keep_polarity=polarity, **fields)
    task = _task([GRADE], config, keep=0.25, keep_by="attention", keep_polarity=polarity)
    affine = np.diag([1.0, 1.2, 2.0, 1.0])
    task.remember({name: VolumeGrid((11, 13, 7), affine) for name in "abcd"})
    return task.train()


def _seen(task: Classification, batch: CropBatch, moment: Moment) -> list[list[int]]:
    splits = []
    look = task.network.look

    def noted(*given, **named):
        looked = look(*given, **named)
        splits.append(looked.split.visible.tolist())
        return looked

    task.network.look = noted
    task(batch, moment)
    del task.network.look
    return splits[0]


@pytest.mark.parametrize("polarity", ["high", "low"])
def test_training_sees_the_places_that_attention_has_marked_or_leaves_them_out(polarity):
    """Two hot tokens of case b, whose crop is mirrored along x."""
    task, batch = _guided(polarity), _batch([[0.0], [2.0], [1.0], [0.0]])
    mirrored = torch.diag(torch.tensor([-1.0, 1.2, 2.0, 1.0], dtype=torch.float64))
    mirrored[0, 3] = 11  # voxel 11 - i of the volume, so that whole tokens fall on whole cells
    batch.affine[1] = mirrored
    weights = torch.full((3, 4, 4), 1e-3)
    weights[2, 1, 3] = weights[2, 3, 0] = 1e3
    task.guide.maps.fill("b", weights)

    rows = [_seen(task, batch, Moment(step, 10, RandomStream(5, step)))[1] for step in range(6)]

    hot = {1 * 4 + 3, 3 * 4 + 0}  # x = 2 of three cells is the first one from the other side
    for row in rows:
        assert len(row) == 12
        assert hot <= set(row) if polarity == "high" else not hot & set(row)
    assert len({tuple(row) for row in rows}) > 1


def test_training_notes_the_attention_that_what_it_saw_got():
    task, batch = _guided(), _batch([[0.0], [2.0], [1.0], [0.0]])
    seen = _seen(task, batch, MOMENT)

    task(batch, MOMENT)
    task.after_update(MOMENT)

    keys = MOMENT.keys(batch, "keep")
    weights = torch.ones(4, 48)  # nothing is known yet
    with torch.no_grad():
        looked = task.network.look(
            batch.voxels, batch.spacing_mm, keys=keys, weights=weights, wants_attention=True
        )
    (attention,) = looked.states.attention
    for row, case in enumerate("abcd"):
        assert looked.split.visible[row].tolist() == seen[row]
        # Of the patches: they are pooled, and nothing trains this encoder's class token.
        got = attention[row].mean(dim=0)[1:, 1:].mean(dim=0)
        found = task.guide.maps.map_of(case)
        np.testing.assert_allclose(found.values.flatten()[seen[row]], got / got.mean(), rtol=1e-3)
        assert found.known.sum() == 12


def test_what_attention_has_marked_outlives_an_interruption_and_is_no_weight_of_the_network():
    task, batch = _guided(), _batch([[0.0], [2.0], [1.0], [0.0]])
    task(batch, MOMENT)
    task.after_update(MOMENT)

    other = _guided()
    other.load_state_dict(task.state_dict())

    assert torch.equal(other.guide.maps.evidence, task.guide.maps.evidence)
    assert task.guide.maps.evidence.any()
    assert set(task.weights()) == set(task.network.state_dict())


def test_validation_neither_leaves_out_nor_notes():
    task, batch = _guided().eval(), _batch([[0.0], [2.0], [1.0], [0.0]])

    plain = _task([GRADE]).eval()(batch, MOMENT).loss
    task.after_update(MOMENT)

    assert torch.equal(task(batch, MOMENT).loss, plain)
    assert not task.guide.maps.evidence.any()


def test_a_map_of_one_case_leads_no_blend_of_two():
    with pytest.raises(ConfigError, match="blends cases"):
        _guided(mixup=0.2)


def test_the_keys_of_its_weights_are_those_of_encoder_and_decoder():
    task = _task([GRADE])

    assert set(task.weights()) == set(task.network.state_dict())
    assert task.needs.targets[0].classes == (1.0, 3.0, 7.0)
    assert not task.needs.labels


@pytest.mark.parametrize(
    ("table", "config", "what"),
    [
        ([GRADE], {"loss": "l1"}, "is not for `task classification`"),
        ([AGE], {"loss": "ce"}, "is not for `task regression`"),
        ([AGE], {"label_smoothing": 0.1}, "numbers have none"),
        ([AGE], {"class_weights": "balanced"}, "numbers have none"),
        ([GRADE], {"class_weights": (1.0, 2.0)}, "each of its 3 classes"),
        ([GRADE], {"class_weights": (1.0, 2.0, 0.0)}, "each of its 3 classes"),
        ([GRADE], {"label_smoothing": 1.0}, "expected 0 to below 1"),
        ([GRADE], {"mixup": -0.1}, "expected 0 or more"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(table, config, what):
    with pytest.raises(ConfigError, match=what):
        _task(table, ClassificationConfig(**config))


def test_a_class_without_a_training_case_cannot_be_balanced():
    with pytest.raises(UserError, match="class 7 of the target `grade` has no training case"):
        _task([replace(GRADE, counts=(4, 5, 0))], ClassificationConfig(class_weights="balanced"))


@torch.no_grad()
def test_where_air_is_dropped_patches_without_body_are_as_padding() -> None:
    config = ClassificationConfig(drop_air=True)
    batch = replace(_batch([[1.0], [3.0], [3.0], [7.0]]), air=torch.tensor([[1.5, 2.0]] * 4))
    task = _task((GRADE,), config, drop_air=True).eval()

    found = task(batch, MOMENT)

    valid = torch.zeros((4, 11, 13, 7), dtype=torch.bool)
    for row, x, y, z in itertools.product(range(4), (0, 4, 8), (0, 4, 8, 12), (0, 2, 4, 6)):
        box = (slice(x, x + 4), slice(y, y + 4), slice(z, z + 2))
        first, second = batch.voxels[row, 0][box], batch.voxels[row, 1][box]
        valid[(row, *box)] = bool(((first >= 1.5) | (second >= 2.0)).any())
    assert 0.2 < valid.float().mean() < 0.95
    plain = _task((GRADE,)).eval()
    plain.load_state_dict(task.state_dict())
    expected = plain(replace(batch, valid=valid), MOMENT)
    assert found.loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)


def test_without_a_word_on_air_none_can_be_dropped() -> None:
    task = _task((GRADE,), ClassificationConfig(drop_air=True), drop_air=True)

    with pytest.raises(UserError, match="does not know what is air"):
        task(_batch([[1.0], [3.0], [3.0], [7.0]]), MOMENT)
