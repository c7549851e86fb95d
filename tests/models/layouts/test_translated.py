"""Foreign checkpoints against the modules they come from: every hidden state, and logits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import monai.networks.nets as nets
import pytest
import torch
from foreign_networks import networks
from torch import Tensor, nn

from mim3d.foundation.errors import WeightsError
from mim3d.models.layouts.layout import Layout, guessed, layout_of, layouts, unwrapped
from mim3d.models.layouts.shapes import Said
from mim3d.models.layouts.translated import Translated, translate
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT

# MONAI calls torch's meshgrid without its indexing.
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
SIZE = (16, 24, 8)
"""Three sides; patches of 8 x 4 x 4 give a grid of 2 x 6 x 2."""
PATCH = (8, 4, 4)
GRID = (2, 6, 2)
SAID = Said(patch=PATCH, channels=2, heads=2, grid=GRID)
CLOSE = {"atol": 1e-4, "rtol": 0.0}


def monai_vit(**options: Any) -> nn.Module:
    return networks.MonaiHidden(nets.ViT(2, SIZE, PATCH, 24, 48, 3, 2, **options))


def monai_mae(**options: Any) -> nn.Module:
    return networks.MonaiHidden(
        nets.MaskedAutoEncoderViT(2, SIZE, PATCH, 24, 48, 3, 2, decoder_hidden_size=24,
                                  decoder_num_heads=2, **options)
    )  # fmt: skip


def monai_autoencoder() -> nn.Module:
    return networks.MonaiHidden(
        nets.ViTAutoEnc(2, (16, 48, 32), (4, 16, 16), hidden_size=24, mlp_dim=48, num_layers=2,
                        num_heads=2)
    )  # fmt: skip


ENCODERS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "monai vit": ("monai-vit", monai_vit),
    "monai vit, linear map": ("monai-vit", lambda: monai_vit(proj_type="perceptron")),
    "monai vit, class token and bias": (
        "monai-vit", lambda: monai_vit(classification=True, qkv_bias=True)
    ),
    "monai mae": ("monai-mae", monai_mae),
    "monai mae, linear map": (
        "monai-mae", lambda: monai_mae(proj_type="perceptron", qkv_bias=True)
    ),
    "mim-med3d mae": ("mim-med3d", lambda: networks.MimMae(SIZE, 2, 24, 3, 2, PATCH)),
    "selfmedmae": ("selfmedmae", lambda: networks.SelfMedMae(GRID, 2, 24, 3, 2, PATCH)),
}  # fmt: skip


def state_of(network: nn.Module) -> dict[str, Tensor]:
    inner = getattr(network, "network", network)
    return {key: value.detach().clone() for key, value in inner.state_dict().items()}


def translated(state: Mapping[str, Tensor], said: Said = SAID) -> Translated:
    layout = guessed(unwrapped(state).values())
    assert layout is not None
    return translate(state, layout, said)


def encoder_of(found: Translated) -> VolumeViT:
    encoder = VolumeViT(found.config)
    encoder.load_state_dict(found.encoder, strict=True)
    return encoder.eval()


def check_hidden(encoder: VolumeViT, network: nn.Module, images: Tensor, volume: Tensor) -> None:
    with torch.no_grad():
        last, states = network.hidden(images)  # type: ignore[operator]
        ours = encoder(volume, taps=range(1, encoder.depth + 1))
    assert len(states) == encoder.depth
    for tap, state in zip(ours.taps, states, strict=True):
        torch.testing.assert_close(tap, state, **CLOSE)
    torch.testing.assert_close(ours.tokens, last, **CLOSE)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_hidden_state_is_that_of_the_other_programs_module(name: str) -> None:
    layout, build = ENCODERS[name]
    network = networks.randomised(build())
    images = torch.randn(2, 2, *SIZE, generator=torch.Generator().manual_seed(1))

    found = translated(state_of(network))

    assert found.layout.layout == layout
    assert (found.config.patch, found.config.channels) == (PATCH, 2)
    assert found.config.learned_grid == GRID
    check_hidden(encoder_of(found), network, images, images)


def test_an_autoencoder_of_monai_gives_its_encoder() -> None:
    network = networks.randomised(monai_autoencoder())
    images = torch.randn(1, 2, 16, 48, 32, generator=torch.Generator().manual_seed(1))

    found = translated(state_of(network), Said(heads=2, grid=(4, 3, 2)))

    assert found.layout.layout == "monai-vitautoenc"
    assert found.reasons["conv3d_transpose.weight"] == "the decoder of its pretext task"
    check_hidden(encoder_of(found), network, images, images)


def test_queries_keys_and_values_of_three_maps_become_one() -> None:
    network = networks.randomised(monai_vit(qkv_bias=True))
    state = state_of(network)
    split = {key: value for key, value in state.items() if ".qkv." not in key}
    for key, value in state.items():
        if ".qkv." in key:
            names = (key.replace("qkv", part) for part in ("to_q", "to_k", "to_v"))
            split |= dict(zip(names, value.chunk(3), strict=True))

    found = translated(split)

    assert all(torch.equal(v, found.encoder[k]) for k, v in translated(state).encoder.items())
    assert found.names["blocks.1.attn.to_k.bias"] == "encoder.blocks.1.attention.qkv.bias"


@pytest.mark.parametrize("depth_voxels", [None, 4])
def test_two_dimensional_weights_see_a_picture_and_its_repeats(depth_voxels: int | None) -> None:
    """Inflated, a volume that is the same in all slices has the picture's tokens."""
    network = networks.randomised(networks.FacebookMae(24, 3, 24, 3, 2, 8))
    pictures = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))

    found = translated(state_of(network), Said(heads=2, depth_voxels=depth_voxels))

    assert found.layout.layout == "facebook-mae"
    assert found.config.patch == (8, 8, depth_voxels or 1)
    assert found.config.learned_grid == (3, 3, 1)
    volume = pictures[..., None].expand(-1, -1, -1, -1, depth_voxels or 1)
    check_hidden(encoder_of(found), network, pictures, volume)


def test_a_two_dimensional_vit_of_monai_is_one_voxel_thick() -> None:
    network = networks.MonaiHidden(nets.ViT(1, (16, 24), (8, 4), 24, 48, 2, 2, spatial_dims=2))
    networks.randomised(network)
    pictures = torch.randn(2, 1, 16, 24, generator=torch.Generator().manual_seed(1))

    found = translated(state_of(network), Said(heads=2, grid=(2, 6, 1)))

    assert found.config.patch == (8, 4, 1)
    check_hidden(encoder_of(found), network, pictures, pictures[..., None])


def unetr_of(found: Translated) -> UNETR:
    network = UNETR(VolumeViT(found.config), found.outputs, found.decoder_config)
    whole = {f"encoder.{key}": value for key, value in found.encoder.items()} | found.decoder
    network.load_state_dict(whole, strict=True)
    return network.eval()


@pytest.mark.parametrize("kind", ["monai", "selfmedmae", "two axes"])
def test_a_whole_unetr_gives_the_same_logits(kind: str) -> None:
    size = (32, 48) if kind == "two axes" else (32, 48, 16)
    if kind == "selfmedmae":
        theirs = networks.SelfMedUnetr(size, 2, 3, 48, 4, 4)
    else:
        theirs = nets.UNETR(2, 3, size, 4, 48, 96, num_heads=4, spatial_dims=len(size))
    networks.randomised(theirs)
    images = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(1))
    volume = images if images.ndim == 5 else images[..., None]

    found = translated(state_of(theirs), Said(heads=4, grid=(2, 3, 1)))
    with torch.no_grad():
        expected, logits = theirs(images), unetr_of(found)(volume)

    assert found.decoder_config is not None
    assert found.decoder_config.taps == (4, 7, 10, 12)
    torch.testing.assert_close(logits, expected.reshape(logits.shape), **CLOSE)


def test_a_decoder_with_norms_of_its_own_is_left_out_and_the_encoder_taken() -> None:
    theirs = nets.UNETR(1, 2, (16, 16, 16), 4, 24, 48, num_heads=2, norm_name="batch")

    found = translated(state_of(theirs), Said(heads=2))

    assert found.decoder == {}
    assert found.outputs == 0
    reason = found.reasons["encoder1.layer.conv1.conv.weight"]
    assert reason.startswith("the decoder is not taken: `encoder1.layer.norm1.weight` has no")
    encoder_of(found)


def test_an_unknown_key_inside_the_encoder_is_refused_by_name() -> None:
    state = state_of(monai_vit()) | {"blocks.1.attn.rel_pos.weight": torch.ones(3)}

    with pytest.raises(WeightsError, match=r"computes with `blocks\.1\.attn\.rel_pos\.weight`"):
        translated(state)


def test_what_is_never_used_and_what_is_outside_are_left_out_with_a_reason() -> None:
    state = state_of(monai_vit(classification=True)) | {"ema_steps": torch.ones(())}

    found = translated(state)

    left = {key: why for key, why in found.reasons.items() if not key.startswith("blocks.")}
    assert left == {
        "classification_head.0.weight": "a head of its task",
        "classification_head.0.bias": "a head of its task",
        "ema_steps": "no counterpart",
    }
    assert found.reasons["blocks.2.norm_cross_attn.weight"] == "MONAI makes it and never uses it"
    assert found.names["norm.bias"] == "encoder.norm.bias"


def test_wrappers_of_training_programs_come_off() -> None:
    state = state_of(monai_vit())

    wrapped = translated({f"model.module.{key}": value for key, value in state.items()})

    assert wrapped.encoder.keys() == translated(state).encoder.keys()
    assert wrapped.names["model.module.norm.bias"] == "encoder.norm.bias"


def test_scales_of_residual_branches_are_taken() -> None:
    network = networks.FacebookMae(16, 1, 24, 2, 2, 8)
    state = state_of(network)
    state |= {f"blocks.{i}.ls{j}.gamma": torch.full((24,), 0.1 * j) for i in (0, 1) for j in (1, 2)}

    found = translated(state, Said(heads=2))

    assert found.config.layer_scale is not None
    assert torch.equal(encoder_of(found).blocks[1].scale2.factor, state["blocks.1.ls2.gamma"])


def test_the_sine_cosine_table_of_selfmedmae_is_recognised_and_monais_is_another() -> None:
    """MONAI (1.6.1) writes the second axis where the first belongs."""
    state = state_of(networks.SelfMedMae(GRID, 2, 24, 3, 2, PATCH))
    rows = []
    for place in itertools.product(range(2), range(6), range(2)):
        angles = [[at / 10000 ** (k / 4) for k in range(4)] for at in place]
        rows.append([wave(a) for axis in angles for wave in (math.sin, math.cos) for a in axis])
    state["encoder_pos_embed"] = torch.tensor([rows])

    assert any("sincos_index" in line for line in translated(state).remarks)
    theirs = state_of(monai_vit(pos_embed_type="sincos"))
    assert not any("sincos_index" in line for line in translated(theirs).remarks)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (Said(patch=PATCH, channels=2, heads=2), "24 rows, which are no cube"),
        (Said(patch=PATCH, channels=2, grid=GRID), "24 is divided into"),
        (Said(patch=(3, 3, 3), channels=3, heads=2, grid=GRID), "a linear map of 256 numbers"),
        (Said(patch=PATCH, channels=2, heads=2, grid=GRID, depth_voxels=4), "nothing to inflate"),
    ],
)
def test_what_shapes_do_not_say_is_asked_for(said: Said, why: str) -> None:
    with pytest.raises(WeightsError, match=why):
        translated(state_of(monai_vit(proj_type="perceptron")), said)


def test_a_layout_that_does_not_fit_names_what_is_missing_and_what_it_looks_like() -> None:
    state = state_of(monai_vit())

    with pytest.raises(WeightsError, match=r"`selfmedmae`: it has no `encoder\.patch_embed") as e:
        layout_of("selfmedmae", state, source="w.pt")
    assert "looks like `--convert.layout monai-vit`" in str(e.value.remedy)
    with pytest.raises(WeightsError) as e:
        layout_of("facebook-mae", {"stem.weight": 0}, source="w.pt")
    assert "its first keys are `stem.weight`" in str(e.value.remedy)


@pytest.mark.parametrize("layout", layouts(), ids=lambda one: f"{one.layout}: {one.source[-20:]}")
def test_a_layout_names_every_mark_and_only_our_keys(layout: Layout) -> None:
    for mark in layout.marks:
        assert layout.ours(mark) is not None or layout.reason(mark) is not None
    assert all(target.startswith(("encoder.", "decoder.")) for target in layout.keys.values())
    assert layout_of(layout.layout, layout.marks, source="w").layout == layout.layout
