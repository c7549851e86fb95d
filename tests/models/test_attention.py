"""Three implementations of attention against one loop and each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mim3d.foundation.errors import ConfigError
from mim3d.models.attention import (
    BF16_CPU_PLAIN_BELOW,
    FP32_CPU_PLAIN_BELOW,
    Attention,
    attention_weights,
    choose_attention,
    padding_bias,
    per_head,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def heads(*shape: int) -> list[Tensor]:
    """Queries, keys and values that are leaves."""
    drawn = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    return [part.clone().requires_grad_() for part in drawn]


def plain(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    return attention_weights(queries, keys, bias) @ values


def test_weights_are_the_written_out_softmax() -> None:
    queries, keys, _ = (part.detach() for part in heads(1, 2, 3, 4))

    weights = attention_weights(queries, keys)

    for head in range(2):
        for i in range(3):
            scores = [math.exp(float(queries[0, head, i] @ keys[0, head, j]) / 2) for j in range(3)]
            expected = [score / sum(scores) for score in scores]
            assert weights[0, head, i].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("asking", [11, 5])
@pytest.mark.parametrize("with_padding", [False, True])
def test_per_head_attention_and_its_gradients_equal_plain_attention(
    with_padding: bool, asking: int
) -> None:
    leaves = [heads(2, 3, asking, 7)[0], *heads(2, 3, 11, 7)[1:]]
    valid = torch.ones(2, 11, dtype=torch.bool)
    valid[1, 8:] = False
    bias = padding_bias(valid, torch.float32) if with_padding else None
    weight = torch.randn(2, 3, asking, 7, generator=torch.Generator().manual_seed(1))

    expected = plain(*leaves, bias)
    truth = torch.autograd.grad((expected * weight).sum(), leaves)
    result = per_head(*leaves, bias)
    gradients = torch.autograd.grad((result * weight).sum(), leaves)

    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)
    for one, other in zip(gradients, truth, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_per_head_attention_passes_torchs_gradient_check() -> None:
    leaves = [part.detach().double().requires_grad_() for part in heads(1, 2, 4, 3)]

    assert torch.autograd.gradcheck(per_head, leaves)


@pytest.mark.parametrize("tokens", [40, 600])
def test_a_layer_gives_the_same_whichever_implementation_is_chosen(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer = Attention(12, 3)
    x = torch.randn(2, tokens, 12)
    valid = torch.rand(2, tokens) > 0.3

    results = []
    for way in ("plain", "per_head", "sdpa"):
        monkeypatch.setattr("mim3d.models.attention.choose_attention", lambda *_, way=way: way)
        results.append(layer(x, valid=valid).tokens)

    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(results[2], results[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", ["plain", "per_head", "sdpa"])
def test_tokens_of_padding_get_no_weight(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("mim3d.models.attention.choose_attention", lambda *_: way)
    layer = Attention(12, 3)
    x = torch.randn(2, 9, 12)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[1, 5:] = False

    result = layer(x, valid=valid).tokens

    torch.testing.assert_close(result[1:, :5], layer(x[1:, :5]).tokens, atol=1e-6, rtol=0)


@pytest.mark.parametrize("way", ["plain", "per_head", "sdpa"])
def test_a_sample_without_any_valid_token_stays_finite(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mim3d.models.attention.choose_attention", lambda *_: way)
    valid = torch.zeros(1, 9, dtype=torch.bool)

    assert Attention(12, 3)(torch.randn(1, 9, 12), valid=valid).tokens.isfinite().all()


def test_asking_for_the_map_changes_nothing_and_gives_rows_that_sum_to_one() -> None:
    torch.manual_seed(0)
    layer = Attention(12, 3)
    x = torch.randn(2, 9, 12)

    with_map = layer(x, wants_map=True)

    torch.testing.assert_close(with_map.tokens, layer(x).tokens, atol=1e-6, rtol=0)
    assert with_map.attention is not None
    assert with_map.attention.shape == (2, 3, 9, 9)
    torch.testing.assert_close(with_map.attention.sum(-1), torch.ones(2, 3, 9))
    assert layer(x).attention is None


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    layer = Attention(12, 3, dropout=0.5)
    x = torch.randn(2, 9, 12)

    assert not torch.equal(layer(x).tokens, layer(x).tokens)
    layer.eval()
    assert torch.equal(layer(x).tokens, layer(x).tokens)


def test_the_rule_goes_by_device_precision_and_length() -> None:
    bf16, fp32 = torch.bfloat16, torch.float32

    assert choose_attention(CPU, bf16, BF16_CPU_PLAIN_BELOW - 1) == "plain"
    assert choose_attention(CPU, bf16, BF16_CPU_PLAIN_BELOW) == "per_head"
    assert choose_attention(CPU, fp32, FP32_CPU_PLAIN_BELOW - 1) == "plain"
    assert choose_attention(CPU, fp32, FP32_CPU_PLAIN_BELOW) == "sdpa"
    assert choose_attention(CUDA, bf16, 10) == "sdpa"


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple"):
        Attention(10, 3)
