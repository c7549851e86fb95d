"""SMIT: each term written out slowly, what SimMIM's fields mean in it, and whether it lives."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import ContrastConfig, PretextConfig, TeacherConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.randomness import RandomStream
from mim3d.models.encoder_input import Replacement
from mim3d.models.hidden_states import HiddenStates
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.objectives.prototypes import Centre
from mim3d.objectives.simmim import SimMIM
from mim3d.objectives.smit import SMIT
from mim3d.objectives.views import split_views
from mim3d.tokens.grid import TokenGrid
from mim3d.tokens.masking import is_masked
from mim3d.training.validation import undisturbed
from mim3d.workflows.plan.trace import trace_step

ENCODER = EncoderConfig(width=24, depth=2, heads=2, patch=(4, 4, 2), channels=2)
TEACHER = TeacherConfig(
    prototypes=16, head_width=12, bottleneck=6, teacher_temperature=(0.04, 0.07)
)
SIZE = (11, 13, 7)


def task(
    encoder: EncoderConfig = ENCODER, teacher: dict[str, Any] | None = None, **fields: Any
) -> SMIT:
    torch.manual_seed(0)
    own = replace(TEACHER, **(teacher or {}))
    return SMIT(VolumeViT(encoder), PretextConfig(name="smit", teacher=own, **fields))


def batch(views: int = 2, crops: int = 3) -> CropBatch:
    voxels = torch.randn(views * crops, 2, *SIZE, generator=torch.Generator().manual_seed(1))
    affine = torch.diag(torch.tensor([0.5, 1.0, 3.0, 1.0], dtype=torch.float64))
    ids = tuple(f"case_{i}" for i in range(crops))
    return CropBatch(
        voxels, affine.repeat(len(voxels), 1, 1), ids * views, torch.arange(crops).repeat(views)
    )


def padded(crops: CropBatch) -> CropBatch:
    valid = torch.ones(len(crops.voxels), *SIZE, dtype=torch.bool)
    valid[0, :5] = False
    valid[1, :, 9:, 3:] = False
    return replace(crops, valid=valid)


def with_air(crops: CropBatch) -> CropBatch:
    return replace(crops, air=torch.tensor([[0.0, 0.5]]).repeat(len(crops.voxels), 1))


def moment(step: int = 2, steps: int = 12, pictures: bool = False) -> Moment:
    return Moment(step, steps, RandomStream(0, step), wants_pictures=pictures)


@torch.no_grad()
def stirred(made: SMIT) -> SMIT:
    """A teacher and centres that differ from the student and from 0."""
    random = torch.Generator().manual_seed(5)
    for parameter in made.teacher.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=random)
    for centre in (made.token_centre, made.whole_centre):
        centre.mean.copy_(0.3 * torch.randn(centre.mean.shape, generator=random))
        centre.variance.fill_(0.24)
    return made


def one_crop(crops: CropBatch, row: int) -> dict[str, Any]:
    valid = None if crops.valid is None else crops.valid[row : row + 1]
    return {
        "voxels": crops.voxels[row : row + 1],
        "spacing_mm": crops.spacing_mm[row : row + 1],
        "valid": valid,
    }


def mean_of_tokens(states: HiddenStates) -> Tensor:
    valid = states.token_valid
    kept = [t for i, t in enumerate(states.tokens[0]) if valid is None or valid[0, i]]
    return torch.stack(kept).mean(0)


def token_share(made: SMIT, crops: CropBatch, row: int, grid: TokenGrid, token: int) -> float:
    """What the voxels behind a token count on the average, voxel by voxel."""
    counted, size = 0.0, crops.voxels.shape[2:]
    start = [int(i) * edge for i, edge in zip(grid.indices("cpu")[token], grid.patch, strict=True)]
    for x in range(start[0], start[0] + grid.patch[0]):
        for y in range(start[1], start[1] + grid.patch[1]):
            for z in range(start[2], start[2] + grid.patch[2]):
                if x >= size[0] or y >= size[1] or z >= size[2]:
                    continue
                if crops.valid is not None and not crops.valid[row, x, y, z]:
                    continue
                is_air = crops.air is not None and bool(
                    (crops.voxels[row, :, x, y, z] < crops.air[row]).all()
                )
                counted += made.config.air_weight if is_air else 1.0
    return counted / math.prod(grid.patch)


def nats(cosines: Tensor, told: Tensor, centre: Centre) -> float:
    """Cross-entropy at step 2 of 12, half way up from 0.04 to 0.07."""
    # Evenly spread directions of 6 numbers have cosines of variance 1/6.
    stretch = (1 / 6 / centre.variance).sqrt()
    answer = torch.exp(stretch * (told - centre.mean) / 0.055)
    guess = torch.exp(cosines / 0.1)
    return -float(((answer / answer.sum()) * (guess / guess.sum()).log()).sum())


@torch.no_grad()
def slow_terms(made: SMIT, crops: CropBatch, views: int) -> tuple[float, float]:
    """Token and whole loss, crop by crop and token by token."""
    split = made.question(crops, moment()).split
    student, teacher = made.prototypes, made.teacher.module
    rows, tokens, weights, wholes = len(crops.voxels), 0.0, 0.0, 0.0
    grids, ours, theirs = [], [], []
    for row in range(rows):
        given = one_crop(crops, row)
        grid = TokenGrid.over(SIZE, made.encoder.patch)
        hidden = is_masked(split, grid.n)[row : row + 1]
        ours.append(made.encoder(**given, replaced=Replacement(hidden, made.mask_token)))
        theirs.append(teacher.encoder(**given))
        grids.append(hidden[0])
    for row in range(rows):
        for token in range(grid.n):
            valid = ours[row].token_valid
            if valid is not None and not valid[0, token]:
                continue
            counts = 1.0 if grids[row][token] else made.config.visible_weight
            counts *= token_share(made, crops, row, grid, token)
            error = nats(
                student(ours[row].tokens[0, token]),
                teacher.prototypes(theirs[row].tokens[0, token]),
                made.token_centre,
            )
            tokens, weights = tokens + counts * error, weights + counts
        other = (row + rows // views) % rows
        wholes += nats(
            student(mean_of_tokens(ours[row])),
            teacher.prototypes(mean_of_tokens(theirs[other])),
            made.whole_centre,
        )
    return tokens / weights, wholes / rows


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize(
    "fields",
    [{}, {"visible_weight": 0.25}, {"masking": "block"}, {"mask_ratio": 0.4}],
    ids=["plain", "visible", "block", "ratio"],
)
@pytest.mark.parametrize("kind", ["whole", "padded", "air"])
def test_the_terms_equal_slow_loops_over_crops_and_tokens(
    views: int, fields: dict[str, Any], kind: str
) -> None:
    made = stirred(task(teacher={"views": views}, air_weight=0.25, **fields))
    crops = {"whole": lambda x: x, "padded": padded, "air": with_air}[kind](batch(views))

    outcome = made(crops, moment())

    tokens, wholes = slow_terms(made, crops, views)
    logs = outcome.logs
    assert logs["token_loss"].item() == pytest.approx(tokens, rel=1e-4)
    assert logs["whole_loss"].item() == pytest.approx(wholes, rel=1e-4)
    total = logs["voxel_loss"].item() + 0.1 * tokens + 0.1 * wholes
    assert outcome.loss.item() == pytest.approx(total, rel=1e-4)
    assert logs["loss"].item() == outcome.loss.item()


@pytest.mark.parametrize(
    "fields",
    [{}, {"target": "normalised", "loss": "l1"}, {"visible_weight": 0.5, "air_weight": 0.0}],
    ids=["plain", "normalised-l1", "visible-air"],
)
@pytest.mark.parametrize("masking", ["uniform", "block"])
def test_with_one_view_the_voxel_loss_and_the_masks_are_simmims(
    fields: dict[str, Any], masking: str
) -> None:
    made, crops = task(teacher={"views": 1}, masking=masking, **fields), with_air(batch(1))
    simmim = SimMIM(made.encoder, PretextConfig(name="simmim", masking=masking, **fields))  # type: ignore[arg-type]
    simmim.load_state_dict({n: made.state_dict()[n] for n in simmim.state_dict()})

    ours, theirs = made(crops, moment(pictures=True)), simmim(crops, moment(pictures=True))

    torch.testing.assert_close(ours.logs["voxel_loss"], theirs.loss.detach())
    assert ours.pictures is not None
    assert theirs.pictures is not None
    for name, picture in theirs.pictures.items():
        torch.testing.assert_close(ours.pictures[name], picture)


def test_two_views_have_masks_of_their_own_and_the_first_one_simmims() -> None:
    made, crops = task(), batch(2)
    first, second = split_views(crops, 2)

    split = made.question(crops, moment()).split
    alone = SimMIM(made.encoder).question(first, moment()).split

    assert torch.equal(split.masked[:3], alone.masked)
    assert not torch.equal(split.masked[:3], split.masked[3:])
    assert torch.equal(first.crop_ids, second.crop_ids)


@torch.no_grad()
def test_the_loss_of_fixed_weights_on_fixed_crops_is_what_it_was() -> None:
    made = task()
    buffers = [made.token_centre.mean, made.whole_centre.mean]
    for i, parameter in enumerate([*made.parameters(), *buffers]):
        parameter.copy_(0.3 * chirp(parameter, i))
    crops = batch()

    outcome = made(replace(crops, voxels=chirp(crops.voxels)), moment())

    found = [outcome.logs[name].item() for name in REFERENCE]
    assert found == pytest.approx(list(REFERENCE.values()), rel=1e-4)


REFERENCE = {
    "loss": 0.908815,
    "voxel_loss": 0.651459,
    "token_loss": 2.450862,
    "whole_loss": 0.122699,
}
"""Computed once on this input; the slow loops give the same."""


def chirp(like: Tensor, phase: float = 0.0) -> Tensor:
    """Numbers -1 to 1 without a generator."""
    places = torch.arange(like.numel(), dtype=torch.float64).reshape(like.shape)
    return torch.sin(0.7 * places + 0.01 * places.square() + phase).float()


@torch.no_grad()
def test_the_teacher_sees_what_is_masked_and_the_student_does_not() -> None:
    made, crops = stirred(task(teacher={"views": 1})), batch(1)
    question = made.question(crops, moment())
    hidden = made(crops, moment(pictures=True)).pictures["mask"]
    changed = replace(crops, voxels=torch.where(hidden[:, None], 5.0, crops.voxels))
    index = question.index

    before, after = made.states(crops, question), made.states(
        changed, made.question(changed, moment())
    )  # fmt: skip
    told, told_after = made.teacher(crops, index), made.teacher(changed, index)

    assert torch.equal(before.tokens, after.tokens)
    assert (told - told_after).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("views", [1, 2])
def test_no_gradient_reaches_the_teacher_and_all_else_learns(views: int) -> None:
    made = task(teacher={"views": views})

    made(batch(views), moment()).loss.backward()

    still = {n for n, p in made.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == {n for n, _ in made.named_parameters() if n.startswith("teacher.")}
    assert not any(p.requires_grad for p in made.teacher.parameters())


@pytest.mark.parametrize(
    ("weights", "absent"),
    [
        ({"voxel_weight": 0.0}, set()),
        ({"token_weight": 0.0}, {"token_loss"}),
        ({"global_weight": 0.0}, {"whole_loss"}),
    ],
)
def test_a_weight_of_zero_leaves_its_term_out(weights: dict[str, float], absent: set[str]) -> None:
    made = task(teacher=weights)
    own = {"voxel_weight": 1.0, "token_weight": 0.1, "global_weight": 0.1, **weights}

    outcome = made(batch(), moment())
    outcome.loss.backward()

    names = {"voxel_loss": "voxel_weight", "token_loss": "token_weight",
             "whole_loss": "global_weight"}  # fmt: skip
    assert absent == names.keys() - outcome.logs.keys()
    terms = [own[w] * outcome.logs[name].item() for name, w in names.items() if name not in absent]
    assert outcome.loss.item() == pytest.approx(sum(terms), rel=1e-5)
    # Distributed training stops at a parameter that asks for a gradient and gets none.
    assert all(p.grad is not None for p in made.parameters() if p.requires_grad)


def test_a_teacher_that_teaches_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="teaches nothing") as caught:
        task(teacher={"token_weight": 0.0, "global_weight": 0.0})
    assert caught.value.remedy == "use `--objective.name simmim`"


def test_a_part_of_the_masked_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"smit.*predicts every masked token"):
        task(decoder="cross", decode_fraction=0.5)


def test_the_mean_predictor_is_the_loss_of_a_network_that_has_learnt_nothing() -> None:
    made, crops = task(), batch()

    logs = made(crops, moment()).logs

    simmim = SimMIM(made.encoder, PretextConfig(name="simmim"))
    question = made.question(crops, moment())
    nothing = torch.zeros_like(question.target.values)
    voxels = simmim.judged(nothing, question, crops, moment())
    expected = voxels.logs["mean_predictor"].item() + 0.2 * math.log(16)
    assert logs["mean_predictor"].item() == pytest.approx(expected)


def test_teacher_and_both_centres_follow_once_a_step() -> None:
    made, crops = task(teacher={"momentum": 0.8}), batch()
    before = {n: p.clone() for n, p in made.teacher.named_parameters()}
    question = made.question(crops, moment(6))
    told = made.teacher(crops, question.index)
    with torch.no_grad():
        for parameter in [*made.encoder.parameters(), *made.prototypes.parameters()]:
            parameter += 1
    made(crops, moment(6))
    made.after_update(moment(6))

    # Half way through the run a decay of 0.8 has become 1 - 0.2 / 2.
    for name, parameter in made.teacher.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.1, rtol=1e-4, atol=1e-6)
    assert question.weights is not None  # tokens at the far faces lie half in padding
    counts = question.weights.mean(-1, keepdim=True)
    rows = (counts * told[:, :-1]).sum((0, 1)) / counts.sum()
    torch.testing.assert_close(made.token_centre.mean, 0.1 * rows)
    torch.testing.assert_close(made.whole_centre.mean, 0.1 * told[:, -1].mean(0))


def test_what_stands_in_padding_does_not_matter() -> None:
    made, crops = task(), padded(batch())
    assert crops.valid is not None
    noise = torch.where(crops.valid[:, None], crops.voxels, torch.nan)

    first = made(crops, moment()).loss
    second = made(replace(crops, voxels=noise), moment()).loss

    assert torch.equal(first, second)


def test_a_look_from_outside_leaves_no_trace() -> None:
    made, looked_at = task(), task()
    for each in (made, looked_at):
        each(batch(), moment(0))
    with undisturbed(looked_at, None, seed=0):
        looked_at(batch(crops=2), moment(0))
    for each in (made, looked_at):
        each.after_update(moment(0))

    ours, theirs = looked_at.state_dict(), made.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def train(made: SMIT, crops: CropBatch, steps: range) -> list[float]:
    optimiser = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for step in steps:
        loss = made(crops, moment(step)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        made.after_update(moment(step))
        losses.append(loss.item())
    return losses


def test_a_training_goes_on_from_its_state_bit_for_bit() -> None:
    made, begun, resumed = task(), task(), stirred(task())
    losses = train(made, batch(), range(6))
    train(begun, batch(), range(3))
    resumed.load_state_dict(begun.state_dict())

    assert train(resumed, batch(), range(3, 6)) == losses[3:]
    ours, theirs = resumed.state_dict(), made.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("views", [1, 2])
def test_a_toy_set_is_overfitted_without_collapse(views: int) -> None:
    """Eight patterns: reconstructed, told apart by encoder and head, and agreed upon."""
    torch.manual_seed(0)
    encoder = EncoderConfig(width=48, depth=2, heads=3, patch=(8, 8, 8), channels=1)
    teacher = TeacherConfig(prototypes=32, head_width=48, bottleneck=16, momentum=0.9, views=views)
    config = PretextConfig(name="smit", mask_ratio=0.5, teacher=teacher)
    made = SMIT(VolumeViT(encoder), config)
    axes = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 24)] * 3, indexing="ij"))
    waves = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    first = torch.sin(4 * torch.einsum("b a, a x y z -> b x y z", waves, axes))[:, None]
    voxels = torch.cat([first, 1.1 * first + 0.1][:views])
    affine = torch.eye(4, dtype=torch.float64).repeat(len(voxels), 1, 1)
    crops = CropBatch(voxels, affine, ("c",) * len(voxels), torch.arange(8).repeat(views))
    optimiser = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=2e-3)

    for step in range(100):
        outcome = made(crops, Moment(step, 100, RandomStream(0, 0)))
        optimiser.zero_grad()
        outcome.loss.backward()
        optimiser.step()
        made.after_update(moment(step, 100))

    logs = {name: value.item() for name, value in outcome.logs.items()}
    assert logs["voxel_loss"] < 0.2, logs  # of 0.45 for the mean
    # What is left is the teacher's own doubt.
    assert logs["whole_loss"] - logs["teacher_entropy"] * math.log(32) < 0.2, logs
    assert logs["token_loss"] - logs["token_entropy"] * math.log(32) < 0.4, logs
    assert logs["spread"] > 0.3, logs
    assert logs["projector_spread"] > 0.5, logs
    assert min(logs["rank"], logs["projector_rank"]) > 4, logs


@pytest.mark.parametrize("kind", ["whole", "padded"])
@torch.no_grad()
def test_bf16_gives_nearly_the_same_loss_in_float32(kind: str) -> None:
    made = task()
    crops = padded(batch()) if kind == "padded" else batch()

    exact = made(crops, moment()).loss
    with torch.autocast("cpu", torch.bfloat16):
        rough = made(crops, moment()).loss

    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.05)


@pytest.mark.parametrize(("views", "class_token"), [(1, False), (2, True)])
def test_the_planner_can_trace_a_step(views: int, class_token: bool) -> None:
    encoder = replace(ENCODER, default_spacing_mm=(1.0, 1.0, 1.0), class_token=class_token)

    traced = trace_step(
        lambda: task(encoder, {"views": views}),
        crops=2, channels=2, crop_size=SIZE, precision="bf16", on_gpu=True,
    )  # fmt: skip

    assert traced.forward_flop > 0


@pytest.mark.parametrize(("views", "overlap"), [(1, 1.0), (2, 0.4)])
def test_the_feed_is_asked_for_the_views_of_the_config(views: int, overlap: float) -> None:
    config = PretextConfig(
        name="smit",
        contrast=ContrastConfig(min_overlap=0.4),
        teacher=replace(TEACHER, views=views),
    )

    needs = SMIT(VolumeViT(ENCODER), config).needs

    assert (needs.views, needs.min_overlap) == (views, overlap)


def test_without_the_final_norm_only_that_norm_does_not_learn() -> None:
    made = task(final_norm=False)

    made(batch(), moment()).loss.backward()

    still = {n for n, p in made.named_parameters() if p.grad is None or not p.grad.any()}
    expected = {n for n, _ in made.named_parameters() if n.startswith("teacher.")}
    assert still - expected == {"encoder.norm.weight", "encoder.norm.bias"}
