"""Small readers of one vector a volume: which class, or which number, do its features hold?

Arrays in, answers out, nothing drawn: logistic regression and ridge are convex and solved to the
end, nearest neighbours only look. To be called outside autocast.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mim3d.evaluation.probes import SMALLEST_DEVIATION
from mim3d.foundation.errors import ShapeError

STRENGTHS = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""Penalties on the squared weights of standardised features, beside a mean loss a volume."""
USUAL_STRENGTH = 1e-1
"""Where there is one subject, and nothing to choose by."""
FOLDS = 5
"""Parts of the subjects that choose the penalty in turn."""
STEPS = 500
"""Most iterations of L-BFGS; a hundred do, mostly."""


@dataclass(frozen=True, eq=False)
class ProbedVolumes:
    """Volumes whose answer is known.

    Attributes:
        features: `n d`, frozen.
        answers: `n`: int64 places of classes, or float64 numbers.
        subjects: `n` int64, whose volume it is; any numbers.
        classes: how many there are; None of numbers.
    """

    features: Tensor
    answers: Tensor
    subjects: Tensor
    classes: int | None = None

    def __post_init__(self) -> None:
        n = len(self.features)
        if self.features.ndim != 2 or self.answers.shape != (n,) or self.subjects.shape != (n,):
            raise ShapeError("probed volumes are features `n d`, answers `n`, subjects `n`")
        if not n:
            raise ShapeError("there is no volume to fit a probe to")

    def part(self, chosen: Tensor) -> ProbedVolumes:
        """The volumes at `chosen`, `n` bool."""
        return ProbedVolumes(
            self.features[chosen], self.answers[chosen], self.subjects[chosen], self.classes
        )


@dataclass(frozen=True, eq=False)
class Standard:
    """Features to mean 0 and deviation 1 by those that a probe is fitted to.

    Attributes:
        mean: `d`.
        deviation: `d`.
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Standard:
        """By these, `n d`."""
        deviation = features.double().std(dim=0, correction=0).clamp_min(SMALLEST_DEVIATION)
        return cls(features.double().mean(dim=0), deviation)

    def __call__(self, features: Tensor) -> Tensor:
        """Other features, `n d` float64."""
        return (features.double() - self.mean) / self.deviation


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A linear map of standardised features.

    Attributes:
        standard: of the features.
        weight: `d k`.
        bias: `k`.
        strength: the penalty.
        classes: how many there are; None of numbers.
    """

    standard: Standard
    weight: Tensor
    bias: Tensor
    strength: float
    classes: int | None = None

    def __call__(self, features: Tensor) -> Tensor:
        """Probabilities `n k`, or numbers `n`, float64."""
        outputs = self.standard(features) @ self.weight + self.bias
        return outputs[:, 0] if self.classes is None else outputs.softmax(dim=1)


def linear_probe(fit: ProbedVolumes) -> LinearProbe:
    """Logistic regression of classes, or ridge regression of numbers, with the best penalty.

    The penalty is the one of `STRENGTHS` with the lowest mean loss on subjects that were left out,
    a fifth of them at a time; the map is then fitted to all.

    Args:
        fit: volumes to fit it to.
    """
    strengths = STRENGTHS if len(set(fit.subjects.tolist())) > 1 else (USUAL_STRENGTH,)
    losses = torch.zeros(len(strengths), dtype=torch.float64)
    if len(strengths) > 1:
        for is_held_out in _folds(fit.subjects):
            held_out, inner = fit.part(is_held_out), fit.part(~is_held_out)
            losses += torch.stack([_loss(one, held_out) for one in _path(inner, strengths)])
    best = int(losses.argmin())
    return _path(fit, strengths[: best + 1])[-1]


def _folds(subjects: Tensor) -> list[Tensor]:
    """`n` bool, who is left out each time."""
    names = subjects.new_tensor(sorted(set(subjects.tolist())))
    parts = [names[start::FOLDS] for start in range(min(FOLDS, len(names)))]
    return [torch.isin(subjects, part) for part in parts]


def _loss(probe: LinearProbe, held_out: ProbedVolumes) -> Tensor:
    """Summed over the volumes: cross-entropy in nats, or squares."""
    found = probe(held_out.features)
    if probe.classes is None:
        return (found - held_out.answers).square().sum()
    likely = found.gather(1, held_out.answers[:, None])
    return -likely.clamp_min(1e-300).log().sum()


def _path(fit: ProbedVolumes, strengths: tuple[float, ...]) -> list[LinearProbe]:
    """A probe at each penalty, from the strongest on; each starts from the one before it."""
    standard = Standard.of(fit.features)
    features = standard(fit.features)
    if fit.classes is None:
        return [_ridge(standard, features, fit.answers, strength) for strength in strengths]
    width, k = features.shape[1], fit.classes
    shares = F.one_hot(fit.answers, k).double().mean(dim=0)
    weight = features.new_zeros((width, k))
    # A class that no volume has is unlikely, not impossible.
    bias = shares.clamp_min(1 / (10 * len(features))).log()
    found = []
    for strength in strengths:
        weight, bias = _logistic(features, fit.answers, weight, bias, strength)
        found.append(LinearProbe(standard, weight, bias, strength, k))
    return found


def _ridge(standard: Standard, features: Tensor, answers: Tensor, strength: float) -> LinearProbe:
    """The least of the mean square and strength times the squared weights, in closed form."""
    n, mean = len(features), answers.double().mean()
    square = features.T @ features / n
    penalty = strength * torch.eye(len(square), dtype=torch.float64)
    weight = torch.linalg.solve(square + penalty, features.T @ (answers.double() - mean) / n)
    return LinearProbe(standard, weight[:, None], mean[None], strength)


@torch.enable_grad()
def _logistic(
    features: Tensor, answers: Tensor, weight: Tensor, bias: Tensor, strength: float
) -> tuple[Tensor, Tensor]:
    """The least of the mean cross-entropy and half of strength times the squared weights."""
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=STEPS, tolerance_grad=1e-7, tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        optimiser.zero_grad()
        entropy = F.cross_entropy(features @ weight + bias, answers)
        total = entropy + strength / 2 * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def neighbour_answers(
    fit: ProbedVolumes, features: Tensor, *, neighbours: int, temperature: float
) -> Tensor:
    """What the nearest volumes of `fit` say, each counting exp(cosine / temperature).

    The vote of Wu et al. (arXiv:1805.01978, section 3.4), by the cosine of features that are
    standardised by `fit`.

    Args:
        fit: volumes whose answers are known.
        features: `n d`, of others.
        neighbours: how many; all of `fit` where there are fewer.
        temperature: the smaller, the more the nearest count.

    Returns:
        Probabilities `n k`, or numbers `n`, float64.
    """
    standard = Standard.of(fit.features)
    known, asked = (F.normalize(standard(one), dim=1) for one in (fit.features, features))
    near = (asked @ known.T).topk(min(neighbours, len(known)), dim=1)
    weights = (near.values / temperature).softmax(dim=1)
    if fit.classes is None:
        return (weights * fit.answers.double()[near.indices]).sum(dim=1)
    votes = F.one_hot(fit.answers[near.indices], fit.classes).double()
    return (weights[..., None] * votes).sum(dim=1)
