"""Attention in segments against a loop over samples, in each of its ways."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mim3d.models import packed_attention
from mim3d.models.attention import Attention, Context
from mim3d.models.blocks import Block, DropPath
from mim3d.models.packed_attention import RUNS_MOST, choose_way
from mim3d.tokens.packing import Segments
from mim3d.tokens.positions import Rotation

LENGTHS = (5, 5, 9, 1, 3, 3, 3)
WAYS = ["runs", "nested", "masked"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # Torch's own fallback on the CPU makes nested tensors of an older layout.
        warnings.filterwarnings("ignore", message="The PyTorch API of nested tensors")
        yield


def packed(seed: int = 0, d: int = 12) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(1, sum(LENGTHS), d, generator=source).requires_grad_()


def angles(n: int) -> Rotation:
    turned = torch.randn(1, n, 2, generator=torch.Generator().manual_seed(5))
    return Rotation(turned.cos(), turned.sin())


def one_by_one(layer: Attention, tokens: Tensor, rotation: Rotation | None) -> Tensor:
    parts, start = [], 0
    for length in LENGTHS:
        here = slice(start, start + length)
        turned = (
            None if rotation is None else Rotation(rotation.cos[:, here], rotation.sin[:, here])
        )
        parts.append(layer(tokens[:, here], rotation=turned).tokens)
        start += length
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rotates", [False, True])
def test_segments_give_what_each_sample_gives_alone(
    way: str, rotates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail with a mask that is all true."""
    monkeypatch.setattr(packed_attention, "choose_way", lambda *_: way)
    torch.manual_seed(0)
    layer, tokens = Attention(12, 3), packed()
    rotation = angles(sum(LENGTHS)) if rotates else None
    weight = torch.randn(1, sum(LENGTHS), 12, generator=torch.Generator().manual_seed(1))
    leaves = [tokens, *layer.parameters()]

    expected = one_by_one(layer, tokens, rotation)
    truth = torch.autograd.grad((expected * weight).sum(), leaves)
    result = layer(tokens, rotation=rotation, segments=Segments(LENGTHS)).tokens
    gradients = torch.autograd.grad((result * weight).sum(), leaves)

    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)
    for one, other in zip(gradients, truth, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


SEEN = (2, 2, 4, 7, 1, 1, 6)
"""Tokens that the samples of `LENGTHS` look at, elsewhere."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rotates", [False, True])
def test_segments_of_a_context_are_looked_at_by_their_own_samples(
    way: str, rotates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail with keys cut by the lengths of the queries."""
    monkeypatch.setattr(packed_attention, "choose_way", lambda *_: way)
    torch.manual_seed(0)
    layer, tokens = Attention(12, 3), packed()
    seen = torch.randn(1, sum(SEEN), 12).requires_grad_()
    own, other = (angles(sum(n)) if rotates else None for n in (LENGTHS, SEEN))
    weight = torch.randn(1, sum(LENGTHS), 12)
    leaves = [tokens, seen, *layer.parameters()]

    parts = []
    for i, (n, k) in enumerate(zip(LENGTHS, SEEN, strict=True)):
        here = slice(sum(LENGTHS[:i]), sum(LENGTHS[:i]) + n)
        there = slice(sum(SEEN[:i]), sum(SEEN[:i]) + k)
        turned, their = (
            None if each is None else Rotation(each.cos[:, at], each.sin[:, at])
            for each, at in ((own, here), (other, there))
        )
        context = Context(seen[:, there], their)
        parts.append(layer(tokens[:, here], rotation=turned, context=context).tokens)
    expected = torch.cat(parts, dim=1)
    truth = torch.autograd.grad((expected * weight).sum(), leaves)
    context = Context(seen, other, Segments(SEEN))
    result = layer(tokens, rotation=own, context=context, segments=Segments(LENGTHS)).tokens
    gradients = torch.autograd.grad((result * weight).sum(), leaves)

    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)
    for one, another in zip(gradients, truth, strict=True):
        torch.testing.assert_close(one, another, atol=1e-5, rtol=1e-5)


def test_what_is_looked_at_counts_among_the_lengths_on_a_gpu() -> None:
    alike, many = Segments((7,) * (RUNS_MOST + 1)), Segments(tuple(range(1, RUNS_MOST + 2)))

    assert choose_way(torch.device("cuda"), 64, alike, many) == "nested"
    assert choose_way(torch.device("cuda"), 64, alike, alike) == "runs"


@pytest.mark.parametrize("way", WAYS)
def test_no_token_sees_another_samples_bit_for_bit(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_attention, "choose_way", lambda *_: way)
    torch.manual_seed(0)
    layer, tokens = Attention(12, 3), packed().detach()
    changed = tokens.clone()
    changed[:, 10:19] *= 100

    before = layer(tokens, segments=Segments(LENGTHS)).tokens
    after = layer(changed, segments=Segments(LENGTHS)).tokens

    assert torch.equal(after[:, :10], before[:, :10])
    assert torch.equal(after[:, 19:], before[:, 19:])
    assert not torch.equal(after[:, 10:19], before[:, 10:19])


@pytest.mark.parametrize("way", WAYS)
def test_segments_work_in_bf16(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_attention, "choose_way", lambda *_: way)
    torch.manual_seed(0)
    layer, tokens = Attention(12, 3), packed().detach()
    expected = one_by_one(layer, tokens, None)

    with torch.autocast("cpu", torch.bfloat16):
        result = layer(tokens, segments=Segments(LENGTHS)).tokens

    # Eight bits of mantissa, in two products one behind the other.
    torch.testing.assert_close(result.float(), expected, atol=2e-2, rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_dropout_of_weights_acts_in_training_alone(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_attention, "choose_way", lambda *_: way)
    torch.manual_seed(0)
    layer, tokens = Attention(12, 3, dropout=0.5), packed().detach()

    calm = layer.eval()(tokens, segments=Segments(LENGTHS)).tokens
    dropping = layer.train()(tokens, segments=Segments(LENGTHS)).tokens

    torch.testing.assert_close(calm, one_by_one(layer.eval(), tokens, None), atol=1e-6, rtol=0)
    assert not torch.allclose(dropping, calm, atol=1e-3)


def test_few_lengths_go_in_runs_and_many_in_one_nested_call_on_a_gpu() -> None:
    few, many = Segments((7,) * 100), Segments(tuple(range(1, RUNS_MOST + 2)))

    assert choose_way(torch.device("cpu"), 64, many) == "runs"
    assert choose_way(torch.device("cuda"), 64, few) == "runs"
    assert choose_way(torch.device("cuda"), 64, many) == "nested"
    assert choose_way(torch.device("cuda"), 12, many) == "runs"


def test_a_compiled_graph_does_not_depend_on_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)

    assert choose_way(torch.device("cuda"), 64, Segments((3, 4))) == "masked"


def test_a_block_treats_segments_as_samples() -> None:
    torch.manual_seed(0)
    block, tokens = Block(12, 3, layer_scale=0.3), packed()

    result = block(tokens, segments=Segments(LENGTHS)).tokens

    expected = [block(part).tokens for part in tokens.split(LENGTHS, dim=1)]
    torch.testing.assert_close(result, torch.cat(expected, dim=1), atol=1e-6, rtol=0)


def test_drop_path_drops_whole_segments() -> None:
    torch.manual_seed(0)
    lengths = tuple([2, 5, 3] * 400)

    kept = DropPath(0.25)(torch.ones(1, sum(lengths), 2), Segments(lengths))

    samples = [part.unique().tolist() for part in kept[0].split(lengths)]
    assert all(len(values) == 1 for values in samples)
    gone = sum(values == [0.0] for values in samples) / len(samples)
    assert abs(gone - 0.25) < 0.05  # standard error 0.0125


def test_the_fused_kernel_is_reached_through_runs() -> None:
    torch.manual_seed(0)
    layer, n = Attention(12, 3), 600  # long enough for it on a CPU
    tokens = torch.randn(1, 2 * n, 12)

    result = layer(tokens, segments=Segments((n, n))).tokens

    expected = layer(tokens.reshape(2, n, 12)).tokens.reshape(1, 2 * n, 12)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)
