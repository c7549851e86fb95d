"""Small readers of frozen features: how much of the labels do the features hold already?

Arrays in, numbers out. A ridge regression in closed form is deterministic and needs no training,
so its number compares between steps and runs; nearest neighbours and the controls stand beside it.
To be called outside autocast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mim3d.foundation.errors import ShapeError

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridge penalties as a share of the features' mean square sum."""
USUAL_STRENGTH = 1e-1
"""Where there is one subject, and nothing to choose by."""
INNER_EVERY = 3
"""Every third subject of those to fit on chooses the penalty."""
SMALLEST_DEVIATION = 1e-6
"""Features that vary less are divided by this."""
OCTAVES = 4
"""Wavelengths of the position control along each axis: twice its extent, and halves of it."""
MOST_VOXELS = 1024
"""Intensities of a token that the control reads; larger patches are averaged in boxes."""
CHUNK = 1024
"""Tokens whose neighbours are sought at once."""


@dataclass(frozen=True)
class ProbedTokens:
    """Tokens of labelled crops.

    Args:
        features: `n d`, frozen.
        shares: `n c k`, which part of each of a token's cells belongs to each class, background
            first (`objectives.linear_start.cell_shares`).
        subjects: `n`, int64, whose token it is; any numbers.
    """

    features: Tensor
    shares: Tensor
    subjects: Tensor

    def __post_init__(self) -> None:
        n = len(self.features)
        if self.features.ndim != 2 or self.shares.ndim != 3 or self.subjects.ndim != 1:
            raise ShapeError("probed tokens are features `n d`, shares `n c k`, subjects `n`")
        if len(self.shares) != n or len(self.subjects) != n:
            raise ShapeError(
                f"{n} tokens with {len(self.shares)} shares and {len(self.subjects)} subjects"
            )

    def part(self, chosen: Tensor) -> ProbedTokens:
        """The tokens at `chosen`, `n` bool."""
        return ProbedTokens(self.features[chosen], self.shares[chosen], self.subjects[chosen])


@dataclass(frozen=True)
class ProbeScore:
    """What a probe reads on subjects that it was not fitted on.

    Args:
        r2: explained share of the variance of the cells' class shares, mean over the classes.
        dice: of the class of each cell whose share lies farthest above its threshold, mean over the
            classes; thresholds are such that classes are as frequent as they should be in `fit`.
        strength: the penalty that was chosen.
    """

    r2: float
    dice: float
    strength: float


def ridge_probe(fit: ProbedTokens, test: ProbedTokens) -> ProbeScore:
    """Fits a linear map from features to class shares on some subjects and scores it on others.

    The penalty is the one of `STRENGTHS` with the best R2 on every third subject of `fit`; the map
    is then fitted on all of `fit`.

    Args:
        fit: tokens to fit on.
        test: tokens of other subjects.
    """
    strength, ridge = chosen_strength(fit), RidgeFit(fit)
    guess = ridge.predict(test.features, strength)
    needed = thresholds(fit.shares, ridge.predict(fit.features, strength))
    dice = share_dice(test.shares, picked_above(guess, needed))
    return ProbeScore(explained(test.shares, guess), dice, strength)


def chosen_strength(fit: ProbedTokens) -> float:
    """The penalty that serves held-out subjects of `fit` best."""
    every = sorted(set(fit.subjects.tolist()))
    if len(every) < 2:
        return USUAL_STRENGTH
    is_held_out = torch.isin(fit.subjects, fit.subjects.new_tensor(every[::INNER_EVERY]))
    held_out, inner = fit.part(is_held_out), RidgeFit(fit.part(~is_held_out))
    scores = [explained(held_out.shares, inner.predict(held_out.features, s)) for s in STRENGTHS]
    known = [score if math.isfinite(score) else -math.inf for score in scores]
    return STRENGTHS[known.index(max(known))]


class RidgeFit:
    """The sums that a ridge regression needs, for any penalty.

    With features X (`n d`) to mean 0 and deviation 1, shares Y (`n ck`) less their means and
    strength s: W = (X'X / n + s I)^-1 X'Y / n (Hoerl and Kennard 1970). All in float64.

    Args:
        tokens: what is fitted.
    """

    def __init__(self, tokens: ProbedTokens) -> None:
        features = tokens.features.double()
        self.mean = features.mean(dim=0)
        self.deviation = features.std(dim=0, correction=0).clamp_min(SMALLEST_DEVIATION)
        shares = tokens.shares.double()
        self.shape = shares.shape[1:]
        self.centre = shares.flatten(1).mean(dim=0)
        standardised = (features - self.mean) / self.deviation
        n = max(len(features), 1)
        self.square = standardised.T @ standardised / n
        self.cross = standardised.T @ (shares.flatten(1) - self.centre) / n

    def predict(self, features: Tensor, strength: float) -> Tensor:
        """Class shares of other tokens, `n c k` float64, not confined to 0 to 1.

        Args:
            features: `n d`.
            strength: the penalty.
        """
        penalty = strength * torch.eye(len(self.square), dtype=torch.float64)
        weight = torch.linalg.solve(self.square + penalty.to(self.square.device), self.cross)
        standardised = (features.double() - self.mean) / self.deviation
        shares: Tensor = standardised @ weight + self.centre
        return shares.reshape(len(features), *self.shape)


def neighbour_dice(fit: ProbedTokens, test: ProbedTokens, neighbours: int) -> float:
    """Dice where each token takes the mean shares of its nearest neighbours in `fit`.

    Nearest by the cosine of features that are standardised by `fit`. It saturates where position
    tells the class (aligned cohorts), so it is reported and decides nothing.

    Args:
        fit: tokens whose labels are known.
        test: tokens of other subjects.
        neighbours: how many; all of `fit` where there are fewer.
    """
    return share_dice(test.shares, neighbour_shares(fit, test.features, neighbours).argmax(dim=2))


def neighbour_shares(fit: ProbedTokens, features: Tensor, neighbours: int) -> Tensor:
    """Mean class shares of the nearest tokens of `fit`, `n c k` float32.

    Args:
        fit: tokens whose labels are known.
        features: `n d`, of others.
        neighbours: how many; all of `fit` where there are fewer.
    """
    mean = fit.features.float().mean(dim=0)
    deviation = fit.features.float().std(dim=0, correction=0).clamp_min(SMALLEST_DEVIATION)

    def directions(some: Tensor) -> Tensor:
        return F.normalize((some.float() - mean) / deviation, dim=1)

    known, k = directions(fit.features), min(neighbours, len(fit.features))
    return torch.cat([
        fit.shares[(part @ known.T).topk(k, dim=1).indices].float().mean(dim=1)
        for part in torch.split(directions(features), CHUNK)
    ])  # fmt: skip


def thresholds(shares: Tensor, guess: Tensor) -> Tensor:
    """What the guess of each class must exceed for it to be picked, `k` float64.

    Least squares shrinks towards the mean, so that a rare class would never be the likeliest. Above
    these lie as many cells as the class truly fills.

    Args:
        shares: `n c k`, the truth.
        guess: `n c k`.
    """
    truth, cells = shares.double().flatten(0, 1), guess.double().flatten(0, 1)
    filled = truth.sum(dim=0).round().long().clamp_max(len(cells) - 1)
    return cells.sort(dim=0, descending=True).values.gather(0, filled[None])[0]


def picked_above(guess: Tensor, needed: Tensor) -> Tensor:
    """Classes `n c` whose guess lies farthest above its threshold; background where none does.

    Args:
        guess: `n c k`.
        needed: `k`.
    """
    above = guess - needed
    above[..., 0] = 0
    return above.argmax(dim=2)


def explained(shares: Tensor, guess: Tensor) -> float:
    """R2 = 1 - residual / total sum of squares, over all cells; mean over the classes.

    The background and classes that do not vary here are left out; NaN where none is left.

    Args:
        shares: `n c k`, the truth.
        guess: `n c k`.
    """
    truth = shares.double()
    residual = (truth - guess).square().sum(dim=(0, 1))[1:]
    total = (truth - truth.mean(dim=0)).square().sum(dim=(0, 1))[1:]
    varies = total > 0
    return float((1 - residual[varies] / total[varies]).mean())


def share_dice(shares: Tensor, picked: Tensor) -> float:
    """Dice of the class that each cell was given, mean over the classes.

    All cells count alike, and one that holds a class in part counts for it in part: where cells are
    full this is the Dice of their voxels. The background and classes that are neither there nor
    picked are left out; NaN where none is left.

    Args:
        shares: `n c k`, the truth.
        picked: `n c`, a class each.
    """
    truth = shares.double()
    found = F.one_hot(picked, shares.shape[2]).double()
    both = (truth * found).sum(dim=(0, 1))[1:]
    sizes = (truth + found).sum(dim=(0, 1))[1:]
    return float((2 * both[sizes > 0] / sizes[sizes > 0]).mean())


def constant_share(features: Tensor) -> float:
    """How much of the features is one vector common to all tokens, 0 to 1.

    Root mean square of the mean over tokens, that of the whole being 1. Near 1 tokens hardly
    differ, however the loss falls.

    Args:
        features: `n d`.
    """
    return rms(features.double().mean(dim=0)) / max(rms(features), 1e-12)


def rms(values: Tensor) -> float:
    """Root mean square of any tensor."""
    return float(values.double().square().mean().sqrt())


# Controls: what needs no encoder.


def position_features(coordinates: Tensor, extent: tuple[Tensor, Tensor]) -> Tensor:
    """Where a token lies, as sines and cosines along each axis, `n f`.

    Args:
        coordinates: `n 3`, in any unit.
        extent: lowest and highest coordinates, `3` each.
    """
    low, high = extent
    places = (coordinates.double() - low) / (high - low).clamp_min(1e-6)
    octaves = math.pi * 2.0 ** torch.arange(OCTAVES, dtype=torch.float64, device=places.device)
    angles = (places[..., None] * octaves).flatten(1)
    return torch.cat([places, angles.sin(), angles.cos()], dim=1)


def voxel_features(patches: Tensor, channels: int, patch: Sequence[int]) -> Tensor:
    """The intensities behind a token, `n p`, averaged in boxes where p exceeds `MOST_VOXELS`.

    Args:
        patches: `n (c px py pz)`.
        channels: c.
        patch: voxels of a token along x, y, z.
    """
    if patches.shape[1] <= MOST_VOXELS:
        return patches
    x, y, z = patch
    for side in range(max(patch), 0, -1):
        boxes = (min(side, x), min(side, y), min(side, z))
        if channels * math.prod(boxes) <= MOST_VOXELS:
            break
    voxels = patches.float().reshape(-1, channels, *patch)
    return F.adaptive_avg_pool3d(voxels, boxes).flatten(1)
