"""Decoders: any patch, every tap, and the size of what comes out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mim3d.config.encoder import EncoderConfig
from mim3d.config.task import DecoderConfig
from mim3d.foundation.errors import ConfigError
from mim3d.models.convolutions import depth_to_space
from mim3d.models.decoders import DECODERS, build_decoder
from mim3d.models.vit import VolumeViT

ENCODER = EncoderConfig(width=24, depth=4, heads=2, channels=2, default_spacing_mm=(1.0, 2.0, 0.5))
SIZE = (22, 13, 19)


def encoder(**fields: object) -> VolumeViT:
    torch.manual_seed(0)
    return VolumeViT(replace(ENCODER, **fields))  # type: ignore[arg-type]


def decoder(name: str, network: VolumeViT, **fields: object) -> torch.nn.Module:
    config = DecoderConfig(name=name, feature_size=4, **fields)  # type: ignore[arg-type]
    return build_decoder(config, network, 3)


@pytest.mark.parametrize("name", list(DECODERS))
@pytest.mark.parametrize(
    "patch", [(16, 16, 16), (8, 8, 8), (4, 4, 4), (16, 16, 4), (2, 8, 1), (32, 8, 8)]
)
def test_every_decoder_serves_every_patch_and_all_of_it_learns(
    name: str, patch: tuple[int, int, int]
) -> None:
    network = encoder(patch=patch)
    reader = decoder(name, network)
    for parameter in reader.parameters():
        if not parameter.any():  # what starts at zero holds back the gradient of what feeds it
            torch.nn.init.normal_(parameter)
    voxels = torch.randn(2, 2, *SIZE)

    logits = reader(network(voxels, taps=reader.taps), voxels)
    logits.square().sum().backward()

    assert logits.shape == (2, 3, *SIZE)
    still = [n for n, p in reader.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.parametrize("name", list(DECODERS))
def test_every_tap_reaches_the_logits(name: str) -> None:
    network = encoder(patch=(4, 4, 4))
    reader = decoder(name, network)
    voxels = torch.randn(1, 2, *SIZE)
    states = network(voxels, taps=reader.taps)
    logits = reader(states, voxels)

    for number in range(4):
        # the last tap is the encoder's own last state behind its final norm
        last = number == 3
        other = torch.randn_like(states.tokens)
        taps = tuple(other if i == number else tap for i, tap in enumerate(states.taps))
        changed = replace(states, tokens=other if last else states.tokens, taps=taps)
        assert not torch.allclose(reader(changed, voxels), logits, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "sees"),
    [("unetr", True), ("half", True), ("interpolate", True), ("hybrid", True), ("light", False)],
)
def test_raw_voxels_reach_the_logits_unless_light(name: str, sees: bool) -> None:
    network = encoder(patch=(4, 4, 4))
    reader = decoder(name, network)
    voxels = torch.randn(1, 2, *SIZE)
    states = network(voxels, taps=reader.taps)

    other = reader(states, voxels + torch.randn_like(voxels))

    assert torch.equal(other, reader(states, voxels)) != sees


@pytest.mark.parametrize(("norm", "count"), [("layer", 3), ("none", 0)])
def test_inner_taps_are_normalised_or_not(norm: str, count: int) -> None:
    network = encoder(patch=(4, 4, 4))
    reader = decoder("unetr", network, tap_norm=norm)
    layers = [m for m in reader.modules() if isinstance(m, torch.nn.LayerNorm)]
    voxels = torch.randn(1, 2, *SIZE)
    states = network(voxels, taps=reader.taps)
    grown = replace(states, taps=tuple(tap * 40 for tap in states.taps))

    unchanged = torch.allclose(reader(grown, voxels), reader(states, voxels), atol=1e-2)

    assert len(layers) == count
    assert unchanged == (norm == "layer")


def test_a_deepest_tap_below_the_last_block_is_taken_there() -> None:
    network = encoder(patch=(4, 4, 4))
    reader = decoder("light", network, taps=(1, 1, 2, 3))
    voxels = torch.randn(1, 2, *SIZE)
    states = network(voxels, taps=reader.taps)

    other = replace(states, tokens=torch.zeros_like(states.tokens))

    assert torch.equal(reader(other, voxels), reader(states, voxels))


def test_channels_double_with_every_level_down() -> None:
    network = encoder(patch=(16, 16, 4))
    reader = decoder("unetr", network)

    outs = [level.up.out_channels for level in reader.trunk.levels]  # type: ignore[union-attr]
    assert outs == [32, 16, 8, 4]


def test_interpolate_is_unetr_but_for_how_levels_grow() -> None:
    network = encoder(patch=(16, 16, 4))
    plain, smooth = decoder("unetr", network), decoder("interpolate", network)

    outs = [level.up.linear.out_channels for level in smooth.trunk.levels]  # type: ignore[union-attr]
    assert outs == [32, 16, 8, 4]
    grown = (".up.", "paths.")
    for one, other in ((plain, smooth), (smooth, plain)):
        alike = {n: p.shape for n, p in one.named_parameters() if not any(g in n for g in grown)}
        theirs = dict(other.named_parameters())
        assert all(theirs[n].shape == shape for n, shape in alike.items())
    assert not [m for m in smooth.modules() if isinstance(m, torch.nn.ConvTranspose3d)]


def test_half_resolution_logits_start_without_a_pattern_of_period_two() -> None:
    network = encoder(patch=(8, 8, 4))
    reader = decoder("half", network)
    assert reader.factor == (2, 2, 1)

    logits = depth_to_space(reader.out(torch.randn(1, 8, 3, 4, 5)), (2, 2, 1))  # type: ignore[operator]

    assert logits.shape == (1, 3, 6, 8, 5)
    assert torch.equal(logits[:, :, ::2, ::2], logits[:, :, 1::2, 1::2])
    assert not torch.equal(logits[:, 0], logits[:, 1])


def test_half_needs_a_patch_to_halve() -> None:
    with pytest.raises(ConfigError, match="half"):
        decoder("half", encoder(patch=(1, 1, 1)))


def test_dropout_takes_whole_channels_in_training_only() -> None:
    network = encoder(patch=(4, 4, 4))
    reader = decoder("light", network, dropout=0.5)
    voxels = torch.randn(1, 2, *SIZE)
    states = network(voxels, taps=reader.taps)

    assert not torch.equal(reader(states, voxels), reader(states, voxels))
    reader.eval()
    assert torch.equal(reader(states, voxels), reader(states, voxels))


def test_an_unknown_decoder_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=", ".join(DECODERS)):
        decoder("segformer", encoder())
