"""What the classes of a target weigh, and what one answer for all cases would be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mim3d.config.task import ClassificationConfig
from mim3d.data.asked_target import AskedTarget
from mim3d.foundation.errors import ConfigError, UserError


def class_weights(config: ClassificationConfig, table: Sequence[AskedTarget]) -> list[Tensor]:
    """The weight of each class of each target, `k` float32; of a number one that is not used.

    `balanced` is `n / (k n_c)` for `n_c` of `n` training cases with class c (King and Zeng 2001).

    Raises:
        ConfigError: not one number above 0 for each class.
        UserError: a class has no training case to be balanced by.
    """
    return [_weights(config, one) for one in table]


def _weights(config: ClassificationConfig, asked: AskedTarget) -> Tensor:
    k, said = len(asked.classes or (0.0,)), config.class_weights
    if asked.classes is None or said == "none":
        return torch.ones(k)
    if said == "balanced":
        if not all(asked.counts):
            empty = asked.classes[asked.counts.index(0)]
            raise UserError(
                f"class {empty:g} of the target `{asked.name}` has no training case, so that no "
                "weight balances it",
                remedy="train on more subjects, or leave `classification.class_weights` out",
                code="no-class",
            )
        return torch.tensor([sum(asked.counts) / (k * count) for count in asked.counts])
    if len(said) != k or not all(weight > 0 for weight in said):
        raise ConfigError(
            f"`classification.class_weights` is {', '.join(map(str, said))}; the target "
            f"`{asked.name}` needs one number above 0 for each of its {k} classes",
            remedy="give them in the order of the classes, or take `balanced`",
            code="class-weights",
        )
    return torch.tensor(said)


def same_answer(asked: AskedTarget, weights: Tensor, smoothing: float) -> Tensor:
    """The best answer that is the same for every case, by how many training cases have each class.

    It minimises the mean of `-w_c t_c log p_c` over targets `t` after smoothing, so `p_c` is in
    proportion to `w_c` times the mean of `t_c`.

    Args:
        asked: the target.
        weights: of its classes, `k`.
        smoothing: of its labels.

    Returns:
        Logarithms of the probabilities, `k`; of a number 0, the mean in deviations, which is best
        for squared errors and near to the best, the median, for absolute ones.
    """
    if asked.classes is None:
        return torch.zeros(1)
    k = len(asked.classes)
    counts = torch.tensor(asked.counts or (1,) * k, dtype=torch.float32)
    shares = weights * ((1 - smoothing) * counts / counts.sum() + smoothing / k)
    tiny = torch.finfo(shares.dtype).tiny  # a class that no training case has
    return (shares / shares.sum()).clamp_min(tiny).log()
