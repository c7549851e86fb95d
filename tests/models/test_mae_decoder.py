"""MAE's decoder: order, dropped tokens, padding and positions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.foundation.errors import ConfigError
from mim3d.models.hidden_states import HiddenStates
from mim3d.models.mae_decoder import CrossDecoder, MaeDecoder, PatchDecoder
from mim3d.models.vit import VolumeViT
from mim3d.tokens.masking import TokenSplit, joined, split_tokens
from mim3d.tokens.positions import Rotation, rotate

ENCODER = EncoderConfig(
    width=24, depth=2, heads=2, patch=(4, 4, 2), channels=2, learned_grid=(3, 4, 4),
    # a head of 6 has one frequency: its wavelength must be no multiple of a token's 4, 8 or 1 mm
    default_spacing_mm=(1.0, 2.0, 0.5), wavelengths_mm=(37.0, 370.0),
)  # fmt: skip
KINDS = ["learned", "sincos_index", "sincos_mm", "rotary_mm", "rotary_index"]


def cross(encoder: VolumeViT) -> CrossDecoder:
    decoder = CrossDecoder(encoder, width=18, depth=2, heads=3)
    for parameter in decoder.parameters():  # biases and norms would hide behind 0 and 1
        torch.nn.init.normal_(parameter, std=0.4)
    return decoder


def pair(**fields: object) -> tuple[VolumeViT, MaeDecoder]:
    torch.manual_seed(0)
    encoder = VolumeViT(replace(ENCODER, **fields))  # type: ignore[arg-type]
    return encoder, MaeDecoder(encoder, width=18, depth=2, heads=3)


def split(masked: int = 30, dropped: int = 0) -> TokenSplit:
    return split_tokens(
        torch.rand(2, 48, generator=torch.Generator().manual_seed(1)), masked, dropped
    )


def decoded(
    encoder: VolumeViT, decoder: PatchDecoder, parts: TokenSplit, asked: Tensor | None = None
) -> Tensor:
    voxels = torch.randn(2, 2, 11, 13, 7, generator=torch.Generator().manual_seed(2))
    states = encoder(voxels, split=parts)
    index = parts.masked if asked is None else asked
    patches: Tensor = decoder(states, states.tokens, parts, index)
    return patches


def test_masked_patches_are_predicted_and_the_visible_too_if_asked_for() -> None:
    encoder, decoder = pair()

    masked = decoded(encoder, decoder, split())
    both = decoded(encoder, decoder, split(), joined(split().seen, split().hidden).index)

    assert masked.shape == (2, 30, 64)
    assert both.shape == (2, 48, 64)
    torch.testing.assert_close(both[:, 18:], masked)


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


@pytest.mark.parametrize("kind", [MaeDecoder, CrossDecoder])
@pytest.mark.parametrize("class_token", [False, True])
def test_a_shorter_sample_is_decoded_as_if_alone(
    class_token: bool, kind: type[PatchDecoder]
) -> None:
    encoder, _ = pair(class_token=class_token, registers=1)
    decoder = kind(encoder, width=18, depth=2, heads=3)
    scores = torch.rand(2, 48, generator=torch.Generator().manual_seed(1))
    valid = torch.ones(2, 48, dtype=torch.bool)
    valid[1, 40:] = False
    voxels = torch.randn(2, 2, 12, 16, 8)
    together = split_tokens(scores, [30, 20], valid=valid)
    alone = split_tokens(scores[1:], 20, valid=valid[1:])

    states = encoder(voxels, split=together)
    single = encoder(voxels[1:], split=alone)
    patches = decoder(states, states.tokens, together, together.masked)

    expected = decoder(single, single.tokens, alone, alone.masked)
    torch.testing.assert_close(patches[1:, :20], expected, atol=1e-5, rtol=1e-4)


def test_without_blocks_or_with_odd_heads_it_is_refused() -> None:
    encoder, _ = pair()

    with pytest.raises(ConfigError, match="decoder_depth"):
        MaeDecoder(encoder, width=18, depth=0, heads=3)
    with pytest.raises(ConfigError, match="decoder_heads"):
        MaeDecoder(encoder, width=20, depth=1, heads=3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cross_decoder_is_attention_from_mask_tokens_to_visible_ones(kind: str) -> None:
    encoder, _ = pair(positions=kind, class_token=True, registers=1)
    decoder, parts = cross(encoder), split()
    voxels = torch.randn(2, 2, 11, 13, 7, generator=torch.Generator().manual_seed(2))
    states = encoder(voxels, split=parts)

    patches = decoder(states, states.tokens, parts, parts.masked)

    expected = [written_out(decoder, states, parts, sample) for sample in range(2)]
    torch.testing.assert_close(patches, torch.stack(expected), atol=1e-4, rtol=1e-4)


def written_out(
    decoder: CrossDecoder, states: HiddenStates, parts: TokenSplit, sample: int
) -> Tensor:
    """CrossMAE's decoder for one sample, one mask token and one head at a time."""
    positions, place = decoder.positions, states.coordinates
    everywhere = torch.arange(48)[None]

    def added(index: Tensor) -> Tensor:
        found = positions.added(place, states.grid, everywhere)
        return torch.zeros(len(index), 18) if found is None else found[0, index]

    def turned(heads: Tensor, index: Tensor) -> Tensor:
        table = positions.rotation(place, everywhere, 0)
        if table is None:
            return heads
        return rotate(heads[None, None], Rotation(table.cos[:1, index], table.sin[:1, index]))[0, 0]

    assert states.prefix is not None
    visible, masked = parts.visible[sample], parts.masked[sample]
    seen = decoder.embed(states.tokens[sample]) + added(visible)
    seen = torch.cat([decoder.embed(states.prefix[sample, :1]), seen])
    seen = decoder.context_norm(seen)
    patches = []
    for token in masked:
        at = token[None]
        state = decoder.mask_token + added(at)[0]
        for block in decoder.blocks:
            weight, bias = block.attention.qkv.weight, block.attention.qkv.bias
            query = weight[:18] @ block.norm1(state) + bias[:18]
            keys = seen @ weight[18:36].T + bias[18:36]
            values = seen @ weight[36:].T + bias[36:]
            heads = []
            for head in range(3):
                e = slice(6 * head, 6 * head + 6)
                one = turned(query[None, e], at)[0]
                others = torch.cat([keys[:1, e], turned(keys[1:, e], visible)])
                heads.append((others @ one / 6**0.5).softmax(0) @ values[:, e])
            state = state + block.attention.out(torch.cat(heads))
            state = state + block.mlp(block.norm2(state))
        patches.append(decoder.head(decoder.norm(state)))
    return torch.stack(patches)


def test_a_mask_token_of_the_cross_decoder_minds_no_other() -> None:
    encoder, _ = pair()
    decoder, parts = cross(encoder), split()

    few = decoded(encoder, decoder, parts, parts.masked[:, 5:9])

    every = decoded(encoder, decoder, parts)
    torch.testing.assert_close(few, every[:, 5:9], atol=1e-5, rtol=1e-4)


def test_the_full_decoder_asks_its_last_block_for_masked_tokens_alone_and_gives_the_same() -> None:
    encoder, decoder = pair(positions="rotary_mm", class_token=True)
    widened: list[int] = []
    decoder.blocks[-1].mlp.register_forward_pre_hook(
        lambda _m, inputs: widened.append(inputs[0].shape[1])
    )

    few = decoded(encoder, decoder, split())
    every = decoded(encoder, decoder, split(), joined(split().seen, split().hidden).index)

    assert widened == [30, 48]
    torch.testing.assert_close(every[:, 18:], few, atol=1e-6, rtol=1e-5)
