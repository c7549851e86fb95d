"""Groups of crops encoded as one sequence against each of them encoded alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.foundation.errors import ShapeError, UserError
from mim3d.models import packed_attention
from mim3d.models.encoder_input import Crops, Replacement
from mim3d.models.hidden_states import HiddenStates
from mim3d.models.vit import VolumeViT
from mim3d.tokens.masking import split_tokens

SMALL = EncoderConfig(
    width=24, depth=4, heads=2, patch=(4, 4, 2), channels=2, learned_grid=(3, 4, 4),
    default_spacing_mm=(1.0, 2.0, 0.5),
)  # fmt: skip
KINDS = ["learned", "sincos_index", "sincos_mm", "rotary_mm", "rotary_index"]
TAPS = (2, 4)


def encoder(**fields: object) -> VolumeViT:
    torch.manual_seed(0)
    return VolumeViT(replace(SMALL, **fields))  # type: ignore[arg-type]


def voxels(seed: int, batch: int, *size: int) -> Tensor:
    return torch.randn(batch, 2, *size, generator=torch.Generator().manual_seed(seed))


def scores(seed: int, b: int, n: int) -> Tensor:
    return torch.rand(b, n, generator=torch.Generator().manual_seed(seed))


def groups() -> list[Crops]:
    """Whole crops; some whose sides are no whole patches, of two spacings; padded; masked."""
    valid = torch.ones(2, 12, 8, 9, dtype=torch.bool)
    valid[0, :7] = False
    valid[1, :, :, 5:] = False
    split = split_tokens(scores(3, 3, 36), 20)
    ragged = split_tokens(scores(4, 2, 48), [30, 11], dropped=[4, 9])
    return [
        Crops(voxels(0, 2, 16, 8, 4)),
        Crops(voxels(1, 2, 11, 13, 7), torch.tensor([[0.5, 0.5, 4.0], [1.0, 1.0, 1.0]])),
        Crops(voxels(2, 2, 12, 8, 9), (3.0, 1.0, 1.0), valid),
        Crops(voxels(3, 3, 12, 12, 8), split=split),
        Crops(voxels(4, 2, 11, 13, 7), (0.2, 0.2, 0.6), split=ragged),
    ]


def alone(network: VolumeViT, crops: Crops) -> HiddenStates:
    given = {name: value for name, value in crops._asdict().items() if name != "voxels"}
    states: HiddenStates = network(crops.voxels, **given, taps=TAPS)
    return states


def real(tokens: Tensor, states: HiddenStates) -> Tensor:
    return tokens if states.token_valid is None else tokens[states.token_valid]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", [False, True])
def test_each_group_has_the_states_it_has_alone(kind: str, prefix: bool) -> None:
    """Seen to fail with one segment for all, the prefix left out of them, and sines for cosines."""
    network = encoder(positions=kind, class_token=prefix, registers=2 * prefix)
    crops = groups()

    packed = network.forward_packed(crops, taps=TAPS)

    for given, states in zip(crops, packed, strict=True):
        expected = alone(network, given)
        assert states.grid == expected.grid
        assert torch.equal(states.coordinates, expected.coordinates)
        assert (states.token_valid is None) == (expected.token_valid is None)
        for one, other in zip(
            (states.tokens, *states.taps), (expected.tokens, *expected.taps), strict=True
        ):
            assert one.shape == other.shape
            torch.testing.assert_close(
                real(one, states), real(other, expected), atol=1e-5, rtol=1e-5
            )
        if prefix:
            assert states.prefix is not None
            assert states.has_class_token
            torch.testing.assert_close(states.prefix, expected.prefix, atol=1e-5, rtol=1e-5)


def test_states_of_padding_are_zero() -> None:
    states = encoder().forward_packed(groups(), taps=TAPS)[2]

    assert states.token_valid is not None
    assert not states.token_valid.all()
    assert (states.tokens[~states.token_valid] == 0).all()
    assert (states.taps[0][~states.token_valid] == 0).all()


def gradients(network: VolumeViT, states: list[HiddenStates]) -> dict[str, Tensor]:
    network.zero_grad()
    total = torch.zeros(())
    for number, one in enumerate(states):
        for tokens in (one.tokens, *one.taps):
            weight = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(number))
            total = total + real(tokens * weight, one).sum()
    total.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("fields", [{}, {"checkpointing": True}, {"positions": "rotary_mm"}])
def test_gradients_are_the_sum_of_those_of_each_group_alone(fields: dict[str, object]) -> None:
    network, crops = encoder(class_token=True, registers=1, **fields), groups()

    truth = gradients(network, [alone(network, one) for one in crops])
    found = gradients(network, network.forward_packed(crops, taps=TAPS))

    assert found.keys() == truth.keys()
    for name, gradient in found.items():
        scale = float(truth[name].abs().max())  # of up to 100: sums over all tokens
        assert float((gradient - truth[name]).abs().max()) <= 1e-5 * max(1.0, scale), name


@pytest.mark.parametrize("way", ["nested", "masked"])
def test_every_way_of_attending_gives_the_same_states(
    way: str, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    network, crops = encoder(positions="rotary_mm", registers=1), groups()
    expected = network.forward_packed(crops)

    monkeypatch.setattr(packed_attention, "choose_way", lambda *_: way)

    for states, other in zip(network.forward_packed(crops), expected, strict=True):
        torch.testing.assert_close(states.tokens, other.tokens, atol=1e-5, rtol=1e-5)


def test_changing_one_group_changes_no_bit_of_another() -> None:
    network, crops = encoder(), groups()
    changed = [crops[0]._replace(voxels=crops[0].voxels * 50), *crops[1:]]

    before, after = network.forward_packed(crops), network.forward_packed(changed)

    assert not torch.equal(after[0].tokens, before[0].tokens)
    for one, other in zip(after[1:], before[1:], strict=True):
        assert torch.equal(one.tokens, other.tokens)


@pytest.mark.parametrize(
    "change",
    [lambda v, gone: v.masked_fill(gone, 77.0), lambda v, gone: v.masked_fill(gone, torch.nan)],
)
def test_what_stands_in_padding_changes_no_bit(change: Callable[[Tensor, Tensor], Tensor]) -> None:
    network, crops = encoder(), groups()
    assert crops[2].valid is not None
    filled = crops[2]._replace(voxels=change(crops[2].voxels, ~crops[2].valid[:, None]))

    states = network.forward_packed([*crops[:2], filled])[2]

    assert torch.equal(states.tokens, network.forward_packed(crops[:3])[2].tokens)


def test_neither_padding_nor_masked_nor_dropped_tokens_enter_the_sequence() -> None:
    network, seen = encoder(registers=1), []
    network.blocks[0].register_forward_pre_hook(lambda _block, given: seen.append(given[0].shape))
    crops = groups()
    assert crops[2].valid is not None
    padded_tokens = crops[2].valid.unfold(1, 4, 4).unfold(2, 4, 4)[:, :, :, :8]
    valid = padded_tokens.unfold(3, 2, 2).flatten(4).any(-1).sum()
    last = crops[2].valid[:, :, :, 8:].unfold(1, 4, 4).unfold(2, 4, 4).flatten(3).any(-1).sum()

    network.forward_packed(crops)

    # whole 4 x 2 x 2; 3 x 4 x 4; of 36 all but 20; of 48 all but 30 + 4 and 11 + 9; registers
    visible = 2 * 16 + 2 * 48 + int(valid + last) + 3 * 16 + (14 + 28)
    assert seen == [(1, visible + 11, 24)]


def test_replaced_tokens_are_replaced_in_a_pack() -> None:
    network, given = encoder(), voxels(0, 2, 11, 13, 7)
    masked = scores(1, 2, 48) > 0.5
    crops = Crops(given, replaced=Replacement(masked, torch.linspace(-1, 1, 24)))

    states = network.forward_packed([crops, Crops(voxels(1, 1, 8, 8, 4))])[0]

    torch.testing.assert_close(states.tokens, alone(network, crops).tokens, atol=1e-5, rtol=1e-5)


def test_drop_path_drops_a_branch_for_whole_samples_of_a_pack() -> None:
    network = encoder(drop_path=0.5).train()
    twins = [Crops(voxels(0, 1, 8, 8, 4).expand(16, -1, -1, -1, -1)), groups()[1]]
    torch.manual_seed(1)

    tokens = network.forward_packed(twins)[0].tokens

    # Equal crops differ by what was dropped, and only by what was dropped for all their tokens.
    samples = tokens.detach().round(decimals=3)
    firsts = {tuple(sample[0].tolist()) for sample in samples}
    wholes = {tuple(sample.flatten().tolist()) for sample in samples}
    assert 1 < len(firsts) == len(wholes) < 17


def test_a_pack_works_in_bf16() -> None:
    network, crops = encoder(), groups()
    expected = network.forward_packed(crops)

    with torch.autocast("cpu", torch.bfloat16):
        packed = network.forward_packed(crops, taps=(4,))

    for states, other in zip(packed, expected, strict=True):
        assert states.taps[0].dtype == torch.float32
        torch.testing.assert_close(states.tokens, other.tokens, atol=0.1, rtol=0)


def test_what_cannot_be_packed_is_refused() -> None:
    network = encoder(default_spacing_mm=None)

    with pytest.raises(ShapeError, match="at least one"):
        network.forward_packed([])
    with pytest.raises(ShapeError, match="2 channels"):
        network.forward_packed([Crops(torch.zeros(1, 1, 4, 4, 2))])
    with pytest.raises(ShapeError, match="taps"):
        network.forward_packed(groups(), taps=(5,))
    with pytest.raises(UserError, match="spacing"):
        network.forward_packed([Crops(voxels(0, 1, 4, 4, 2))])
