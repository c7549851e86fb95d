"""Which parameter learns how fast, and when: groups for AdamW and the schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import torch
from torch import nn

from mim3d.config.training import OptimConfig

_BLOCK = re.compile(r"^encoder\.blocks\.(\d+)\.")
_WITHOUT_DECAY = re.compile(r"(^|\.)(positions?\.|(positions?|registers|[a-z_]*tokens?)$)")
"""Names of learned positions, class, mask and register tokens."""


def schedule(step: int, steps: int, config: OptimConfig) -> float:
    """Factor of the learning rate at a step: linear warm-up, then a cosine.

    `f = (s + 1) / w` for `s < w`, then `e + (1 - e) (1 + cos(pi (s - w) / (S - w))) / 2` with the
    end `e` (Loshchilov and Hutter, arXiv:1608.03983, eq. 5, one period).

    Args:
        step: updates made so far, `s`.
        steps: updates of the run, `S`.
        config: `warmup_steps` (`w`), `schedule`, `final_lr` (`e`).
    """
    warmup = config.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, steps - warmup)
    return config.final_lr + (1 - config.final_lr) * (1 + math.cos(math.pi * progress)) / 2


def encoder_depth(names: Iterable[str]) -> int:
    """Number of blocks among parameter names such as `encoder.blocks.3.norm.weight`."""
    found = [int(match.group(1)) for name in names if (match := _BLOCK.match(name))]
    return max(found, default=-1) + 1


def rate_factor(name: str, depth: int, config: OptimConfig) -> float:
    """Factor of the rate of one parameter: layer-wise decay and the encoder's own factor.

    Embedding, positions and tokens are level 0, block i is level i + 1, the final norm and all
    that is not the encoder level `depth + 1`; the factor is `layer_decay ** (depth + 1 - level)`
    (Clark et al., arXiv:2003.10555; MAE's fine-tuning counts alike).
    """
    if not name.startswith("encoder."):
        return 1.0
    block = _BLOCK.match(name)
    if block:
        level = int(block.group(1)) + 1
    else:
        level = depth + 1 if name.startswith(("encoder.norm", "encoder.final_norm")) else 0
    return config.layer_decay ** (depth + 1 - level) * config.encoder_lr


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases, norms, positions and tokens."""
    return parameter.ndim > 1 and _WITHOUT_DECAY.search(name) is None


def trainable(task: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name, in the task's order."""
    return {name: p for name, p in task.named_parameters() if p.requires_grad}


def build_optimiser(parameters: dict[str, nn.Parameter], config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW with one group per pair of rate factor and weight decay.

    Args:
        parameters: by name; `encoder.…` is the encoder.
        config: rates and decays.
    """
    depth = encoder_depth(parameters)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decay = config.weight_decay if is_decayed(name, parameter) else 0.0
        groups.setdefault((rate_factor(name, depth, config), decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "rate_factor": factor, "weight_decay": decay}
            for (factor, decay), members in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
        fused=True,
    )


def set_rates(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Gives every group its share of the rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["rate_factor"]


def set_frozen(parameters: dict[str, nn.Parameter], *, frozen: bool) -> None:
    """Takes the encoder out of the backward pass, or puts it back."""
    for name, parameter in parameters.items():
        if name.startswith("encoder."):
            parameter.requires_grad_(not frozen)
