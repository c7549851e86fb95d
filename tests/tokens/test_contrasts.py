"""One map a contrast: against a loop over tokens and contrasts, and blind to what is not shown."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mim3d.foundation.errors import ConfigError
from mim3d.tokens.contrasts import ContrastEmbedding, places_of, spread

PATCH = (2, 3, 1)
VOXELS, WIDTH, CONTRASTS = 6, 5, 3


def embedding() -> ContrastEmbedding:
    torch.manual_seed(0)
    made = ContrastEmbedding(CONTRASTS, PATCH, WIDTH)
    with torch.no_grad():
        made.projection.bias.normal_()
    return made


def patches(b: int = 2, n: int = 7) -> Tensor:
    return torch.randn(b, n, CONTRASTS * VOXELS, generator=torch.Generator().manual_seed(1))


def some_shown(b: int = 2, n: int = 7) -> Tensor:
    shown = torch.rand(b, n, CONTRASTS, generator=torch.Generator().manual_seed(2)) < 0.5
    shown[0, 0] = False
    shown[0, 1] = True
    return shown


def slow(made: ContrastEmbedding, given: Tensor, shown: Tensor) -> Tensor:
    """Token by token, contrast by contrast, as the docstring's formula says."""
    maps = made.projection.weight.reshape(WIDTH, CONTRASTS, VOXELS)
    tokens = made.projection.bias.expand(*given.shape[:2], WIDTH).clone()
    for i in range(given.shape[0]):
        for j in range(given.shape[1]):
            each = [
                maps[:, c] @ given[i, j, c * VOXELS : (c + 1) * VOXELS] + made.contrast_tokens[c]
                for c in range(CONTRASTS)
                if shown[i, j, c]
            ]
            if each:
                tokens[i, j] += sum(each[1:], start=each[0]) / len(each)
    return tokens


def test_a_token_is_the_mean_over_the_contrasts_that_it_shows() -> None:
    made, given, shown = embedding(), patches(), some_shown()

    torch.testing.assert_close(made(given, shown), slow(made, given, shown))


def test_tokens_at_an_index_are_those_of_all() -> None:
    made, given, shown = embedding(), patches(), some_shown()
    index = torch.tensor([[0, 4, 6], [1, 2, 5]])

    chosen = made(given, shown, index)

    expected = made(given, shown).gather(1, index[..., None].expand(-1, -1, WIDTH))
    torch.testing.assert_close(chosen, expected)
    torch.testing.assert_close(
        made(given, shown[:, 2:3], index), made(given, shown[:, 2:3].expand(-1, 7, -1), index)
    )


def test_what_is_not_shown_does_not_matter_even_if_it_is_nan() -> None:
    made, given, shown = embedding(), patches(), some_shown()
    other = torch.where(shown.repeat_interleave(VOXELS, dim=-1), given, torch.nan)

    assert torch.equal(made(other, shown), made(given, shown))


def test_a_gradient_reaches_only_what_is_shown() -> None:
    made, given = embedding(), patches().requires_grad_()
    shown = some_shown()

    made(given, shown).square().sum().backward()

    assert given.grad is not None
    reached = given.grad.reshape(2, 7, CONTRASTS, VOXELS).abs().sum(-1) > 0
    assert torch.equal(reached, shown)


def test_each_map_begins_as_that_of_a_volume_of_one_contrast() -> None:
    torch.manual_seed(0)
    made = ContrastEmbedding(CONTRASTS, (8, 8, 8), 192)
    torch.nn.init.xavier_uniform_(made.projection.weight)
    bound = math.sqrt(6 / (512 + 192))  # Xavier-uniform of 512 inputs and 192 outputs

    assert made.projection.weight.abs().max() < 0.8 * bound
    made.initialise("xavier")

    for weight in made.projection.weight.chunk(CONTRASTS, dim=1):
        assert 0.99 * bound < float(weight.detach().abs().max()) <= bound


def test_channels_are_known_by_name_in_any_order() -> None:
    assert places_of(["T2", "T1"], ["T1", "FLAIR", "T2"], "it") == (2, 0)


def test_an_unknown_name_lists_both_sides() -> None:
    with pytest.raises(ConfigError) as caught:
        places_of(["T2", "PD"], ["T1", "T2"], "store `s`")

    assert str(caught.value.what) == (
        "store `s` has the contrast `PD`, which the encoder does not know"
    )
    assert "`T2`, `PD`" in str(caught.value.remedy)
    assert "`T1`, `T2`" in str(caught.value.remedy)


def test_two_channels_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="more than one contrast called `T1`"):
        places_of(["T1", "T1"], ["T1", "T2"], "it")


def test_channels_are_spread_to_their_places() -> None:
    channels = torch.arange(1.0, 13.0).reshape(1, 2, 2, 3, 1)

    whole = spread(channels, (2, 0), 3, fill=-1.0)

    assert torch.equal(whole[:, 2], channels[:, 0])
    assert torch.equal(whole[:, 0], channels[:, 1])
    assert bool((whole[:, 1] == -1).all())
