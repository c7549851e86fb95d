"""The terms of SMIT's loss, each written out slowly."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from smit_tasks import SIZE, batch, moment, padded, stirred, task, with_air
from torch import Tensor

from mim3d.config.objective import PretextConfig
from mim3d.data.batch import CropBatch
from mim3d.models.encoder_input import Replacement
from mim3d.models.hidden_states import HiddenStates
from mim3d.objectives.prototypes import Centre
from mim3d.objectives.simmim import SimMIM
from mim3d.objectives.smit import SMIT
from mim3d.tokens.grid import TokenGrid
from mim3d.tokens.masking import is_masked


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


def test_the_mean_predictor_is_the_loss_of_a_network_that_has_learnt_nothing() -> None:
    made, crops = task(), batch()

    logs = made(crops, moment()).logs

    simmim = SimMIM(made.encoder, PretextConfig(name="simmim"))
    question = made.question(crops, moment())
    nothing = torch.zeros_like(question.target.values)
    voxels = simmim.judged(nothing, question, crops, moment())
    expected = voxels.logs["mean_predictor"].item() + 0.2 * math.log(16)
    assert logs["mean_predictor"].item() == pytest.approx(expected)
