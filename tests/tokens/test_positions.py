"""Positions against written-out formulas, MONAI's table and rotation matrices."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from monai.networks.blocks.pos_embed_utils import build_sincos_position_embedding

from mim3d.foundation.errors import ConfigError, UserError
from mim3d.tokens.grid import TokenGrid, ValidBox
from mim3d.tokens.positions import Positions, frequencies_index, frequencies_mm, rotate, sincos

GRID = TokenGrid.over((11, 13, 7), (4, 4, 2))
CPU = torch.device("cpu")


def test_wavelengths_in_mm_go_geometrically_from_the_shortest_to_the_longest() -> None:
    wavelengths = 2 * math.pi / frequencies_mm(5, (8.0, 800.0))

    expected = torch.tensor([8.0, 8 * 10**0.5, 80.0, 80 * 10**0.5, 800.0])
    torch.testing.assert_close(wavelengths, expected)


def test_sine_cosine_is_the_written_out_formula_with_zeros_behind() -> None:
    coordinates = torch.tensor([[[1.5, -2.0, 7.25]]])
    frequencies = frequencies_mm(3, (8.0, 100.0))

    row = sincos(coordinates, frequencies, 20)[0, 0].tolist()

    expected = []
    for place in (1.5, -2.0, 7.25):
        expected += [math.sin(place * f) for f in frequencies.tolist()]
        expected += [math.cos(place * f) for f in frequencies.tolist()]
    assert row == pytest.approx([*expected, 0.0, 0.0], abs=1e-6)


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # MONAI 1.6 leaves `indexing` out
def test_positions_by_index_equal_monais_table() -> None:
    theirs = build_sincos_position_embedding([3, 4, 4], 36, 3)[0]
    positions = Positions("sincos_index", 36, 4)

    coordinates = positions.coordinates(GRID, None, None, CPU)
    ours = positions.added(coordinates, GRID)

    # MONAI writes the second axis first; six frequencies of sine and cosine an axis.
    y, x, z = theirs.split(12, dim=1)
    assert ours is not None
    torch.testing.assert_close(ours[0], torch.cat([x, y, z], dim=1), atol=1e-6, rtol=0)


def test_the_configs_wavelengths_are_used() -> None:
    positions = Positions("sincos_mm", 18, 1, wavelengths_mm=(5.0, 320.0))

    wavelengths = 2 * math.pi / positions.frequencies
    torch.testing.assert_close(wavelengths, torch.tensor([5.0, 40.0, 320.0]))


def test_frequencies_by_index_are_those_of_the_3d_mae() -> None:
    torch.testing.assert_close(frequencies_index(4), torch.tensor([1.0, 0.1, 0.01, 0.001]))


def test_rotary_positions_turn_each_pair_by_its_angle() -> None:
    positions = Positions("rotary_mm", 40, 2, wavelengths_mm=(5.0, 50.0))  # heads of 20: 9 pairs
    spacing = torch.tensor([[0.5, 1.0, 3.0]])
    coordinates = positions.coordinates(GRID, spacing, None, CPU)
    rotation = positions.rotation(coordinates, None, prefix=0)
    heads = torch.randn(1, 2, GRID.n, 20, generator=torch.Generator().manual_seed(0))

    assert rotation is not None
    turned = rotate(heads, rotation)

    for token in (0, 17, 47):
        angles = [c * f for c in coordinates[0, token] for f in positions.frequencies]
        for pair, angle in enumerate(angles):
            one, other = heads[0, 1, token, pair], heads[0, 1, token, 9 + pair]
            first = one * math.cos(angle) - other * math.sin(angle)
            second = one * math.sin(angle) + other * math.cos(angle)
            torch.testing.assert_close(turned[0, 1, token, pair], first, atol=1e-5, rtol=0)
            torch.testing.assert_close(turned[0, 1, token, 9 + pair], second, atol=1e-5, rtol=0)
    assert torch.equal(turned[..., 18:], heads[..., 18:]), "the channels left over stay"


def test_rotary_scores_depend_on_differences_of_place_alone() -> None:
    positions = Positions("rotary_mm", 18, 1)
    here = torch.tensor([[[1.0, -4.0, 2.5], [6.0, 3.0, -7.0]]])
    query, key = torch.randn(2, 1, 1, 1, 18, generator=torch.Generator().manual_seed(0))

    def score(places: torch.Tensor) -> torch.Tensor:
        rotation = positions.rotation(places, None, prefix=0)
        assert rotation is not None
        both = rotate(torch.cat([query, key], dim=2), rotation)[0, 0]
        return both[0] @ both[1]

    moved = here + torch.tensor([11.0, -5.0, 3.0])
    torch.testing.assert_close(score(moved), score(here), atol=1e-4, rtol=0)


@pytest.mark.parametrize("is_padded", [False, True])
def test_rotary_positions_by_index_are_voxels_from_the_centre_of_what_is_valid(
    is_padded: bool,
) -> None:
    positions = Positions("rotary_index", 36, 2, wavelengths_mm=(5.0, 50.0))
    box = ValidBox(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[11.0, 12.0, 6.0]]))
    size = [9.0, 12.0, 5.0] if is_padded else [11.0, 13.0, 7.0]
    start = [2.0, 0.0, 1.0] if is_padded else [0.0, 0.0, 0.0]

    found = positions.coordinates(
        GRID, torch.tensor([[0.5, 1.0, 3.0]]), box if is_padded else None, CPU
    )

    # Token (i, j, k) of patches 4 x 4 x 2 has its centre at (4 i + 2, 4 j + 2, 2 k + 1).
    places = [(4 * i + 2, 4 * j + 2, 2 * k + 1)
              for i in range(3) for j in range(4) for k in range(4)]  # fmt: skip
    expected = [[c - s - n / 2 for c, s, n in zip(place, start, size, strict=True)]
                for place in places]  # fmt: skip
    assert torch.equal(found, torch.tensor([expected]))
    assert not positions.in_mm


def test_rotary_positions_by_index_turn_as_those_of_1_mm_do() -> None:
    by_mm, by_index = (
        Positions(kind, 36, 2, wavelengths_mm=(5.0, 50.0)) for kind in ("rotary_mm", "rotary_index")
    )
    index = torch.tensor([[0, 7, 47], [3, 4, 5]])

    mm = by_mm.rotation(by_mm.coordinates(GRID, torch.ones(2, 3), None, CPU), index, prefix=1)
    voxels = by_index.rotation(by_index.coordinates(GRID, None, None, CPU), index, prefix=1)

    assert mm is not None
    assert voxels is not None
    assert torch.equal(mm.cos, voxels.cos)
    assert torch.equal(mm.sin, voxels.sin)
    assert by_index.added(by_index.coordinates(GRID, None, None, CPU), GRID) is None


def test_prefix_tokens_are_not_turned() -> None:
    positions = Positions("rotary_mm", 18, 1)

    rotation = positions.rotation(torch.full((1, 3, 3), 5.0), None, prefix=2)

    assert rotation is not None
    assert (rotation.cos[:, :2] == 1).all()
    assert (rotation.sin[:, :2] == 0).all()
    assert (rotation.sin[:, 2:] != 0).all()


def test_a_learned_table_is_added_as_it_is_on_its_own_grid() -> None:
    positions = Positions("learned", 6, 1, learned_grid=(3, 4, 4))

    added = positions.added(positions.coordinates(GRID, None, None, CPU), GRID)

    assert added is positions.table


@pytest.mark.parametrize("size", [(22, 13, 7), (3, 4, 1), (40, 30, 20)])
def test_a_learned_table_is_interpolated_trilinearly_on_other_grids(
    size: tuple[int, int, int],
) -> None:
    positions = Positions("learned", 6, 1, learned_grid=(3, 4, 4))
    grid = TokenGrid.over(size, (4, 4, 2))

    added = positions.added(positions.coordinates(grid, None, None, CPU), grid)

    assert positions.table is not None
    cells = positions.table.reshape(1, 3, 4, 4, 6).permute(0, 4, 1, 2, 3)
    oracle = F.interpolate(cells, grid.counts, mode="trilinear", align_corners=False)
    torch.testing.assert_close(added, oracle.flatten(2).transpose(1, 2), atol=1e-6, rtol=1e-4)


KINDS = ["sincos_index", "sincos_mm", "rotary_mm", "rotary_index", "learned"]


@pytest.mark.parametrize("kind", KINDS)
def test_coordinates_follow_the_valid_box(kind: str) -> None:
    positions = Positions(kind, 12, 1, learned_grid=(3, 4, 4))
    spacing = torch.tensor([[0.5, 1.0, 3.0]])
    alone = positions.coordinates(TokenGrid.over((7, 9, 5), (4, 4, 2)), spacing, None, CPU)
    box = ValidBox(torch.tensor([[4.0, 0.0, 2.0]]), torch.tensor([[11.0, 9.0, 7.0]]))

    padded = positions.coordinates(GRID, spacing, box, CPU)

    there = padded.reshape(3, 4, 4, 3)[1:, :3, 1:].reshape(-1, 3)
    torch.testing.assert_close(there, alone[0])


def test_positions_in_mm_without_spacing_are_an_error() -> None:
    positions = Positions("sincos_mm", 12, 1)

    with pytest.raises(UserError, match="spacing"):
        positions.coordinates(GRID, None, None, CPU)


def test_a_learned_table_needs_a_grid() -> None:
    with pytest.raises(ConfigError, match="grid"):
        Positions("learned", 12, 1)


def test_too_narrow_heads_are_refused() -> None:
    with pytest.raises(ConfigError, match="6 channels"):
        Positions("rotary_mm", 16, 4)
