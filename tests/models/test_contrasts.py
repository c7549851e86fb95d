"""Encoders and segmenters that take any of their contrasts, by name."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.config.task import DecoderConfig
from mim3d.foundation.errors import ConfigError, ShapeError
from mim3d.models.adaptation import adapted_tensors
from mim3d.models.encoder_input import Crops
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.tokens.masking import split_tokens

NAMES = ("T1", "T2", "FLAIR")
SIZE = (11, 13, 7)
CONFIG = EncoderConfig(
    width=24, depth=4, heads=2, patch=(4, 4, 2), embedding="per_contrast", contrasts=NAMES,
    default_spacing_mm=(1.0, 2.0, 0.5),
)  # fmt: skip


def encoder(**fields: object) -> VolumeViT:
    torch.manual_seed(0)
    return VolumeViT(replace(CONFIG, **fields)).eval()  # type: ignore[arg-type]


def crops(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, *SIZE, generator=torch.Generator().manual_seed(1))


def test_an_encoder_has_a_channel_for_each_contrast_it_names() -> None:
    made = encoder()

    assert made.contrasts == NAMES
    assert made.config.channels == made.channels == 3


def test_the_sequence_does_not_grow_with_the_contrasts() -> None:
    states = encoder()(crops())

    assert states.tokens.shape == (2, 3 * 4 * 4, 24)


def test_a_volume_of_some_contrasts_gives_what_the_others_missing_gives() -> None:
    made, voxels = encoder(), crops()
    present = torch.tensor([[True, False, True]]).expand(2, -1)

    missing = made(voxels, present=present).tokens
    made.carry(["FLAIR", "T1"])

    assert torch.equal(made(voxels[:, [2, 0]]).tokens, missing)
    made.carry(["T1", "T2", "FLAIR"])
    assert not torch.allclose(made(voxels).tokens, missing, atol=1e-3)


def test_the_order_of_the_channels_does_not_matter_once_they_are_named() -> None:
    made, voxels = encoder(), crops()

    before = made(voxels).tokens
    made.carry(["T2", "FLAIR", "T1"])

    assert torch.equal(made(voxels[:, [1, 2, 0]]).tokens, before)


def test_a_missing_contrast_does_not_matter_bit_for_bit() -> None:
    made, voxels = encoder(), crops()
    present = torch.tensor([[True, False, True], [False, True, True]])
    other = torch.where(present[:, :, None, None, None], voxels, torch.nan)

    assert torch.equal(made(voxels, present=present).tokens, made(other, present=present).tokens)


def test_samples_of_a_batch_may_miss_different_contrasts() -> None:
    made, voxels = encoder(), crops()
    present = torch.tensor([[True, False, True], [False, True, False]])

    both = made(voxels, present=present).tokens

    for i in range(2):
        alone = made(voxels[i : i + 1], present=present[i : i + 1]).tokens
        torch.testing.assert_close(both[i : i + 1], alone)


def test_packed_crops_are_those_of_one_size() -> None:
    made, voxels = encoder(), crops()
    made.carry(["FLAIR", "T1"])
    small = voxels[:1, :2, :8, :, :4]

    packed = made.forward_packed([Crops(voxels[:, :2]), Crops(small)])

    torch.testing.assert_close(packed[0].tokens, made(voxels[:, :2]).tokens, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(packed[1].tokens, made(small).tokens, atol=2e-5, rtol=1e-4)


def test_contrasts_that_a_token_does_not_show_do_not_matter() -> None:
    made, voxels = encoder(), crops()
    n = 3 * 4 * 4
    shown = torch.rand(2, n, 3, generator=torch.Generator().manual_seed(3)) < 0.5
    split = split_tokens(torch.rand(2, n, generator=torch.Generator().manual_seed(4)), 20)
    # Voxels behind the tokens' hidden contrasts, found by the tokens' own places.
    counts, (px, py, pz) = (3, 4, 4), made.patch
    other = voxels.clone()
    for i in range(2):
        for token in range(n):
            x, rest = divmod(token, counts[1] * counts[2])
            y, z = divmod(rest, counts[2])
            for c in range(3):
                if not shown[i, token, c]:
                    other[i, c, x * px : (x + 1) * px, y * py : (y + 1) * py,
                          z * pz : (z + 1) * pz] = 1e6  # fmt: skip

    for chosen in (None, split):
        before = made(voxels, split=chosen, shown=shown).tokens
        assert torch.equal(made(other, split=chosen, shown=shown).tokens, before)


def test_another_patch_is_taken_as_by_a_joint_encoder() -> None:
    made, voxels = encoder(), crops()

    assert made(voxels, patch=(8, 8, 2)).tokens.shape == (2, 2 * 2 * 4, 24)
    made.carry(["T2"])
    assert made(voxels[:, :1], patch=(8, 4, 2)).tokens.shape == (2, 2 * 4 * 4, 24)


DECODERS = get_args(get_type_hints(DecoderConfig)["name"])


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("direct", ["none", "random"])
def test_no_decoder_looks_at_a_missing_contrast(decoder: str, direct: str) -> None:
    torch.manual_seed(0)
    config = DecoderConfig(name=decoder, feature_size=4, direct=direct)  # type: ignore[arg-type]
    made = UNETR(encoder(), 3, config).eval()
    voxels = crops()
    present = torch.tensor([[True, False, True], [True, False, True]])
    other = voxels.clone()
    other[:, 1] = torch.nan

    missing = made(voxels, present=present)
    made.encoder.carry(["FLAIR", "T1"])

    assert bool(missing.isfinite().all())
    assert torch.equal(made(voxels[:, [2, 0]]), missing)
    made.encoder.carry(NAMES)
    assert torch.equal(made(other, present=present), missing)
    assert not torch.equal(made(voxels), missing)


@pytest.mark.parametrize("held", [("T1",), ("T2", "FLAIR"), NAMES])
def test_weights_of_one_channel_give_its_tokens_in_any_contrasts(held: tuple[str, ...]) -> None:
    joint = encoder(embedding="joint", contrasts=(), channels=1)
    made = encoder()
    tensors, adapted = adapted_tensors(
        joint.state_dict(), joint.config, made.config, parts=["channels"]
    )
    made.load_state_dict(tensors)
    made.carry(held)
    one = crops(1)

    copies = made(one.expand(-1, len(held), -1, -1, -1)).tokens

    torch.testing.assert_close(copies, joint(one).tokens, atol=1e-5, rtol=1e-5)
    assert {change.key for change in adapted} >= {"embedding.projection.weight"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"embedding": "joint"}, "`encoder.embedding joint` knows none"),
        ({"stem": "convolutional"}, "has no `encoder.stem convolutional`"),
        ({"channels": 2}, "`encoder.channels` is 2 beside 3 `encoder.contrasts`"),
        ({"contrasts": ("T1", "T1")}, "more than one contrast called `T1`"),
        ({"embedding": "several"}, "not one of joint, per_contrast"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    fields: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        encoder(**fields)


def test_a_joint_encoder_refuses_a_missing_channel() -> None:
    made = encoder(embedding="joint", contrasts=(), channels=3)

    with pytest.raises(ConfigError, match="needs every channel"):
        made(crops(), present=torch.ones(2, 3, dtype=torch.bool))
    made.carry(["a", "b"])  # it knows no names: nothing changes
    assert made(crops()).tokens.shape[1] == 48


def test_another_number_of_channels_than_was_named_is_refused() -> None:
    made = encoder()
    made.carry(["T1", "T2"])

    with pytest.raises(ShapeError, match="expects 2 contrasts, got 3"):
        made(crops())
    with pytest.raises(ConfigError, match="contrast `PD`"):
        made.carry(["PD"])
