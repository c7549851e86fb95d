"""Kernels, heads and tables at another patch, against dense matrices and torch's interpolation."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mim3d.foundation.errors import ShapeError
from mim3d.models.resize import resized_head, resized_kernel, resized_table
from mim3d.tokens.grid import TokenGrid, Triple
from mim3d.tokens.positions import Positions

CHANNELS, WIDTH = 2, 5


def matrix(old: int, new: int) -> Tensor:
    """B by torch's own interpolation of unit vectors, halved at most in one step."""
    rows = torch.eye(old, dtype=torch.float64)[None]  # 1, input, place
    while new < rows.shape[-1] / 2:
        rows = F.interpolate(rows, size=-(-rows.shape[-1] // 2), mode="linear")
    return F.interpolate(rows, size=new, mode="linear")[0].T.clone(
        memory_format=torch.contiguous_format
    )


def dense(old: Triple, new: Triple) -> Tensor:
    """B over three axes and channels, written out."""
    whole = torch.eye(CHANNELS, dtype=torch.float64)
    for one, other in zip(old, new, strict=True):
        whole = torch.kron(whole, matrix(one, other))
    return whole


def kernel(patch: Triple) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    count = CHANNELS * patch[0] * patch[1] * patch[2]
    return torch.randn(WIDTH, count, generator=generator, dtype=torch.float64)


PAIRS = [
    ((4, 3, 2), (8, 6, 5)),
    ((8, 6, 4), (4, 3, 2)),
    ((4, 4, 4), (8, 8, 2)),
    ((8, 2, 4), (2, 3, 4)),
    ((2, 2, 1), (3, 1, 4)),
]


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_a_kernel_is_the_pseudo_inverse_of_the_dense_matrix(old: Triple, new: Triple) -> None:
    weight = kernel(old)

    made = resized_kernel(weight, old, new, CHANNELS)

    expected = weight @ torch.linalg.pinv(dense(old, new))
    torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("old", "new"), [pair for pair in PAIRS if min(
    b - a for a, b in zip(*pair, strict=True)) >= 0])  # fmt: skip
def test_where_no_axis_shrinks_resized_patches_give_old_tokens(old: Triple, new: Triple) -> None:
    """The property of FlexiViT: <w', B x> = <w, x> for every patch x."""
    weight, patches = kernel(old), kernel(old) + 3.0
    boxes = patches.reshape(WIDTH, CHANNELS, *old)

    made = resized_kernel(weight, old, new, CHANNELS)

    resized = F.interpolate(boxes, size=new, mode="trilinear", align_corners=False).flatten(1)
    torch.testing.assert_close(resized @ made.T, patches @ weight.T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("new", [(4, 3, 2), (2, 3, 8)])
def test_where_axes_shrink_no_other_kernel_is_nearer(new: Triple) -> None:
    """Least squares over white noise: the gradient of |B^T w' - w|^2 vanishes."""
    old = (8, 6, 4)
    weight = kernel(old)

    made = resized_kernel(weight, old, new, CHANNELS)

    whole = dense(old, new)
    slope = (made @ whole - weight) @ whole.T
    assert float(slope.abs().max()) < 1e-9


@pytest.mark.parametrize("new", [(4, 4, 4), (8, 8, 2), (2, 2, 2), (32, 16, 64)])
def test_a_kernel_that_sums_keeps_its_answer_to_an_even_patch(new: Triple) -> None:
    """A step from 16 to 4 that skipped voxels would halve it for each axis."""
    old = (16, 16, 16)
    weight = torch.ones(1, 16**3, dtype=torch.float64)

    made = resized_kernel(weight, old, new, 1)

    torch.testing.assert_close(float(made.sum()), float(weight.sum()), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("half", [(8, 8, 8), (16, 8, 16), (4, 16, 16)])
def test_a_kernel_that_shrinks_by_whole_numbers_is_the_sum_of_its_blocks(half: Triple) -> None:
    old = (16, 16, 16)
    weight = kernel(old)
    x, y, z = half

    made = resized_kernel(weight, old, half, CHANNELS)

    blocks = weight.reshape(WIDTH, CHANNELS, x, 16 // x, y, 16 // y, z, 16 // z)
    torch.testing.assert_close(made, blocks.sum(dim=(3, 5, 7)).flatten(1), rtol=1e-9, atol=1e-9)


def test_growing_and_shrinking_by_two_is_nearly_the_way_back() -> None:
    """Not exactly: the smallest kernel that serves is smoother than what it serves."""
    weight = kernel((4, 4, 2))

    there = resized_kernel(weight, (4, 4, 2), (8, 8, 4), CHANNELS)
    back = resized_kernel(there, (8, 8, 4), (4, 4, 2), CHANNELS)

    both = torch.stack([back.flatten(), weight.flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.9


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_a_head_predicts_the_old_patch_resized(old: Triple, new: Triple) -> None:
    weight, bias = kernel(old).T.contiguous(), kernel(old)[1]
    tokens = kernel((3, 1, 1))[:, :WIDTH]

    made, moved = resized_head(weight, bias, old, new, CHANNELS)

    before = F.linear(tokens, weight, bias)
    torch.testing.assert_close(F.linear(tokens, made, moved), before @ dense(old, new).T)


def test_nothing_happens_where_the_patch_stays() -> None:
    weight, bias = kernel((4, 3, 2)), kernel((4, 3, 2))[0]

    assert resized_kernel(weight, (4, 3, 2), (4, 3, 2), CHANNELS) is weight
    assert resized_head(weight.T, bias, (4, 3, 2), (4, 3, 2), CHANNELS)[1] is bias


def test_gradients_reach_the_stored_weights() -> None:
    old, new = (4, 3, 2), (2, 5, 2)
    weight = kernel(old).requires_grad_()
    head, bias = kernel(old).T.clone().requires_grad_(), kernel(old)[0].clone().requires_grad_()

    assert torch.autograd.gradcheck(lambda w: resized_kernel(w, old, new, CHANNELS), weight)
    assert torch.autograd.gradcheck(
        lambda w, b: resized_head(w, b, old, new, CHANNELS), (head, bias)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_rounded_once_to_the_weights_type(dtype: torch.dtype) -> None:
    old, new = (4, 3, 2), (6, 2, 4)
    weight = kernel(old).to(dtype)

    with torch.autocast("cpu", torch.bfloat16):
        made = resized_kernel(weight, old, new, CHANNELS)

    exact = resized_kernel(weight.double(), old, new, CHANNELS)
    assert made.dtype == dtype
    assert torch.equal(made, exact.to(dtype))


def test_every_growth_of_a_line_is_well_conditioned() -> None:
    """Otherwise pseudo-inverses of different libraries and machines would differ."""
    for old, more in itertools.product(range(1, 17), range(17)):
        values = torch.linalg.svdvals(matrix(old, old + more))
        assert float(values[-1] / values[0]) > 0.05


def test_a_table_on_another_grid_is_what_positions_take_from_it_there() -> None:
    old, new = (7, 3, 2), (3, 2, 5)
    positions = Positions("learned", 6, 1, learned_grid=old)
    assert positions.table is not None
    grid = TokenGrid.over((12, 8, 20), (4, 4, 4))
    assert grid.counts == new
    coordinates = positions.coordinates(grid, None, None, torch.device("cpu"))

    made = resized_table(positions.table, old, new)

    torch.testing.assert_close(made, positions.added(coordinates, grid), rtol=1e-5, atol=1e-6)


def test_weights_of_another_size_are_refused() -> None:
    with pytest.raises(ShapeError, match="resized_kernel"):
        resized_kernel(torch.zeros(5, 47), (4, 3, 2), (2, 2, 2), CHANNELS)
    with pytest.raises(ShapeError, match="resized_head"):
        resized_head(torch.zeros(48, 5), torch.zeros(47), (4, 3, 2), (2, 2, 2), CHANNELS)
    with pytest.raises(ShapeError, match="resized_table"):
        resized_table(torch.zeros(1, 23, 5), (4, 3, 2), (2, 2, 2))
