"""UNETR against an oracle built from MONAI's own network, tap for tap."""

from __future__ import annotations

import re
from collections.abc import Iterator

import monai.networks.nets
import pytest
import torch
from torch import Tensor, nn

from mim3d.config.encoder import EncoderConfig
from mim3d.config.task import DecoderConfig
from mim3d.models.decoders import DECODERS
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT

PUBLISHED = DecoderConfig(taps=(4, 7, 10, 12), tap_norm="none")
LEVELS = "decoder.trunk.levels"
PATHS = "decoder.trunk.paths"
PARTS = [
    (r"vit\.patch_embedding\.patch_embeddings\.", "encoder.embedding.projection."),
    (r"vit\.patch_embedding\.position_embeddings", "encoder.positions.table"),
    (r"vit\.", "encoder."),
    (r"\.mlp\.linear1\.", ".mlp.widen."),
    (r"\.mlp\.linear2\.", ".mlp.narrow."),
    (r"\.attn\.out_proj\.", ".attention.out."),
    (r"\.attn\.", ".attention."),
    (r"encoder1\.layer\.", "decoder.trunk.raw."),
    (r"encoder(\d)\.transp_conv_init\.conv\.", lambda m: f"{PATHS}.{4 - int(m[1])}.first."),
    (r"encoder(\d)\.blocks\.", lambda m: f"{PATHS}.{4 - int(m[1])}.further."),
    (r"decoder(\d)\.transp_conv\.conv\.", lambda m: f"{LEVELS}.{5 - int(m[1])}.up."),
    (r"decoder(\d)\.conv_block\.", lambda m: f"{LEVELS}.{5 - int(m[1])}.block."),
    (r"conv3\.conv\.", "shortcut."),
    (r"out\.conv\.conv\.", "decoder.out."),
    (r"(conv\d|further\.\d\.0)\.conv\.", r"\1."),
]  # fmt: skip


def ours_for(theirs: nn.Module, of: str = "value") -> Iterator[tuple[str, Tensor]]:
    """MONAI's parameters (or their gradients) under our names and in our shapes."""
    for name, parameter in theirs.named_parameters():
        if "norm_cross_attn" in name:
            continue  # MONAI makes them and never uses them
        for pattern, ours in PARTS:
            name = re.sub(pattern, ours, name)
        tensor = parameter.grad if of == "grad" else parameter.detach()
        assert tensor is not None
        yield name, tensor.flatten(1) if "projection.weight" in name else tensor


def pair(
    size: tuple[int, int, int], channels: int, classes: int, width: int, heads: int, features: int
) -> tuple[UNETR, nn.Module]:
    """The two networks with the same weights."""
    torch.manual_seed(0)
    x, y, z = (side // 16 for side in size)
    encoder = VolumeViT(
        EncoderConfig(
            width=width, heads=heads, depth=12, channels=channels,
            positions="learned", learned_grid=(x, y, z), qkv_bias=False,
        )
    )  # fmt: skip
    decoder = DecoderConfig(taps=PUBLISHED.taps, tap_norm="none", feature_size=features)
    ours = UNETR(encoder, classes, decoder)
    theirs = monai.networks.nets.UNETR(
        channels, classes, size, feature_size=features, hidden_size=width, mlp_dim=4 * width,
        num_heads=heads,
    )  # fmt: skip
    ours.load_state_dict(dict(ours_for(theirs)), strict=True)
    return ours, theirs


def test_the_published_size_has_the_papers_number_of_parameters() -> None:
    with torch.device("meta"):
        encoder = VolumeViT(
            EncoderConfig(positions="learned", learned_grid=(6, 6, 6), qkv_bias=False)
        )
        network = UNETR(encoder, 14, PUBLISHED)

    assert sum(p.numel() for p in encoder.parameters()) == 88_340_736
    assert sum(p.numel() for p in network.parameters()) == 92_784_046


def test_logits_taps_and_gradients_equal_monais() -> None:
    ours, theirs = pair((32, 48, 16), channels=2, classes=3, width=48, heads=4, features=4)
    voxels = torch.randn(2, 2, 32, 48, 16)

    logits, expected = ours(voxels), theirs(voxels)
    states = ours.encoder(voxels, taps=PUBLISHED.taps)
    last, hidden = theirs.vit(voxels)  # type: ignore[operator]
    logits.square().mean().backward()
    expected.square().mean().backward()

    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    for tap, number in zip(states.taps, (4, 7, 10), strict=False):
        torch.testing.assert_close(tap, hidden[number - 1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(states.tokens, last, atol=1e-5, rtol=1e-4)
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    compared = 0
    for name, gradient in ours_for(theirs, "grad"):
        mine = gradients.pop(name)
        assert mine is not None
        assert (mine - gradient).norm() <= 1e-3 * gradient.norm() + 1e-7, name
        compared += 1
    assert compared == len(dict(ours.named_parameters()))


def test_logits_have_the_size_of_any_crop() -> None:
    torch.manual_seed(0)
    encoder = VolumeViT(EncoderConfig(width=24, depth=4, heads=2, patch=(4, 8, 2)))

    logits = UNETR(encoder, 3)(torch.randn(2, 1, 11, 13, 7), (1.0, 2.0, 0.5))

    assert logits.shape == (2, 3, 11, 13, 7)


def test_what_stands_in_padding_changes_no_logit() -> None:
    torch.manual_seed(0)
    network = UNETR(VolumeViT(EncoderConfig(width=24, depth=2, heads=2, patch=(4, 8, 2))), 3)
    voxels = torch.randn(2, 1, 11, 13, 7)
    valid = torch.ones(2, 11, 13, 7, dtype=torch.bool)
    valid[0, 6:] = False
    valid[1, :, :3, 5:] = False
    other = torch.where(valid[:, None], voxels, 1000.0)

    logits = network(voxels, (1.0, 2.0, 0.5), valid)

    assert torch.equal(network(other, (1.0, 2.0, 0.5), valid), logits)


def test_weights_are_named_by_encoder_and_decoder() -> None:
    network = UNETR(VolumeViT(EncoderConfig(width=24, depth=2, heads=2, patch=(4, 4, 4))), 3)

    assert {key.split(".")[0] for key in network.state_dict()} == {"encoder", "decoder"}


@pytest.mark.parametrize("name", list(DECODERS))
def test_a_crop_of_24_voxels_trains_with_patch_16(name: str) -> None:
    torch.manual_seed(0)
    encoder = VolumeViT(EncoderConfig(width=24, depth=2, heads=2))
    network = UNETR(encoder, 2, DecoderConfig(name=name, feature_size=4))  # type: ignore[arg-type]

    for side in (24, 16, 8):
        network(torch.randn(1, 1, side, side, side), (1.0, 1.0, 1.0)).square().mean().backward()

    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
