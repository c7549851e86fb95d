"""Crops without the padding around them, against boxes found voxel by voxel."""

from __future__ import annotations

from dataclasses import replace

import torch

from mim3d.data.batch import CropBatch
from mim3d.objectives.trimming import trimmed

SIZE = (11, 13, 7)
BOXES = (((2, 9), (1, 12), (3, 6)), ((0, 11), (0, 13), (0, 7)), ((4, 11), (2, 13), (0, 3)))
"""Of three crops; the first and the last have boxes of one size."""
AFFINE = torch.tensor(
    [[0.0, -0.7, 0.0, 5.0], [0.5, 0.0, 0.3, -2.0], [0.0, 0.1, 3.0, 7.0], [0.0, 0.0, 0.0, 1.0]],
    dtype=torch.float64,
)


def batch() -> CropBatch:
    """Voxels that tell their place in the volume, in millimetres; labels that tell it too."""
    places = torch.stack(torch.meshgrid(*map(torch.arange, SIZE), indexing="ij")).double()
    mm = torch.einsum("ij,jxyz->ixyz", AFFINE[:3, :3], places) + AFFINE[:3, 3, None, None, None]
    valid = torch.zeros(3, *SIZE, dtype=torch.bool)
    for row, ((a, b), (c, d), (e, f)) in enumerate(BOXES):
        valid[row, a:b, c:d, e:f] = True
    number = torch.arange(3)[:, None, None, None]
    return CropBatch(
        mm.float().repeat(3, 1, 1, 1, 1),
        AFFINE.repeat(3, 1, 1),
        ("a", "b", "c"),
        torch.tensor([7, 4, 9]),
        labels=(places.sum(0).long() + number).to(torch.uint8),
        valid=valid,
        targets=torch.tensor([[1.0], [2.0], [3.0]]),
        air=torch.tensor([[-1.0] * 3, [-2.0] * 3, [-3.0] * 3]),
    )


def test_crops_are_cut_to_their_boxes_and_those_of_one_size_stay_together() -> None:
    first, second = trimmed(batch())

    assert first.case_ids == ("a", "c")
    assert first.crop_ids.tolist() == [7, 9]
    assert first.voxels.shape == (2, 3, 7, 11, 3)
    assert second.case_ids == ("b",)
    assert second.voxels.shape == (1, 3, *SIZE)
    assert first.valid is None
    assert second.valid is None
    assert first.targets is not None
    assert first.targets.tolist() == [[1.0], [3.0]]
    assert first.air is not None
    assert first.air[1].tolist() == [-3.0] * 3


def test_the_affine_still_says_where_each_voxel_lies() -> None:
    """Seen to fail with the corner added without the directions of the axes."""
    for part in trimmed(batch()):
        for row in range(len(part.case_ids)):
            for place in [(0, 0, 0), (3, 5, 1), (6, 10, 2)]:
                at = part.affine[row] @ torch.tensor([*place, 1.0], dtype=torch.float64)
                torch.testing.assert_close(
                    part.voxels[(row, slice(None), *place)], at[:3].float(), atol=1e-5, rtol=0
                )


def test_labels_are_cut_with_the_voxels() -> None:
    whole = batch()
    first, _ = trimmed(whole)

    (a, b), (c, d), (e, f) = BOXES[2]
    assert whole.labels is not None
    assert first.labels is not None
    assert torch.equal(first.labels[1], whole.labels[2, a:b, c:d, e:f])


def test_padding_inside_of_a_box_is_still_known() -> None:
    whole = batch()
    assert whole.valid is not None
    whole.valid[0, 2, 1, 3] = False  # a corner, as of a rotated volume

    parts = trimmed(whole)

    assert [part.case_ids for part in parts] == [("a",), ("b",), ("c",)]
    assert parts[0].valid is not None
    assert parts[0].voxels.shape[2:] == (7, 11, 3)
    assert (~parts[0].valid[0]).nonzero().tolist() == [[0, 0, 0]]
    assert parts[2].valid is None


def test_crops_without_padding_are_left_alone_and_so_is_one_of_nothing_else() -> None:
    plain = replace(batch(), valid=None)
    assert trimmed(plain) == (plain,)

    nothing = replace(batch(), valid=torch.zeros(3, *SIZE, dtype=torch.bool))
    (part,) = trimmed(nothing)
    assert part.voxels.shape[2:] == SIZE
    assert part.valid is not None
    assert not bool(part.valid.any())
