"""MAE's decoders on packed groups of crops, against each group, and each crop, by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.models import packed_attention
from mim3d.models.mae_decoder import DECODERS, Asking, PatchDecoder
from mim3d.models.vit import VolumeViT
from mim3d.tokens.masking import Picked, TokenSplit, joined, noise, split_tokens
from mim3d.tokens.patches import cut_crop

PATCH = (4, 4, 2)
SIZES = ((11, 13, 7), (16, 8, 4), (6, 12, 12))
SPACINGS = ((0.5, 1.0, 3.0), (1.0, 1.0, 1.0), (2.0, 0.7, 0.9))
MASKED = ([30, 40], [5, 9], [20, 0])
"""Of each size, how many tokens of either crop are masked: of the last crop none."""


def pair(kind: str, **fields: Any) -> tuple[VolumeViT, Any]:
    torch.manual_seed(0)
    config = EncoderConfig(width=24, depth=1, heads=2, patch=PATCH, channels=2, **fields)
    encoder = VolumeViT(config)
    decoder = DECODERS[kind](encoder, width=18, depth=3, heads=3)
    assert isinstance(decoder, PatchDecoder)
    return encoder.eval(), decoder


def split_of(size: tuple[int, int, int], masked: list[int]) -> TokenSplit:
    n = cut_crop(torch.zeros(1, 2, *size), None, PATCH).crop.grid.n
    chance = noise(torch.tensor([sum(size), 7 * sum(size)]), n)
    return split_tokens(chance, masked, dropped=[2, 0])


def asking(encoder: VolumeViT, place: int, asked: Picked | None = None) -> Asking:
    """Of one size, what the encoder knows and what is asked; by default the masked tokens."""
    source = torch.Generator().manual_seed(place)
    voxels = torch.randn(2, 2, *SIZES[place], generator=source)
    split = split_of(SIZES[place], MASKED[place])
    states = encoder(voxels, SPACINGS[place], split=split)
    return Asking(states, states.tokens, split, asked or split.hidden)


def row(picked: Picked, sample: int) -> Tensor:
    """The tokens of one sample without what fills up."""
    index = picked.index[sample]
    return index if picked.real is None else index[picked.real[sample]]


def alone(encoder: VolumeViT, decoder: Any, place: int, sample: int, asked: Tensor) -> Tensor:
    """Patches `q p` of one crop, encoded and decoded with nothing beside it or filled up."""
    source = torch.Generator().manual_seed(place)
    voxels = torch.randn(2, 2, *SIZES[place], generator=source)[sample : sample + 1]
    whole = split_of(SIZES[place], MASKED[place])
    gone = torch.zeros(1, 0, dtype=torch.long)
    split = TokenSplit(row(whole.seen, sample)[None], row(whole.hidden, sample)[None], gone)
    states = encoder(voxels, SPACINGS[place], split=split)
    patches: Tensor = decoder(states, states.tokens, split, asked[None])
    return patches[0]


@pytest.mark.parametrize("kind", ["full", "cross"])
@pytest.mark.parametrize("way", ["runs", "nested", "masked"])
@pytest.mark.parametrize(
    "fields",
    [
        {"positions": "rotary_mm"},
        {"positions": "rotary_mm", "class_token": True, "registers": 2},
        {"positions": "sincos_mm"},
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_packed_group_gives_what_each_crop_gives_alone(
    kind: str, way: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail with rotations from the first token on, and with a mask that is all true."""
    encoder, decoder = pair(kind, **fields)
    monkeypatch.setattr(packed_attention, "choose_way", lambda *_: way)
    groups = [asking(encoder, place) for place in range(3)]

    packed = decoder.forward_packed(groups)

    for place, (group, patches) in enumerate(zip(groups, packed, strict=True)):
        assert patches.shape == (2, group.asked.index.shape[1], 2 * 4 * 4 * 2)
        for sample in range(2):
            asked = row(group.asked, sample)
            if not len(asked):
                continue
            expected = alone(encoder, decoder, place, sample, asked)
            # float32: other orders of sums, and angles of places many millimetres away.
            torch.testing.assert_close(patches[sample, : len(asked)], expected, atol=1e-5, rtol=0)
            assert bool((patches[sample, len(asked) :] == 0).all())


@pytest.mark.parametrize("kind", ["full", "cross"])
def test_gradients_are_those_of_the_groups_one_by_one(kind: str) -> None:
    encoder, decoder = pair(kind, class_token=True)
    groups = [asking(encoder, place) for place in range(3)]
    leaves = [*encoder.blocks.parameters(), *decoder.parameters()]
    weights = [torch.randn(2, g.asked.index.shape[1], 64) for g in groups]
    for weight, group in zip(weights, groups, strict=True):
        if group.asked.real is not None:
            weight[~group.asked.real] = 0

    dense = [decoder(*group[:3], group.asked.index) for group in groups]
    truth = torch.autograd.grad(
        sum((d * w).sum() for d, w in zip(dense, weights, strict=True)), leaves, retain_graph=True
    )
    packed = decoder.forward_packed(groups)
    found = torch.autograd.grad(
        sum((p * w).sum() for p, w in zip(packed, weights, strict=True)), leaves
    )

    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


def test_visible_tokens_can_be_asked_for_too() -> None:
    encoder, decoder = pair("full", class_token=True)
    split = split_of(SIZES[0], MASKED[0])
    group = asking(encoder, 0, joined(split.seen, split.hidden))

    (patches,) = decoder.forward_packed([group])

    expected = decoder(*group[:3], group.asked.index)
    real = group.asked.real
    assert real is not None
    torch.testing.assert_close(patches[real], expected[real], atol=2e-6, rtol=0)


def test_the_cross_decoder_gives_any_part_of_the_masked_tokens() -> None:
    encoder, decoder = pair("cross")
    split = split_of(SIZES[0], MASKED[0])
    asked = split.masked[:, [4, 1, 17]]

    (patches,) = decoder.forward_packed([asking(encoder, 0, Picked(asked))])

    for sample in range(2):
        expected = alone(encoder, decoder, 0, sample, asked[sample])
        torch.testing.assert_close(patches[sample], expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", ["full", "cross"])
def test_where_nothing_is_asked_nothing_is_decoded(kind: str) -> None:
    encoder, decoder = pair(kind)
    group = asking(encoder, 0)
    nothing = Picked(torch.zeros(2, 0, dtype=torch.long))

    (patches,) = decoder.forward_packed([group._replace(asked=nothing)])

    assert patches.shape == (2, 0, 64)


def test_one_crop_changes_no_bit_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, decoder = pair("full")
    groups = [asking(encoder, place) for place in range(3)]
    other = groups[1]._replace(visible=groups[1].visible * 50)

    before = decoder.forward_packed(groups)
    after = decoder.forward_packed([groups[0], other, groups[2]])

    assert torch.equal(after[0], before[0])
    assert torch.equal(after[2], before[2])
    assert not torch.equal(after[1], before[1])
