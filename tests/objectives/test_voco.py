"""VoCo: where windows and base crops lie, how much they share, and its loss from the parts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from view_crops import ENCODER, SIZE, batch, made, moment

from mim3d.foundation.errors import ConfigError
from mim3d.objectives.contrastive_losses import overlap_prediction, repulsion
from mim3d.objectives.voco import BaseGrid

GRID = BaseGrid((2, 3, 1), (5, 4, 7))


def keys(count: int) -> torch.Tensor:
    return moment().keys(batch("voco", range(count)), "window")


def places(size: tuple[int, int, int] = SIZE) -> torch.Tensor:
    """Crops whose voxels hold their own number, `2 1 x y z`."""
    numbers = torch.arange(float(size[0] * size[1] * size[2])).reshape(1, 1, *size)
    return torch.cat([numbers, numbers + 5000])


def test_base_crops_are_the_largest_that_fit() -> None:
    assert BaseGrid.over(SIZE, (2, 3, 1), (4, 4, 2)) == GRID
    assert GRID.n == 6


def test_base_crops_lie_side_by_side_with_z_fastest() -> None:
    voxels = places()
    grid = BaseGrid((2, 3, 2), (5, 4, 3))

    bases = grid.bases(voxels)

    assert bases.shape == (2, 12, 1, 5, 4, 3)
    number = 0
    for x in (0, 5):
        for y in (0, 4, 8):
            for z in (0, 3):
                expected = voxels[:, :, x : x + 5, y : y + 4, z : z + 3]
                assert torch.equal(bases[:, number], expected)
                number += 1


def test_windows_are_the_voxels_from_their_starts() -> None:
    voxels = torch.cat([places(), -places()], dim=1)
    starts = GRID.starts(keys(2), 5)

    windows = GRID.windows(voxels, starts)

    assert windows.shape == (2, 5, 2, 5, 4, 7)
    for crop in range(2):
        for window in range(5):
            x, y, z = starts[crop, window].tolist()
            expected = voxels[crop, :, x : x + 5, y : y + 4, z : z + 7]
            assert torch.equal(windows[crop, window], expected)


def test_overlaps_are_counted_voxels() -> None:
    voxels = places()
    starts = GRID.starts(keys(2), 6)

    overlaps = GRID.overlaps(starts)

    bases, windows = GRID.bases(voxels), GRID.windows(voxels, starts)
    for crop in range(2):
        for window in range(6):
            seen = set(windows[crop, window].flatten().tolist())
            for base in range(6):
                common = len(seen & set(bases[crop, base].flatten().tolist()))
                assert overlaps[crop, window, base].item() == pytest.approx(common / (5 * 4 * 7))
    torch.testing.assert_close(overlaps.sum(dim=2), torch.ones(2, 6))
    assert ((overlaps > 0) & (overlaps < 1)).any()


def test_windows_lie_anywhere_in_the_grid_and_nowhere_else() -> None:
    starts = GRID.starts(keys(2000), 2).flatten(0, 1)

    for axis, last in enumerate((5, 8, 0)):
        counts = torch.bincount(starts[:, axis], minlength=last + 1)
        assert len(counts) == last + 1
        # A fair die: four standard deviations of a count.
        mean = 4000 / (last + 1)
        assert ((counts - mean).abs() < 4 * mean**0.5 + 1e-6).all()


def test_windows_follow_from_the_crop_and_the_step_alone() -> None:
    grid = GRID
    first = grid.starts(keys(4), 3)

    assert torch.equal(grid.starts(keys(6), 3)[:4], first)
    assert torch.equal(grid.starts(keys(4), 5)[:, :3], first)
    later = grid.starts(moment(1).keys(batch("voco"), "window"), 3)
    assert not torch.equal(later, first)


def test_the_loss_is_prediction_and_repulsion_of_boxes_encoded_by_themselves() -> None:
    task, crops = made("voco"), batch("voco", range(2))
    with torch.no_grad():
        for parameter in task.teacher.parameters():
            parameter.mul_(1.1)

    outcome = task(crops, moment())

    def embedded(part: torch.nn.Module, boxes: torch.Tensor, spacing: torch.Tensor) -> torch.Tensor:
        rows = [part.encoder(box[None], spacing).tokens.mean(dim=1) for box in boxes]
        return torch.cat([part.projector(row) for row in rows])

    starts = GRID.starts(moment().keys(crops, "window"), 3)
    windows, bases = GRID.windows(crops.voxels, starts), GRID.bases(crops.voxels)
    likeness, ours = [], []
    for i in range(2):
        spacing = crops.spacing_mm[i : i + 1]
        window, base = (embedded(task, boxes[i], spacing) for boxes in (windows, bases))
        taught = embedded(task.teacher.module, bases[i], spacing)
        likeness.append(F.cosine_similarity(window[:, None], taught[None], dim=2).clamp_min(0))
        ours.append(base)
    overlap = GRID.overlaps(starts)
    prediction = overlap_prediction(torch.stack(likeness), overlap)
    apart = repulsion(torch.stack(ours))
    torch.testing.assert_close(outcome.loss, prediction + apart, rtol=1e-4, atol=1e-5)
    assert outcome.logs["prediction"].item() == pytest.approx(prediction.item(), rel=1e-4)
    error = (torch.stack(likeness) - overlap).abs().mean().item()
    assert outcome.logs["overlap_error"].item() == pytest.approx(error, rel=1e-4)


def test_boxes_in_padding_alone_do_not_count() -> None:
    """Where a base crop is padding, the loss is that of the others, whatever it would answer."""
    task, crops = made("voco", base_crops=(2, 1, 1)), batch("voco", range(2))
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    valid[0, 5:] = False

    outcome = task(replace(crops, valid=valid), moment())
    outcome.loss.backward()
    whole = task(replace(crops, valid=torch.ones_like(valid)), moment())

    # The first crop has one base crop left, hence no pair: the mean is half of the second's.
    alone = replace(
        crops, voxels=crops.voxels[1:], affine=crops.affine[1:], case_ids=("b",),
        crop_ids=crops.crop_ids[1:],
    )  # fmt: skip
    second = task(alone, moment())
    assert outcome.logs["repulsion"].item() == pytest.approx(
        second.logs["repulsion"].item() / 2, rel=1e-4
    )
    assert whole.logs["repulsion"] > outcome.logs["repulsion"]
    assert all(p.grad.isfinite().all() for p in task.parameters() if p.grad is not None)


def opposite(**contrast: Any) -> Any:
    """A task whose teacher answers everything with the opposite of what its student does."""
    task = made("voco", **contrast)
    with torch.no_grad():
        for projector, sign in ((task.projector, 1), (task.teacher.module.projector, -1)):
            projector.layers[-1].weight.zero_()
            projector.layers[-1].bias.fill_(sign)
    return task


def test_a_base_crop_that_looks_opposite_is_one_that_is_not_overlapped() -> None:
    outcome = opposite()(batch("voco", range(2)), moment())

    # Cosines of -1 count as 0, and the shares of a window in 6 base crops sum to 1.
    assert outcome.logs["overlap_error"].item() == pytest.approx(1 / 6)


def test_windows_and_base_crops_in_padding_alone_are_not_predicted() -> None:
    crops = batch("voco", range(2))
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    valid[:, 2:] = False
    starts = BaseGrid((2, 1, 1), (5, 13, 7)).starts(moment().keys(crops, "window"), 12)

    outcome = opposite(base_crops=(2, 1, 1), windows=12)(replace(crops, valid=valid), moment())

    # Layers 0 and 1 along x are seen: by the first base crop, and by windows from there.
    shares = [[1 - x / 5 for x in row if x < 2] for row in starts[..., 0].tolist()]
    found = [sum(-y * math.log(1 - y + 1e-6) for y in row) / sum(row) for row in shares]
    assert outcome.logs["prediction"].item() == pytest.approx(sum(found) / 2, rel=1e-5)
    counted = shares[0] + shares[1]
    assert outcome.logs["overlap_error"].item() == pytest.approx(sum(counted) / len(counted))


def test_the_feed_is_asked_for_one_view() -> None:
    assert made("voco").needs.views == 1


@pytest.mark.parametrize(
    ("contrast", "words"),
    [
        ({"base_crops": (1, 1, 1)}, "at least two"),
        ({"base_crops": (0, 2, 2)}, "at least two"),
        ({"base_crops": (4, 1, 1)}, "less than a patch"),
        ({"windows": 0}, "windows"),
    ],
)
def test_what_cannot_be_divided_is_refused(contrast: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        made("voco", ENCODER, **contrast)(batch("voco"), moment())
