"""Projector, predictor, and what a crop is as a whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mim3d.config.encoder import EncoderConfig
from mim3d.foundation.errors import ConfigError
from mim3d.models.vit import VolumeViT
from mim3d.objectives.heads import BatchNorm, Predictor, Projector, crop_features

ENCODER = EncoderConfig(width=24, depth=2, heads=2, patch=(4, 4, 2), default_spacing_mm=(1, 1, 2))
SIZE = (11, 13, 7)


def test_a_projector_is_linear_maps_with_layer_norm_and_gelu_between() -> None:
    torch.manual_seed(0)
    projector = Projector(5, 8, 3, 4)
    features = torch.randn(3, 5)

    first, second, last = (part for part in projector.modules() if isinstance(part, nn.Linear))
    expected = features
    for layer in (first, second):
        hidden = expected @ layer.weight.T + layer.bias
        spread = hidden.var(dim=1, unbiased=False, keepdim=True) + 1e-5
        hidden = (hidden - hidden.mean(dim=1, keepdim=True)) / spread.sqrt()
        expected = F.gelu(hidden)
    expected = expected @ last.weight.T + last.bias

    torch.testing.assert_close(projector(features), expected)
    assert [tuple(p.weight.shape) for p in (first, second, last)] == [(8, 5), (8, 8), (4, 8)]


def test_batch_norm_is_torchs_in_value_and_gradients() -> None:
    torch.manual_seed(0)
    ours, theirs = BatchNorm(5), nn.BatchNorm1d(5)
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.copy_(torch.randn(5))
            other.copy_(mine)
    rows = 3 * torch.randn(7, 5) + 4
    first, second = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    weights = torch.randn(7, 5)

    (ours(first, together=True) * weights).sum().backward()
    (theirs(second) * weights).sum().backward()

    torch.testing.assert_close(ours(rows, together=False), theirs(rows))
    torch.testing.assert_close(first.grad, second.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_with_batch_norm_what_all_rows_have_in_common_does_not_matter() -> None:
    projector = Projector(5, 8, 2, 4, norm="batch")
    features = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))

    torch.testing.assert_close(projector(features + 7), projector(features), atol=1e-4, rtol=1e-4)


def test_rows_of_a_batch_do_not_know_of_each_other() -> None:
    projector = Projector(5, 8, 2, 4, last_norm=True)
    features = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))

    alone = torch.cat([projector(row[None]) for row in features])

    torch.testing.assert_close(projector(features), alone)


def test_the_last_norm_gives_mean_0_and_deviation_1_and_has_no_weights() -> None:
    plain, normed = Projector(5, 8, 2, 6), Projector(5, 8, 2, 6, last_norm=True)

    projected = normed(torch.randn(3, 5))

    torch.testing.assert_close(projected.mean(dim=1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(projected.std(dim=1, correction=0), torch.ones(3), atol=1e-3, rtol=0)
    assert plain.state_dict().keys() == normed.state_dict().keys()


def test_one_layer_is_a_linear_map_alone() -> None:
    assert [type(part) for part in Projector(5, 8, 1, 4).layers] == [nn.Linear]


def test_a_predictor_keeps_the_width() -> None:
    assert Predictor(6, 20)(torch.zeros(3, 6)).shape == (3, 6)


@pytest.mark.parametrize(("width", "depth", "out"), [(0, 2, 4), (8, 0, 4), (8, 2, 0)])
def test_a_projector_without_layers_or_width_is_refused(width: int, depth: int, out: int) -> None:
    with pytest.raises(ConfigError, match="projector_depth"):
        Projector(5, width, depth, out)


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("class_token", [False, True])
def test_the_whole_is_the_class_token_or_the_mean_of_valid_tokens(
    class_token: bool, registers: int
) -> None:
    torch.manual_seed(0)
    encoder = VolumeViT(replace(ENCODER, class_token=class_token, registers=registers))
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    valid[0, 4:] = False
    valid[1, :, 8:, 3:] = False
    states = encoder(torch.randn(2, 1, *SIZE), valid=valid)

    whole = crop_features(states)

    assert states.token_valid is not None
    for i in range(2):
        there = [t for t, v in zip(states.tokens[i], states.token_valid[i], strict=True) if v]
        assert 0 < len(there) < states.tokens.shape[1]
        mean = sum(there) / len(there)  # type: ignore[arg-type]
        assert states.prefix is not None or not (class_token or registers)
        expected = states.prefix[i, 0] if class_token and states.prefix is not None else mean
        torch.testing.assert_close(whole[i], expected)


def test_what_stands_in_padding_does_not_reach_the_whole() -> None:
    torch.manual_seed(0)
    encoder = VolumeViT(ENCODER)
    valid = torch.ones(1, *SIZE, dtype=torch.bool)
    valid[:, 6:] = False
    voxels = torch.randn(1, 1, *SIZE)
    other = torch.where(valid[:, None], voxels, torch.nan)

    first, second = (crop_features(encoder(v, valid=valid)) for v in (voxels, other))

    assert torch.equal(first, second)
