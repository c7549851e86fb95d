"""MAE's decoder: order, dropped tokens, padding and positions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mim3d.config.sections import EncoderConfig
from mim3d.foundation.errors import ConfigError
from mim3d.models.mae_decoder import MaeDecoder
from mim3d.models.vit import VolumeViT
from mim3d.tokens.masking import TokenSplit, split_tokens

ENCODER = EncoderConfig(
    width=24, depth=2, heads=2, patch=(4, 4, 2), channels=2, learned_grid=(3, 4, 4),
    # a head of 6 has one frequency: its wavelength must be no multiple of a token's 4, 8 or 1 mm
    default_spacing_mm=(1.0, 2.0, 0.5), wavelengths_mm=(37.0, 370.0),
)  # fmt: skip
KINDS = ["learned", "sincos_index", "sincos_mm", "rotary_mm"]


def pair(**fields: object) -> tuple[VolumeViT, MaeDecoder]:
    torch.manual_seed(0)
    encoder = VolumeViT(replace(ENCODER, **fields))  # type: ignore[arg-type]
    return encoder, MaeDecoder(encoder, width=18, depth=2, heads=3)


def split(masked: int = 30, dropped: int = 0) -> TokenSplit:
    return split_tokens(
        torch.rand(2, 48, generator=torch.Generator().manual_seed(1)), masked, dropped
    )


def decoded(encoder: VolumeViT, decoder: MaeDecoder, parts: TokenSplit, **how: bool) -> Tensor:
    voxels = torch.randn(2, 2, 11, 13, 7, generator=torch.Generator().manual_seed(2))
    states = encoder(voxels, split=parts)
    patches: Tensor = decoder(states, states.tokens, parts, **how)
    return patches


def test_masked_patches_are_predicted_and_the_visible_too_if_asked_for() -> None:
    encoder, decoder = pair()

    masked = decoded(encoder, decoder, split())
    both = decoded(encoder, decoder, split(), visible_too=True)

    assert masked.shape == (2, 30, 64)
    assert both.shape == (2, 48, 64)
    assert torch.equal(both[:, 18:], masked)


@pytest.mark.parametrize("kind", KINDS)
def test_mask_tokens_differ_by_their_position_alone(kind: str) -> None:
    encoder, decoder = pair(positions=kind)
    parts = split()
    turned = replace(parts, masked=parts.masked.flip(1))

    patches = decoded(encoder, decoder, parts)
    other = decoded(encoder, decoder, turned)

    torch.testing.assert_close(other.flip(1), patches, atol=1e-5, rtol=1e-4)
    assert (patches[:, 1:] - patches[:, :1]).abs().amax(-1).min() > 1e-5


def test_dropped_tokens_have_left_the_decoder() -> None:
    encoder, decoder = pair()
    lengths = []
    decoder.blocks[0].register_forward_pre_hook(
        lambda _m, inputs: lengths.append(inputs[0].shape[1])
    )

    decoded(encoder, decoder, split(20, dropped=10))

    assert lengths == [38]


def test_the_class_token_takes_part_and_registers_do_not() -> None:
    encoder, decoder = pair(class_token=True, registers=2)
    lengths = []
    decoder.blocks[0].register_forward_pre_hook(
        lambda _m, inputs: lengths.append(inputs[0].shape[1])
    )

    assert decoded(encoder, decoder, split()).shape == (2, 30, 64)
    assert lengths == [49]


@pytest.mark.parametrize("class_token", [False, True])
def test_a_shorter_sample_is_decoded_as_if_alone(class_token: bool) -> None:
    encoder, decoder = pair(class_token=class_token)
    scores = torch.rand(2, 48, generator=torch.Generator().manual_seed(1))
    valid = torch.ones(2, 48, dtype=torch.bool)
    valid[1, 40:] = False
    voxels = torch.randn(2, 2, 12, 16, 8)
    together = split_tokens(scores, [30, 20], valid=valid)
    alone = split_tokens(scores[1:], 20, valid=valid[1:])

    states = encoder(voxels, split=together)
    single = encoder(voxels[1:], split=alone)
    patches = decoder(states, states.tokens, together)

    expected = decoder(single, single.tokens, alone)
    torch.testing.assert_close(patches[1:, :20], expected, atol=1e-5, rtol=1e-4)


def test_without_blocks_or_with_odd_heads_it_is_refused() -> None:
    encoder, _ = pair()

    with pytest.raises(ConfigError, match="decoder_depth"):
        MaeDecoder(encoder, width=18, depth=0, heads=3)
    with pytest.raises(ConfigError, match="decoder_heads"):
        MaeDecoder(encoder, width=20, depth=1, heads=3)
