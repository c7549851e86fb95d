"""Between frozen and full fine-tuning: low-rank adapters beside the encoder's linear maps.

Hu et al., arXiv:2106.09685: a map `W x` becomes `W x + s B A x` with `A` (`r i`) and `B` (`o r`) of
a small rank r. Only they learn; `B` starts at 0, so that training starts from the frozen network.
What a run writes for prediction is `W + s B A`: plain weights, in which no adapter is left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim3d.config.training import OptimConfig
from mim3d.foundation.errors import ConfigError
from mim3d.models.attention import Attention
from mim3d.models.blocks import DropPath

MAPS: dict[str, tuple[tuple[str, int], ...]] = {
    "qkv": (("attention.qkv", 3),),
    "proj": (("attention.out", 1),),
    "mlp": (("mlp.widen", 1), ("mlp.narrow", 1)),
}
"""Which maps of a block a word of `optim.lora_on` stands for, and into how many each divides:
queries, keys and values have an update of their own, as in the paper."""


class LowRankLinear(nn.Linear):
    """A linear map that does not learn, and beside it one of low rank that does.

    Stores the map's own `weight` (`o i`) and `bias` under their names, `down` (`(p r) i`, the
    paper's A of each part) and `up` (`o r`, the B of each part below each other).

    Where no gradient is asked for, the update is added to the weight first: what validation sees is
    then, bit for bit, what the written weights give.

    Args:
        linear: the map; its tensors are taken over, not copied.
        rank: r, of each part.
        scale: s, the paper's alpha / r.
        parts: into how many maps the outputs divide evenly, p.

    Raises:
        ConfigError: the rank is not smaller than both sides of a part, or not positive.
    """

    def __init__(self, linear: nn.Linear, *, rank: int, scale: float, parts: int = 1) -> None:
        weight, bias = linear.weight, linear.bias
        # On no device: the map's own numbers come in below.
        inputs, outputs = linear.in_features, linear.out_features
        super().__init__(inputs, outputs, bias=bias is not None, device="meta")
        least = min(self.in_features, self.out_features // parts)
        if not 0 < rank < least:
            raise ConfigError(
                f"`optim.lora_rank` is {rank}, but adapters of a map of {self.in_features} to "
                f"{self.out_features // parts} channels have a rank of 1 to {least - 1}",
                remedy="`--optim.lora_rank 8` suits most encoders",
                code="range",
            )
        self.scale, self.parts = scale, parts
        self.weight, self.bias = weight, bias
        self.requires_grad_(False)
        self.down = nn.Parameter(weight.new_empty(parts * rank, self.in_features))
        self.up = nn.Parameter(weight.new_zeros(self.out_features, rank))
        # Section 4.1: Gaussian and zero. With this deviation `A x` is as large as x's channels.
        nn.init.normal_(self.down, std=self.in_features**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """`... i` to `... o`."""
        if not torch.is_grad_enabled():
            return F.linear(tokens, self.merged_weight(), self.bias)
        narrow = (self.scale * F.linear(tokens, self.down)).chunk(self.parts, dim=-1)
        ups = self.up.chunk(self.parts)
        updates = [F.linear(part, up) for part, up in zip(narrow, ups, strict=True)]
        return F.linear(tokens, self.weight, self.bias) + torch.cat(updates, dim=-1)

    def merged_weight(self) -> Tensor:
        """The plain weight that does the same, `o i`, in the weight's own precision."""
        return _merged(self.weight, self.down, self.up, self.scale, self.parts)


def _merged(weight: Tensor, down: Tensor, up: Tensor, scale: float, parts: int) -> Tensor:
    # Outside of autocast: a sum of two bf16 numbers would lose what the update adds.
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        triples = zip(*(one.chunk(parts) for one in (weight, up, down)), strict=True)
        return torch.cat([torch.addmm(*triple, alpha=scale) for triple in triples])


def adapt(encoder: nn.Module, optim: OptimConfig) -> None:
    """Leaves of an encoder that which `optim.adapt` says for learning, in place.

    What `full` says changes nothing. With `frozen` nothing of it learns, and nothing of it is
    dropped in training: what a head learns to read are its features. With `lora` adapters in its
    blocks learn, drawn from torch's generator, which the caller seeds. Weights are loaded before:
    afterwards the encoder has adapters beside them.

    Args:
        encoder: a `VolumeViT`, or another whose `blocks` have its maps.
        optim: `adapt`, and how the adapters are.

    Raises:
        ConfigError: rank, scale or list of maps make no adapter.
    """
    if optim.adapt == "full":
        return
    encoder.requires_grad_(False)
    if optim.adapt == "frozen":
        for module in encoder.modules():
            if isinstance(module, DropPath):
                module.rate = 0.0
            elif isinstance(module, Attention):
                module.dropout = 0.0
    if optim.adapt == "lora":
        check_low_rank(optim)
        for block in encoder.get_submodule("blocks").children():
            for word in dict.fromkeys(optim.lora_on):
                for name, parts in MAPS[word]:
                    _exchange(block, name, parts, optim)


def check_low_rank(optim: OptimConfig) -> None:
    """Raises `ConfigError` for adapters that are none."""
    if not optim.lora_on:
        raise ConfigError(
            "`optim.lora_on` names no map that could have an adapter",
            remedy=f"name some of {', '.join(MAPS)}, or take `--optim.adapt frozen`",
            code="range",
        )
    if not (math.isfinite(optim.lora_scale) and optim.lora_scale > 0):
        raise ConfigError(
            f"`optim.lora_scale` is {optim.lora_scale}, with which nothing trains",
            remedy="1 is the paper's",
            code="range",
        )


def _exchange(block: nn.Module, name: str, parts: int, optim: OptimConfig) -> None:
    where, _, last = name.rpartition(".")
    linear = block.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    adapted = LowRankLinear(linear, rank=optim.lora_rank, scale=optim.lora_scale, parts=parts)
    adapted.train(linear.training)
    setattr(block.get_submodule(where), last, adapted)


def merged(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a module with every adapter added to its weight, and none beside them.

    Args:
        module: whose adapters these are; says their scale.
        tensors: of its `state_dict`, or such as stand for them (a running mean); whole.
    """
    found = dict(tensors)
    for name, part in module.named_modules():
        head = f"{name}." if name else ""
        if isinstance(part, LowRankLinear) and f"{head}down" in found:
            down, up = found.pop(f"{head}down"), found.pop(f"{head}up")
            weight = found[f"{head}weight"]
            found[f"{head}weight"] = _merged(weight, down, up, part.scale, part.parts)
    return found


def check_learns_whole(optim: OptimConfig) -> None:
    """Raises `ConfigError` where pre-training is to leave its encoder as it is."""
    if optim.adapt != "full":
        raise ConfigError(
            f"`optim.adapt {optim.adapt}` is for fine-tuning: pre-training makes the encoder",
            remedy="take `optim.adapt` out of the config",
            code="adapt",
        )
