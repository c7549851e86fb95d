"""Losses that compare embeddings of views: InfoNCE, NT-Xent, BYOL's, VICReg's and VoCo's.

Pure functions of this process's rows. Those that need the rest of the global batch are given it,
so that one process and several compute the same. All compute in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mim3d.objectives.health import LENGTH_EPSILON

VARIANCE_EPSILON = 1e-4
"""Added to a variance under the root (Bardes et al., arXiv:2105.04906, eq. 1)."""
LOG_EPSILON = 1e-6
"""Added inside VoCo's logarithm, as in its code."""


def unit(x: Tensor) -> Tensor:
    """Rows of length 1, float32, `... d`."""
    return F.normalize(x.float(), dim=-1, eps=LENGTH_EPSILON)


def info_nce(
    queries: Tensor,
    keys: Tensor,
    positive: Tensor,
    temperature: float,
    excluded: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of finding each query's key among all (van den Oord et al., arXiv:1807.03748).

    `mean_i -log(exp(s_ip / T) / sum_j exp(s_ij / T))` of the cosines s.

    Args:
        queries: `a d`, of any length.
        keys: `k d`, of any length.
        positive: `a`, int64, the key that belongs to each query.
        temperature: T, above 0.
        excluded: `a k` bool, keys that do not count; never the positive. None is none.

    Returns:
        A scalar; 0 for queries without any negative.
    """
    with torch.autocast(queries.device.type, enabled=False):
        logits = unit(queries) @ unit(keys).T / temperature
        if excluded is not None:
            logits = logits.masked_fill(excluded, -torch.inf)
        return F.cross_entropy(logits, positive)


def chance(candidates: Tensor) -> Tensor:
    """The InfoNCE of queries to which all their candidates are alike, a float32 scalar.

    `mean_i ln k_i`: a network that ends there has learnt nothing of its task, or has collapsed.

    Args:
        candidates: `a`, k: the number of keys that each query chooses from, its own included.
    """
    return candidates.float().log().mean()


def nt_xent(
    one: Tensor,
    two: Tensor,
    temperature: float,
    *,
    every_one: Tensor | None = None,
    every_two: Tensor | None = None,
    first: int = 0,
    same: Tensor | None = None,
) -> Tensor:
    """SimCLR's loss (Chen et al., arXiv:2002.05709, eq. 1) of this process's 2b queries.

    Each view is a query; the other view of its crop is the positive, which stands in the
    denominator too; both views of all other crops are negatives; the query itself is left out.

    Args:
        one: `b d`, first views.
        two: `b d`, second views of the same crops.
        temperature: above 0.
        every_one: `n d`, first views of all processes; none is `one`.
        every_two: likewise.
        first: row of our first crop there.
        same: `b n` bool, crops that are no negatives of each other; a crop and itself is given.

    Returns:
        A scalar.
    """
    every_one = one if every_one is None else every_one
    every_two = two if every_two is None else every_two
    b, n = len(one), len(every_one)
    rows = torch.arange(b, device=one.device) + first
    itself = rows[:, None] == torch.arange(n, device=one.device)
    no_negative = itself if same is None else itself | same
    # Queries: our first views, our second. Keys: all first views, all second.
    excluded = torch.cat(
        [
            torch.cat([no_negative, no_negative & ~itself], dim=1),
            torch.cat([no_negative & ~itself, no_negative], dim=1),
        ]
    )
    positive = torch.cat([rows + n, rows])
    keys = torch.cat([every_one, every_two])
    return info_nce(torch.cat([one, two]), keys, positive, temperature, excluded)


def byol(predicted: Tensor, target: Tensor) -> Tensor:
    """`mean |p - t|^2` of rows brought to length 1, which is 2 - 2 cos (arXiv:2006.07733, eq. 2).

    Args:
        predicted: `b d`.
        target: `b d`; its gradient is the caller's business.
    """
    with torch.autocast(predicted.device.type, enabled=False):
        return 2 - 2 * (unit(predicted) * unit(target)).sum(dim=-1).mean()


@dataclass(frozen=True)
class VICRegTerms:
    """The three terms of VICReg, scalars (Bardes et al., arXiv:2105.04906).

    Args:
        invariance: mean squared difference of the views, over crops and dimensions.
        variance: mean hinge of each dimension's deviation below 1, mean of both views.
        covariance: squared covariances off the diagonal over d, summed over both views.
    """

    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def vicreg(one: Tensor, two: Tensor) -> VICRegTerms:
    """VICReg's terms of two views of the whole batch, `n d` each, n above 1.

    As the authors' code, which takes half of the paper's variance term of eq. 6.
    """
    with torch.autocast(one.device.type, enabled=False):
        one, two = one.float(), two.float()
        terms = [_variance_and_covariance(view) for view in (one, two)]
        return VICRegTerms(
            (one - two).square().mean(),
            (terms[0][0] + terms[1][0]) / 2,
            terms[0][1] + terms[1][1],
        )


def _variance_and_covariance(z: Tensor) -> tuple[Tensor, Tensor]:
    n, d = z.shape
    centred = z - z.mean(dim=0)
    covariance = centred.T @ centred / (n - 1)
    variance = covariance.diagonal()
    hinge = F.relu(1 - (variance + VARIANCE_EPSILON).sqrt()).mean()
    return hinge, (covariance.square().sum() - variance.square().sum()) / d


def overlap_prediction(similarity: Tensor, overlap: Tensor, counts: Tensor | None = None) -> Tensor:
    """VoCo's prediction loss (Wu et al., arXiv:2402.17300, eq. 4, as in the authors' code).

    Where a window overlaps a base crop, `-y log(1 - |y - s|)`, a mean weighted by y; where it does
    not, the mean of s squared. Both are means within a crop first, as in the code, so that a batch
    is the mean of its parts.

    Args:
        similarity: `b w n`, s, 0 to 1.
        overlap: `b w n`, y, share of the window that lies in each base crop, 0 to 1.
        counts: `b w n` bool, pairs that are looked at; None is all.

    Returns:
        The mean over crops of the sum of both; 0 for a crop where nothing is looked at.
    """
    looked_at = torch.ones_like(overlap) if counts is None else counts.to(overlap.dtype)
    inside, apart = overlap * looked_at, (overlap == 0) * looked_at
    distance = (overlap - similarity).abs()
    # A likeness of 1 may round to a little more.
    found = -torch.log((1 - distance).clamp_min(0) + LOG_EPSILON)
    return (_mean_by(found, inside) + _mean_by(similarity.square(), apart)).mean()


def repulsion(bases: Tensor, counts: Tensor | None = None) -> Tensor:
    """Squared positive cosine of two base crops of one crop (VoCo, eq. 5, as in the code).

    Args:
        bases: `b n d`, n above 1.
        counts: `b n` bool, base crops that are looked at; None is all.

    Returns:
        The mean over the pairs of a crop, then over crops; 0 for a crop without a pair.
    """
    b, n, _ = bases.shape
    with torch.autocast(bases.device.type, enabled=False):
        rows = unit(bases)
        cosines = F.relu(rows @ rows.transpose(1, 2)).square()
        pairs = torch.ones((b, n, n), device=bases.device).triu(diagonal=1)
        if counts is not None:
            pairs = pairs * (counts[:, :, None] & counts[:, None, :])
        return _mean_by(cosines, pairs).mean()


def _mean_by(values: Tensor, weights: Tensor) -> Tensor:
    """Each crop's weighted mean, `b ... -> b`; 0 where nothing weighs anything."""
    total = weights.flatten(1).sum(dim=1)
    return (values * weights).flatten(1).sum(dim=1) / total.clamp_min(LOG_EPSILON)
