"""A segmenter at another patch, against dense matrices, a network made for it, and SciPy."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from mim3d.config.encoder import EncoderConfig
from mim3d.config.task import DecoderConfig
from mim3d.foundation.errors import ConfigError
from mim3d.models.any_spacing import AtPatch, patch_for
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.tokens.grid import TokenGrid

OWN, OTHER = (8, 4, 8), (4, 4, 5)
SIZE = (11, 13, 17)
SPACING_MM = (2.0, 1.0, 1.6)


def network(decoder: str = "light", **fields: object) -> UNETR:
    torch.manual_seed(0)
    config = EncoderConfig(
        width=24, depth=4, heads=2, patch=OWN, positions="rotary_mm", wavelengths_mm=(4.0, 90.0)
    )
    encoder = VolumeViT(replace(config, **fields))  # type: ignore[arg-type]
    made = UNETR(encoder, 3, DecoderConfig(name=decoder, feature_size=4))  # type: ignore[arg-type]
    for parameter in made.parameters():  # biases too: what is 0 hides errors
        torch.nn.init.normal_(parameter, std=0.05)
    return made.eval()


def crop() -> torch.Tensor:
    return torch.randn(2, 1, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("spacing_mm", [0.3, 0.7, 0.95, 1.5, 2.0, 3.0, 40.0])
def test_a_patch_is_the_whole_number_of_voxels_nearest_to_its_millimetres(spacing_mm):
    found = patch_for((8, 4, 16), (1.0, 1.2, 0.5), (spacing_mm, 1.2, spacing_mm))

    def nearest(millimetres: float, side: float) -> int:
        return min(range(1, 60), key=lambda count: abs(count - millimetres / side))

    assert found == (nearest(8.0, spacing_mm), 4, nearest(8.0, spacing_mm))


def test_its_own_patch_changes_no_bit():
    made = network()
    spacing_mm = torch.tensor([SPACING_MM, (1.0, 1.0, 1.0)])

    with torch.no_grad():
        assert torch.equal(AtPatch(made, OWN)(crop(), spacing_mm), made(crop(), spacing_mm))


def interpolated(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Linear between centres of voxels, constant beyond the outer ones: SciPy's own words."""
    places = [
        (np.arange(new) + 0.5) * old / new - 0.5
        for new, old in zip(size, maps.shape[-3:], strict=True)
    ]
    grid = np.meshgrid(*places, indexing="ij")
    flat = maps.reshape(-1, *maps.shape[-3:])
    out = [map_coordinates(one, grid, order=1, mode="nearest") for one in flat]
    return np.stack(out).reshape(*maps.shape[:-3], *size)


def resized(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Means of what each new voxel touches where an axis shrinks, then linear where one grows."""
    for axis, new in zip((-3, -2, -1), size, strict=True):
        old = maps.shape[axis]
        if new < old:
            parts = [
                np.take(maps, range(i * old // new, -(-(i + 1) * old // new)), axis=axis)
                for i in range(new)
            ]
            maps = np.stack([part.mean(axis=axis) for part in parts], axis=axis)
    return interpolated(maps, size)


def halves(old: int, new: int) -> np.ndarray:
    """Linear resize of a line as a matrix, column by column; no axis here shrinks below a half."""
    return np.stack([interpolated(unit.reshape(1, 1, old), (1, 1, new)).ravel()
                     for unit in np.eye(old)], axis=1)  # fmt: skip


@pytest.mark.parametrize("other", [OTHER, (11, 6, 8)])
@pytest.mark.parametrize("decoder", ["light", "hybrid", "unetr"])
def test_logits_are_those_of_a_network_made_for_the_patch_on_the_decoders_own_grid(decoder, other):
    made, spacing_mm = network(decoder), torch.tensor([SPACING_MM]).expand(2, 3)

    # An encoder of the other patch, its kernel by one dense pseudo-inverse over all axes at once.
    dense = reduce(np.kron, [halves(o, n) for o, n in zip(OWN, other, strict=True)])
    weight = made.encoder.embedding.projection.weight.detach().double().numpy()
    state = made.encoder.state_dict()
    state["embedding.projection.weight"] = torch.from_numpy(
        weight @ np.linalg.pinv(dense.T).T
    ).float()
    encoder = VolumeViT(replace(made.encoder.config, patch=other)).eval()
    encoder.load_state_dict(state)

    with torch.no_grad():
        states = encoder(crop(), spacing_mm, taps=made.decoder.taps)
        here = states.grid
        counts = tuple(-(-side // edge) for side, edge in zip(SIZE, other, strict=True))
        assert here.counts == counts
        box = tuple(count * edge for count, edge in zip(counts, OWN, strict=True))
        padded = np.zeros((2, 1, *here.padded), np.float32)
        padded[..., : SIZE[0], : SIZE[1], : SIZE[2]] = crop().numpy()
        fine = torch.from_numpy(resized(padded, box)).float()
        there = TokenGrid.over(box, OWN)
        logits = made.decoder(replace(states, grid=there), fine)
        expected = resized(logits.numpy(), here.padded)[..., : SIZE[0], : SIZE[1], : SIZE[2]]

        found = AtPatch(made, other)(crop(), spacing_mm)

    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)
    assert found.std() > 1e-3


def test_what_stands_in_padding_does_not_matter():
    made, spacing_mm = AtPatch(network("hybrid"), OTHER), torch.tensor([SPACING_MM]).expand(2, 3)
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    valid[1, :, 9:] = False
    voxels = crop()
    other = torch.where(valid[:, None], voxels, torch.nan)

    with torch.no_grad():
        assert torch.equal(made(voxels, spacing_mm, valid), made(other, spacing_mm, valid))


def test_all_weights_but_the_embeddings_kernel_are_shared_and_the_network_stays_as_it_was():
    made = network()
    before = {key: value.clone() for key, value in made.state_dict().items()}

    other = AtPatch(made, OTHER)

    assert made.encoder.patch == OWN
    assert other.encoder.patch == OTHER
    assert all(torch.equal(before[key], value) for key, value in made.state_dict().items())
    ours = dict(made.named_parameters())
    for key, value in other.network.named_parameters():
        is_shared = value.data_ptr() == ours[key].data_ptr()
        assert is_shared == (not key.startswith("encoder.embedding.")), key


def test_a_convolutional_stem_only_knows_its_own_patch():
    made = network(patch=(8, 4, 8), stem="convolutional", stem_width=4)

    AtPatch(made, OWN)
    with pytest.raises(ConfigError, match="only knows the patch it was made for"):
        AtPatch(made, OTHER)
