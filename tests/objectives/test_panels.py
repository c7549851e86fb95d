"""The arrays of a reconstruction panel, token by token."""

from __future__ import annotations

import torch

from mim3d.objectives.panels import reconstruction
from mim3d.tokens.patches import pad_to_patches


def test_predictions_land_on_their_masked_tokens_and_nowhere_else() -> None:
    voxels = torch.arange(1.0, 1 + 2 * 5 * 4 * 3).reshape(1, 2, 5, 4, 3)
    crop = pad_to_patches(voxels, None, (2, 2, 3))  # tokens 3 x 2 x 1, patches of 24 numbers
    masked = torch.tensor([[False, True, False, False, False, True]])
    index = torch.tensor([[1, 5]])
    predicted = torch.stack([torch.full((24,), -1.0), torch.full((24,), -2.0)])[None]

    panel = reconstruction(crop, masked, index, predicted, torch.ones(1, 3))

    expected = voxels.clone()
    expected[:, :, 0:2, 2:4] = -1  # token 1 lies at (0, 1, 0)
    expected[:, :, 4:5, 2:4] = -2  # token 5 at (2, 1, 0), half of it padding
    assert torch.equal(panel["reconstructed"], expected)
    assert torch.equal(panel["original"], voxels)
    assert torch.equal(panel["mask"], (expected < 0)[:, 0])
    assert torch.equal(panel["masked"], voxels * (expected > 0))


def test_the_filling_of_a_shorter_sample_is_shown_nowhere() -> None:
    voxels = torch.ones(2, 1, 4, 2, 2)
    crop = pad_to_patches(voxels, None, (2, 2, 2))
    masked = torch.tensor([[True, False], [False, False]])
    index = torch.tensor([[0], [2]])

    panel = reconstruction(crop, masked, index, torch.full((2, 1, 8), 9.0), torch.ones(2, 3))

    assert panel["reconstructed"][0].flatten().tolist() == [9.0] * 8 + [1.0] * 8
    assert (panel["reconstructed"][1] == 1).all()


def test_padding_is_blank() -> None:
    valid = torch.ones(1, 4, 2, 2, dtype=torch.bool)
    valid[:, :, 1] = False
    crop = pad_to_patches(torch.ones(1, 1, 4, 2, 2), valid, (2, 2, 2))
    masked = torch.tensor([[True, False]])

    panel = reconstruction(
        crop, masked, torch.tensor([[0]]), torch.full((1, 1, 8), 9.0), torch.ones(1, 3)
    )

    assert (panel["reconstructed"][:, :, :, 1] == 0).all()
    assert (panel["reconstructed"][0, 0, :2, 0] == 9).all()
    assert not panel["mask"][:, :, 1].any()
