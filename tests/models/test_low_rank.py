"""Adapters against the paper's formula written out map by map, and against what is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mim3d.config.encoder import EncoderConfig
from mim3d.config.training import OptimConfig
from mim3d.foundation.errors import ConfigError
from mim3d.models.low_rank import LowRankLinear, adapt, check_learns_whole, merged
from mim3d.models.vit import VolumeViT
from mim3d.tokens.masking import split_tokens

SMALL = EncoderConfig(
    width=24, depth=3, heads=2, patch=(4, 4, 2), channels=2, mlp_ratio=3.0,
    default_spacing_mm=(1.0, 2.0, 0.5),
)  # fmt: skip
LORA = OptimConfig(adapt="lora", lora_rank=3, lora_scale=0.7)
RANK, SCALE, WIDTH, HIDDEN = 3, 0.7, 24, 72


def encoder(**fields: object) -> VolumeViT:
    torch.manual_seed(0)
    return VolumeViT(replace(SMALL, **fields))  # type: ignore[arg-type]


def adapted(optim: OptimConfig = LORA, *, moved: bool = False, **fields: object) -> VolumeViT:
    """An encoder with adapters; `moved` as if they had learned."""
    network = encoder(**fields)
    torch.manual_seed(1)
    adapt(network, optim)
    if moved:
        for name, parameter in network.named_parameters():
            if name.endswith(".up"):
                nn.init.normal_(parameter, std=0.3)
    return network


def crop(batch: int = 2) -> Tensor:
    return torch.randn(batch, 2, 11, 13, 7, generator=torch.Generator().manual_seed(1))


def written_out(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, downs: Sequence[np.ndarray],
    ups: Sequence[np.ndarray],
) -> np.ndarray:  # fmt: skip
    """Section 4.1, `h = W x + s B A x`, one output of one token at a time, each part by itself."""
    out, rows = np.zeros((len(x), len(w))), len(w) // len(ups)
    for token in range(len(x)):
        for place in range(len(w)):
            part, row = divmod(place, rows)
            low = [sum(a * v for a, v in zip(line, x[token], strict=True)) for line in downs[part]]
            update = sum(u * v for u, v in zip(ups[part][row], low, strict=True))
            out[token, place] = w[place] @ x[token] + b[place] + SCALE * update
    return out


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("with_gradient", [True, False])
def test_a_map_with_an_adapter_is_the_papers_formula(parts: int, with_gradient: bool) -> None:
    draw = np.random.default_rng(4)
    x, w, b = draw.normal(size=(5, 7)), draw.normal(size=(12, 7)), draw.normal(size=12)
    downs, ups = draw.normal(size=(parts, 2, 7)), draw.normal(size=(parts, 12 // parts, 2))
    linear = nn.Linear(7, 12).double()
    linear.load_state_dict({"weight": torch.tensor(w), "bias": torch.tensor(b)})
    layer = LowRankLinear(linear, rank=2, scale=SCALE, parts=parts)
    with torch.no_grad():
        layer.down.copy_(torch.tensor(np.concatenate(downs)))
        layer.up.copy_(torch.tensor(np.concatenate(ups)))

    with torch.set_grad_enabled(with_gradient):
        found = layer(torch.tensor(x))

    expected = written_out(x, w, b, downs, ups)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_an_adapter_are_those_of_the_sum_of_weight_and_update() -> None:
    torch.manual_seed(2)
    layer = LowRankLinear(nn.Linear(7, 12).double(), rank=2, scale=SCALE, parts=3)
    nn.init.normal_(layer.up)
    tokens, towards = torch.randn(2, 5, 7).double(), torch.randn(2, 5, 12).double()

    (layer(tokens) * towards).sum().backward()

    # By hand: G = dL/dW (o i), then dB = s G A' and dA = s B' G, part by part.
    slope = torch.einsum("bno,bni->oi", towards, tokens)
    for part in range(3):
        rows, lows = slice(4 * part, 4 * part + 4), slice(2 * part, 2 * part + 2)
        to_up = SCALE * slope[rows] @ layer.down[lows].T
        to_down = SCALE * layer.up[rows].T @ slope[rows]
        torch.testing.assert_close(layer.up.grad[rows], to_up)
        torch.testing.assert_close(layer.down.grad[lows], to_down)
    assert layer.weight.grad is None
    assert layer.bias.grad is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("with_gradient", [True, False])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_before_the_first_step_an_adapted_encoder_is_the_frozen_one_bit_for_bit(
    precision: str, with_gradient: bool, checkpointing: bool
) -> None:
    plain, network = encoder(), adapted(checkpointing=checkpointing)
    scores = torch.rand(2, 48, generator=torch.Generator().manual_seed(3))
    split = split_tokens(scores, 30)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    with torch.set_grad_enabled(with_gradient), autocast:
        ours = [network(crop(), taps=(1, 3)), network(crop(), split=split, taps=(1, 3))]
        theirs = [plain(crop(), taps=(1, 3)), plain(crop(), split=split, taps=(1, 3))]

    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine.tokens, other.tokens)
        assert all(map(torch.equal, mine.taps, other.taps))


def test_only_adapters_learn_and_all_of_them() -> None:
    network = adapted(moved=True)

    network(crop()).tokens.square().sum().backward()

    learning = {name for name, p in network.named_parameters() if p.requires_grad}
    got = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    maps = ("attention.qkv", "attention.out", "mlp.widen", "mlp.narrow")
    expected = {f"blocks.{i}.{m}.{p}" for i in range(3) for m in maps for p in ("down", "up")}
    assert learning == expected
    assert got == expected


@pytest.mark.parametrize(
    ("words", "a_block"),
    [
        # r (i + o) of each map; queries, keys and values have one each.
        (("qkv",), 3 * RANK * (WIDTH + WIDTH)),
        (("proj",), RANK * (WIDTH + WIDTH)),
        (("mlp",), 2 * RANK * (WIDTH + HIDDEN)),
        (("qkv", "proj", "mlp"), 4 * RANK * 2 * WIDTH + 2 * RANK * (WIDTH + HIDDEN)),
    ],
)
def test_as_many_parameters_learn_as_the_paper_counts(words: tuple[str, ...], a_block: int) -> None:
    network = adapted(replace(LORA, lora_on=words))  # type: ignore[arg-type]

    learning = sum(p.numel() for p in network.parameters() if p.requires_grad)

    assert learning == 3 * a_block


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_merged_weights_in_a_plain_encoder_give_the_same_bits(precision: str) -> None:
    network, plain = adapted(moved=True), encoder()
    plain.load_state_dict(merged(network, network.state_dict()), strict=True)

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        ours, theirs = network(crop(), taps=(2,)), plain(crop(), taps=(2,))

    assert torch.equal(ours.tokens, theirs.tokens)
    assert torch.equal(ours.taps[0], theirs.taps[0])
    assert not torch.equal(ours.tokens, encoder()(crop()).tokens)


def test_training_sees_what_merged_weights_give() -> None:
    network = adapted(moved=True)

    trained = network(crop()).tokens
    with torch.no_grad():
        seen = network(crop()).tokens

    # Two orders of the same float32 sums, through three blocks.
    torch.testing.assert_close(trained, seen, rtol=1e-4, atol=1e-5)


def test_merging_takes_the_tensors_it_is_given_and_leaves_others_alone() -> None:
    network = nn.Module()
    network.encoder = adapted(moved=True)
    name = "encoder.blocks.1.attention.out"
    mean = {key: 2 * tensor for key, tensor in network.state_dict().items()}
    others = {"decoder.down": torch.ones(2), "decoder.weight": torch.zeros(2)}

    found = merged(network, mean | others)

    layer = network.encoder.blocks[1].attention.out
    assert isinstance(layer, LowRankLinear)
    expected = 2 * layer.weight + SCALE * (2 * layer.up) @ (2 * layer.down)
    torch.testing.assert_close(found[f"{name}.weight"], expected)
    assert torch.equal(found["encoder.norm.weight"], 2 * network.encoder.norm.weight)
    assert found["decoder.down"] is others["decoder.down"]
    plain = {f"encoder.{key}" for key in encoder().state_dict()}
    assert set(found) == plain | set(others)


def test_nothing_to_merge_is_nothing() -> None:
    assert merged(adapted(), {}) == {}
    state = encoder().state_dict()
    assert all(map(torch.equal, merged(encoder(), state).values(), state.values()))


def test_adapters_follow_from_torchs_generator() -> None:
    one, same = adapted().state_dict(), adapted().state_dict()
    torch.manual_seed(8)
    other = encoder()
    torch.manual_seed(9)
    adapt(other, LORA)

    assert all(map(torch.equal, one.values(), same.values()))
    key = "blocks.0.mlp.narrow.down"
    assert not torch.equal(one[key], other.state_dict()[key])
    # 9 x 24 numbers: their deviation is known to about 5 %.
    down = one["blocks.0.attention.qkv.down"]
    assert down.shape == (9, 24)
    assert float(down.std()) == pytest.approx(24**-0.5, rel=0.2)


def test_full_changes_nothing_and_frozen_leaves_nothing_that_learns() -> None:
    plain, full, frozen = encoder(), encoder(), encoder()

    adapt(full, OptimConfig())
    adapt(frozen, OptimConfig(adapt="frozen"))

    for network in (full, frozen):
        assert all(map(torch.equal, network.state_dict().values(), plain.state_dict().values()))
        assert list(network.state_dict()) == list(plain.state_dict())
    assert all(p.requires_grad for p in full.parameters())
    assert not any(p.requires_grad for p in frozen.parameters())


def test_a_map_without_bias_has_none() -> None:
    network = adapted(qkv_bias=False)

    assert "blocks.0.attention.qkv.bias" not in network.state_dict()
    assert torch.equal(network(crop()).tokens, encoder(qkv_bias=False)(crop()).tokens)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_rank": 24}, "`optim.lora_rank` is 24"),
        ({"lora_rank": 0}, "`optim.lora_rank` is 0"),
        ({"lora_scale": 0.0}, "`optim.lora_scale` is 0.0"),
        ({"lora_scale": float("nan")}, "`optim.lora_scale` is nan"),
        ({"lora_on": ()}, "`optim.lora_on` names no map"),
    ],
)
def test_adapters_that_are_none_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        adapt(encoder(), replace(LORA, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("word", ["frozen", "lora"])
def test_pre_training_trains_the_whole_encoder(word: str) -> None:
    check_learns_whole(OptimConfig())

    with pytest.raises(ConfigError, match=f"`optim.adapt {word}` is for fine-tuning"):
        check_learns_whole(OptimConfig(adapt=word))  # type: ignore[arg-type]


def test_what_is_frozen_says_the_same_in_training_whatever_was_to_be_dropped() -> None:
    network = adapted(OptimConfig(adapt="frozen"), drop_path=0.6, attention_dropout=0.6)

    in_training = network.train()(crop()).tokens

    assert torch.equal(in_training, network.eval()(crop()).tokens)


def test_adapters_learn_under_drop_path_as_they_are_asked_to() -> None:
    network = adapted(drop_path=0.6, moved=True)

    in_training = network.train()(crop()).tokens

    assert not torch.allclose(in_training, network.eval()(crop()).tokens)
