"""The encoder with patches of another size than its weights are kept for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.foundation.errors import ConfigError, ShapeError
from mim3d.models.encoder_input import Crops
from mim3d.models.vit import VolumeViT
from mim3d.tokens.grid import Triple
from mim3d.tokens.masking import split_tokens
from mim3d.tokens.patches import cut_crop

PATCH = (4, 4, 2)
OTHERS = [(8, 4, 4), (2, 4, 4), (4, 6, 3), (4, 8, 1)]
CONFIG = EncoderConfig(
    width=24, depth=2, heads=2, patch=PATCH, channels=2, learned_grid=(3, 4, 4),
    default_spacing_mm=(1.0, 2.0, 0.5),
)  # fmt: skip
KINDS = ["learned", "sincos_index", "sincos_mm", "rotary_mm", "rotary_index"]


def encoder(**fields: object) -> VolumeViT:
    torch.manual_seed(0)
    return VolumeViT(replace(CONFIG, **fields)).eval()  # type: ignore[arg-type]


def crop(size: Triple = (11, 13, 7), batch: int = 2) -> Tensor:
    return torch.randn(batch, 2, *size, generator=torch.Generator().manual_seed(1))


def interpolation(old: Triple, new: Triple) -> Tensor:
    """B, from every voxel of an old patch to those of a new one, by torch's own interpolation."""
    count = old[0] * old[1] * old[2]
    units = torch.eye(count, dtype=torch.float64).reshape(count, 1, *old)
    rows = F.interpolate(units, new, mode="trilinear", align_corners=False)
    return rows.reshape(count, -1).T


def with_kernel_of(network: VolumeViT, patch: Triple) -> VolumeViT:
    """An encoder made for another patch, its kernel by a dense pseudo-inverse of each channel."""
    made = encoder(patch=patch)
    state = network.state_dict()
    inverse = torch.linalg.pinv(interpolation(PATCH, patch).T)
    kernels = state["embedding.projection.weight"].double().chunk(2, dim=1)
    state["embedding.projection.weight"] = torch.cat([k @ inverse.T for k in kernels], 1).float()
    made.load_state_dict(state, strict=True)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_its_own_patch_named_is_bit_equal_to_none(kind: str) -> None:
    network, voxels = encoder(positions=kind), crop()

    assert torch.equal(network(voxels, patch=PATCH).tokens, network(voxels).tokens)


@pytest.mark.parametrize("patch", OTHERS)
def test_another_patch_is_the_encoder_made_for_it_with_the_pseudo_inverse_kernel(
    patch: Triple,
) -> None:
    """Seen to fail with the kernel interpolated in place of the pseudo-inverse."""
    network, voxels = encoder(), crop()
    oracle = with_kernel_of(network, patch)

    states, expected = network(voxels, patch=patch), oracle(voxels)

    assert states.grid == expected.grid
    assert torch.equal(states.coordinates, expected.coordinates)
    torch.testing.assert_close(states.tokens, expected.tokens, atol=2e-5, rtol=1e-4)


def test_a_larger_patch_that_shows_the_same_gives_the_token_of_the_smaller() -> None:
    """<w', B x> = <w, x> where no axis shrinks: the defining property, seen through the encoder."""
    network, small = encoder(), crop((4, 4, 2))
    large = F.interpolate(small, (8, 12, 3), mode="trilinear", align_corners=False)
    spacing = torch.tensor([1.0, 2.0, 0.5])

    # One patch each, whose centre lies at 0 in both.
    token = network(small, spacing).tokens
    found = network(large, spacing, patch=(8, 12, 3)).tokens

    torch.testing.assert_close(found, token, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("patch", OTHERS)
def test_every_kind_of_positions_takes_every_patch(kind: str, patch: Triple) -> None:
    network = encoder(positions=kind)

    states = network(crop(), patch=patch)

    assert states.tokens.shape[1] == states.grid.n
    assert states.grid.patch == patch
    assert bool(states.tokens.isfinite().all())


def test_gradients_reach_the_stored_kernel() -> None:
    network = encoder()

    network(crop(), patch=(2, 8, 2)).tokens.square().sum().backward()

    gradient = network.embedding.projection.weight.grad
    assert gradient is not None
    assert gradient.shape == (24, 2 * 4 * 4 * 2)
    assert (gradient.abs().amax(dim=0) > 0).all()


@pytest.mark.parametrize("patch", OTHERS)
def test_what_is_masked_is_not_seen_bit_for_bit(patch: Triple) -> None:
    network, voxels = encoder(), crop()
    grid = cut_crop(voxels, None, patch).crop.grid
    scores = torch.rand(2, grid.n, generator=torch.Generator().manual_seed(2))
    split = split_tokens(scores, grid.n // 2)
    other = voxels.clone()
    for i in range(2):
        for token in split.masked[i].tolist():
            x, y, z = (
                int(at) * edge for at, edge in zip(grid.indices()[token], patch, strict=True)
            )
            other[i, :, x : x + patch[0], y : y + patch[1], z : z + patch[2]] = 77.0

    before = network(voxels, split=split, patch=patch).tokens
    after = network(other, split=split, patch=patch).tokens

    assert not torch.equal(other, voxels)
    assert torch.equal(after, before)


@pytest.mark.parametrize("patch", OTHERS)
def test_padding_does_not_matter(patch: Triple) -> None:
    network, voxels = encoder(), crop()
    grid = cut_crop(voxels, None, patch).crop.grid
    around = torch.full((2, 2, 16, 16, 12), 99.0)
    around[:, :, :11, :13, :7] = voxels
    valid = torch.zeros(2, 16, 16, 12, dtype=torch.bool)
    valid[:, :11, :13, :7] = True

    alone = network(voxels, patch=patch).tokens
    padded = network(around, valid=valid, patch=patch)

    assert padded.token_valid is not None
    kept = padded.tokens[padded.token_valid].reshape(2, grid.n, 24)
    torch.testing.assert_close(kept, alone, atol=2e-5, rtol=1e-4)


def test_groups_of_a_pack_may_have_patches_of_their_own() -> None:
    network, voxels = encoder(), crop()
    cuts = [cut_crop(voxels, None, patch) for patch in ((8, 4, 4), PATCH)]

    packed = network.forward_packed([Crops(voxels, cut=cut) for cut in cuts])

    for states, patch in zip(packed, ((8, 4, 4), PATCH), strict=True):
        expected = network(voxels, patch=patch)
        assert states.grid == expected.grid
        torch.testing.assert_close(states.tokens, expected.tokens, atol=2e-5, rtol=1e-4)


def test_contrasts_of_their_own_are_resized_each() -> None:
    network = encoder(embedding="per_contrast", contrasts=("t1", "t2"))
    voxels, present = crop(), torch.tensor([[True, False], [True, True]])
    other = voxels.clone()
    other[0, 1] = torch.nan

    whole = network(voxels, present=present, patch=(8, 4, 4)).tokens
    blind = network(other, present=present, patch=(8, 4, 4)).tokens

    assert torch.equal(whole, blind)
    assert whole.shape[1] == 2 * 4 * 2


def test_a_patch_beside_voxels_cut_into_another_is_refused() -> None:
    network, voxels = encoder(), crop()

    with pytest.raises(ShapeError, match="patches"):
        network(voxels, cut=cut_crop(voxels, None, PATCH), patch=(8, 4, 4))


@pytest.mark.parametrize("is_masked", [False, True])
def test_a_convolutional_stem_refuses_another_patch(is_masked: bool) -> None:
    network = encoder(stem="convolutional", stem_width=4)
    voxels, patch = crop(), (8, 4, 4)
    split = split_tokens(torch.rand(2, 16), 8) if is_masked else None

    with pytest.raises(ConfigError, match="encoder.stem convolutional"):
        network(voxels, split=split, patch=patch)


def test_what_is_planned_without_content_leaves_nothing_behind() -> None:
    """Matrices are kept; kept from a pass on fake tensors, they once had no content."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    patch = (6, 10, 5)  # asked for nowhere else
    with FakeTensorMode():
        encoder()(torch.empty(1, 2, 12, 10, 5), patch=patch)
    with torch.inference_mode():
        encoder()(crop((12, 10, 5)), patch=patch)

    network = encoder()
    network(crop((12, 10, 5)), patch=patch).tokens.sum().backward()

    assert network.embedding.projection.weight.grad is not None
    assert bool(network.embedding.projection.weight.grad.isfinite().all())
