"""Is an embedding alive? Numbers that fall when different crops get the same answer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

RANK_EPSILON = 1e-7
"""Added to each share of the singular values (Garrido et al., arXiv:2210.02885)."""
LENGTH_EPSILON = 1e-6
"""Shortest length that is divided by; 1e-12 gave not-a-numbers in half precision."""


def rank_me(features: Tensor) -> Tensor:
    """How many directions the features use: RankMe (arXiv:2210.02885, eq. 1), 1 to min(b, d).

    `exp(-sum p log p)` with `p = s / sum s + 1e-7` of the singular values s, not centred.

    Args:
        features: `b d`, any float type; computed in float32 without gradient.

    Returns:
        A scalar; 1 where all features are 0, NaN where one is not finite.
    """
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        # The decomposition raises at a NaN, of which the training loop would only skip a step.
        finite = torch.nan_to_num(features.float(), nan=0.0, posinf=0.0, neginf=0.0)
        values = torch.linalg.svdvals(finite)
        shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + RANK_EPSILON
        rank = torch.exp(-(shares * shares.log()).sum())
        return torch.where(features.isfinite().all(), rank, torch.nan)


def embedding_logs(z: Tensor) -> dict[str, Tensor]:
    """Signs of life of an embedding: `rank`, `spread` and `cosine`, detached scalars.

    - `rank`: RankMe.
    - `spread`: mean deviation of a dimension after each row was brought to length 1, times
      sqrt(d); 1 is uniform on the sphere, 0 is collapsed (Chen and He, arXiv:2011.10566, fig. 2).
    - `cosine`: mean cosine of two different rows; 1 is collapsed.

    Args:
        z: `b d`, one row a crop, any float type; one row alone gives spread and cosine 0.
    """
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        b, d = z.shape
        unit = F.normalize(z.float(), dim=1, eps=LENGTH_EPSILON)
        spread = unit.std(dim=0, correction=min(1, b - 1)).mean() * d**0.5
        pairs = unit.sum(dim=0).square().sum() - unit.square().sum()
        return {"rank": rank_me(z), "spread": spread, "cosine": pairs / max(1, b * (b - 1))}
