"""The encoder: every option does what it says, on crops with three different sides."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mim3d.config.encoder import EncoderConfig
from mim3d.foundation.errors import ShapeError, UserError
from mim3d.models.encoder_input import Replacement
from mim3d.models.presets import PRESETS
from mim3d.models.vit import VolumeViT
from mim3d.tokens.masking import split_tokens

SMALL = EncoderConfig(
    width=24, depth=4, heads=2, patch=(4, 4, 2), channels=2, learned_grid=(3, 4, 4),
    default_spacing_mm=(1.0, 2.0, 0.5),
)  # fmt: skip
KINDS = ["learned", "sincos_index", "sincos_mm", "rotary_mm", "rotary_index"]


def encoder(**fields: object) -> VolumeViT:
    torch.manual_seed(0)
    return VolumeViT(replace(SMALL, **fields)).eval()  # type: ignore[arg-type]


def crop(batch: int = 2, size: tuple[int, int, int] = (11, 13, 7)) -> torch.Tensor:
    return torch.randn(batch, 2, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_has_its_size(name: str) -> None:
    with torch.device("meta"):
        built = VolumeViT.preset(name, patch=(8, 8, 4))

    assert (built.width, built.depth, built.heads) == PRESETS[name]
    assert built.patch == (8, 8, 4)
    assert len(built.blocks) == built.depth


@pytest.mark.parametrize("patch", [(16, 16, 16), (8, 8, 8), (4, 4, 4), (8, 8, 2), (5, 3, 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_patch_and_number_of_channels_runs(patch: tuple[int, int, int], channels: int) -> None:
    states = encoder(patch=patch, channels=channels)(torch.randn(1, channels, 11, 13, 7))

    x, y, z = (-(-side // edge) for side, edge in zip((11, 13, 7), patch, strict=True))
    assert states.tokens.shape == (1, x * y * z, 24)
    assert states.grid.counts == (x, y, z)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_positions_knows_where_a_patch_lies(kind: str) -> None:
    network, voxels = encoder(positions=kind), crop(1, (12, 16, 8))
    swapped = voxels.clone()
    swapped[:, :, :4, :4, :2] = voxels[:, :, 8:, 4:8, 6:]
    swapped[:, :, 8:, 4:8, 6:] = voxels[:, :, :4, :4, :2]

    before, after = network(voxels).tokens, network(swapped).tokens

    # Without positions a transformer could not tell: all other tokens would stay as they were.
    assert (after[:, 1:39] - before[:, 1:39]).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("kind", ["sincos_mm", "rotary_mm"])
def test_spacing_enters_positions_in_mm(kind: str) -> None:
    network, voxels = encoder(positions=kind), crop()

    fine = network(voxels, (1.0, 1.0, 1.0)).tokens
    each = network(voxels, torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 3.0]])).tokens

    torch.testing.assert_close(each[0], fine[0])
    assert not torch.allclose(each[1], fine[1], atol=1e-3)


@pytest.mark.parametrize("kind", ["learned", "sincos_index", "rotary_index"])
def test_spacing_does_not_enter_positions_by_index(kind: str) -> None:
    network, voxels = encoder(positions=kind), crop()

    assert torch.equal(network(voxels, (3.0, 1.0, 1.0)).tokens, network(voxels).tokens)


def test_rotary_positions_by_index_are_those_of_1_mm_whatever_the_spacing() -> None:
    voxels = crop()
    by_mm, by_index = encoder(positions="rotary_mm"), encoder(positions="rotary_index")
    assert by_mm.state_dict().keys() == by_index.state_dict().keys()
    by_index.load_state_dict(by_mm.state_dict())

    tokens = by_index(voxels, torch.tensor([[0.7, 1.0, 3.0], [2.0, 0.15, 1.5]])).tokens

    assert torch.equal(tokens, by_mm(voxels, (1.0, 1.0, 1.0)).tokens)


def test_without_spacing_the_default_is_used_and_else_it_is_an_error() -> None:
    network, voxels = encoder(), crop()

    assert torch.equal(network(voxels).tokens, network(voxels, (1.0, 2.0, 0.5)).tokens)
    with pytest.raises(UserError, match="spacing"):
        encoder(default_spacing_mm=None)(voxels)


def test_taps_are_the_residual_stream_after_those_blocks() -> None:
    network, voxels = encoder(), crop()
    seen = []
    for block in network.blocks:
        block.register_forward_hook(lambda _module, _inputs, result: seen.append(result.tokens))

    states = network(voxels, taps=(1, 3, 4))

    for tap, number in zip(states.taps, (1, 3, 4), strict=True):
        assert torch.equal(tap, seen[number - 1])
    assert torch.equal(states.tokens, network.norm(states.taps[-1]))


def test_prefix_tokens_take_part_and_are_handed_back_apart() -> None:
    plain, voxels = encoder(), crop()
    network = encoder(class_token=True, registers=2)

    states = network(voxels, taps=(2,), attention_maps=(4,))

    assert network.prefix == 3
    assert states.prefix is not None
    assert states.prefix.shape == (2, 3, 24)
    assert states.tokens.shape == states.taps[0].shape == plain(voxels).tokens.shape
    assert states.attention[0].shape == (2, 2, 51, 51)
    states.tokens.sum().backward()
    assert network.class_token is not None
    assert network.class_token.grad is not None
    assert network.class_token.grad.abs().sum() > 0


def test_attention_maps_are_those_of_the_blocks_asked_for() -> None:
    network, voxels = encoder(), crop()

    states = network(voxels, attention_maps=(4, 2))

    assert torch.equal(states.attention[0], network(voxels, attention_maps=(4,)).attention[0])
    assert torch.equal(states.attention[1], network(voxels, attention_maps=(2,)).attention[0])
    torch.testing.assert_close(states.tokens, network(voxels).tokens, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_split_encodes_the_visible_tokens_at_their_own_places(kind: str) -> None:
    network, voxels = encoder(positions=kind), crop()
    everything = split_tokens(torch.rand(2, 48), 0)
    half = split_tokens(torch.rand(2, 48, generator=torch.Generator().manual_seed(2)), 30)

    all_visible = network(voxels, split=everything)
    states = network(voxels, split=half)

    torch.testing.assert_close(all_visible.tokens, network(voxels).tokens, atol=1e-5, rtol=0)
    assert states.tokens.shape == (2, 18, 24)


def test_replaced_tokens_keep_their_position() -> None:
    network, voxels = encoder(), crop()
    masked = torch.zeros(2, 48, dtype=torch.bool)
    masked[:, 5:9] = True

    states = network(voxels, replaced=Replacement(masked, torch.zeros(24)))

    changed = voxels.clone()
    # tokens 5 to 8 lie at (0, 1, 1) to (0, 2, 0): all in the first four voxels of x
    changed[:, :, :4, 4:8, 2:8] += 1
    changed[:, :, :4, 8:12, 0:2] -= 1
    again = network(changed, replaced=Replacement(masked, torch.zeros(24)))
    assert torch.equal(again.tokens, states.tokens)
    assert len(states.tokens[0, 5:9].unique(dim=0)) == 4


def test_layer_scale_and_drop_path_reach_the_blocks() -> None:
    network = encoder(layer_scale=0.1, drop_path=0.3)

    assert [block.drop_path.rate for block in network.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert all((block.scale1.factor == 0.1).all() for block in network.blocks)


def test_eval_is_deterministic_with_every_dropout() -> None:
    network, voxels = encoder(attention_dropout=0.5, drop_path=0.5), crop()

    assert torch.equal(network(voxels).tokens, network(voxels).tokens)
    network.train()
    assert not torch.equal(network(voxels).tokens, network(voxels).tokens)


@pytest.mark.parametrize(("checkpointing", "calls"), [(False, 1), (True, 2)])
def test_checkpointing_computes_a_block_again_in_the_backward_pass(
    checkpointing: bool, calls: int
) -> None:
    network = encoder(checkpointing=checkpointing)
    called = []
    network.blocks[1].mlp.register_forward_pre_hook(lambda *_: called.append(1))

    network(crop()).tokens.sum().backward()

    assert len(called) == calls


def test_checkpointing_gives_the_same_gradients() -> None:
    results = []
    for checkpointing in (False, True):
        network = encoder(checkpointing=checkpointing, drop_path=0.4, attention_dropout=0.2).train()
        torch.manual_seed(3)
        network(crop(), taps=(2,)).taps[0].square().sum().backward()
        results.append([p.grad for p in network.blocks[0].parameters()])

    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_autocast_stays_near_fp32_and_keeps_the_stream_in_fp32(kind: str) -> None:
    network, voxels = encoder(positions=kind), crop()

    with torch.autocast("cpu", torch.bfloat16):
        states = network(voxels, taps=(4,))

    assert states.taps[0].dtype == torch.float32
    assert (states.tokens.float() - network(voxels).tokens).abs().max() < 0.1


@pytest.mark.filterwarnings("ignore")
def test_the_default_path_compiles_as_one_graph() -> None:
    torch._dynamo.reset()
    network, voxels = encoder(), crop()

    compiled = torch.compile(network, fullgraph=True, backend="eager")

    torch.testing.assert_close(compiled(voxels).tokens, network(voxels).tokens)
    torch._dynamo.reset()


def test_every_parameter_learns() -> None:
    for kind in KINDS:
        network = encoder(positions=kind, class_token=True, registers=1, layer_scale=0.5)
        network(crop()).tokens.square().mean().backward()
        network(crop()).tokens[..., 0].sum().backward()

        still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        assert still == []


def test_wrong_inputs_are_refused_at_the_door() -> None:
    network = encoder()

    with pytest.raises(ShapeError, match="b c x y z"):
        network(torch.zeros(2, 11, 13, 7))
    with pytest.raises(ShapeError, match="2 channels"):
        network(torch.zeros(1, 3, 11, 13, 7))
    with pytest.raises(ShapeError, match="taps lie between 1 and 4"):
        network(crop(), taps=(5,))
    with pytest.raises(ShapeError, match="spacing"):
        network(crop(), torch.ones(3, 3))


def test_without_channels_in_the_config_there_is_one() -> None:
    network = VolumeViT(replace(SMALL, channels=None))

    assert network.channels == network.config.channels == 1


# Xavier: uniform up to the root of 6 / (24 + 96), so a deviation of the root of 2 / 120
@pytest.mark.parametrize(("how", "deviation"), [("xavier", (2 / 120) ** 0.5), ("normal", 0.02)])
def test_linear_maps_are_drawn_as_the_config_says(how: str, deviation: float) -> None:
    network = encoder(initialisation=how)

    for block in network.blocks:
        weights = block.mlp.widen.weight
        assert weights.std().item() == pytest.approx(deviation, rel=0.1)
        assert (block.mlp.widen.bias == 0).all()


def test_the_mlps_width_and_the_qkv_bias_follow_the_config() -> None:
    block = encoder(mlp_ratio=2.5, qkv_bias=False).blocks[0]

    assert block.mlp.widen.out_features == 60
    assert block.attention.qkv.bias is None


@pytest.mark.parametrize("kind", ["sincos_mm", "rotary_mm", "rotary_index"])
def test_wavelengths_follow_the_config(kind: str) -> None:
    voxels = crop()

    one = encoder(positions=kind, wavelengths_mm=(7.0, 70.0))(voxels).tokens
    other = encoder(positions=kind, wavelengths_mm=(9.0, 700.0))(voxels).tokens

    assert not torch.allclose(one, other, atol=1e-3)
