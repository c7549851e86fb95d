"""The start of a segmenter's linear path: a linear probe of what the frozen encoder gives.

Linear probe first, then fine-tuning, so that the features are not bent towards a random head
(Kumar et al., arXiv:2202.10054). Ridge regression in closed form, then some steps on cross-entropy
and Dice, since squares hardly see a rare class: seconds on stored features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim3d.data.batch import CropBatch
from mim3d.data.classes import IGNORE_INDEX
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.models.direct import DirectPath
from mim3d.models.unetr import UNETR
from mim3d.objectives.segmentation import Segmentation
from mim3d.tokens.grid import TokenGrid, Triple
from mim3d.tokens.patches import patchify

RIDGE = 1e-3
"""Penalty as a share of the features' mean square sum: keeps what few crops do not tell at 0."""
SCALES = tuple(2.0 ** (power / 2) for power in range(13))
"""Factors from predicted shares to logits, 1 to 64, of which the likeliest is taken."""
REFINEMENTS, REFINED_TOKENS, REFINING_RATE = 200, 2048, 0.1
"""Steps of Adam after the ridge, tokens of each, and the rate, which falls to 0 linearly."""
SMOOTH = 1e-5
"""Added to both sides of Dice, as in the loss of the training that follows."""
FEWEST_TOKENS = 16
"""Labelled tokens below which nothing is fitted."""


@dataclass(frozen=True)
class LinearStart:
    """What was fitted.

    Args:
        crops: how many the map was fitted on.
        tokens: tokens in them that hold labelled voxels.
        entropy: cross-entropy of the cells' labels under the map, in nats.
        chance: the same where every cell gets the classes' overall shares.
    """

    crops: int
    tokens: int
    entropy: float
    chance: float


@torch.no_grad()
def start_linearly(
    task: Segmentation, batches: Sequence[CropBatch], *, refines: bool = True
) -> LinearStart:
    """Fits the linear path to labelled crops and silences the decoder beside it.

    With standardised features X (`n d`), shares of the classes in each cell Y (`n ck`) and their
    means, W = (X'X + r I)^-1 X'(Y - mean Y); logits are W's shares times one factor, chosen by
    likelihood. From there Adam lowers the cells' cross-entropy and soft Dice, if it may. The
    decoder's last map becomes 0, so that training starts from the probe.

    Args:
        task: its network has a linear path.
        batches: labelled crops of the training cases.
        refines: go on from the closed form.

    Raises:
        ConfigError: the network has no linear path.
        UserError: hardly any token is labelled.
    """
    network = task.network
    if not isinstance(network, UNETR) or network.direct is None:
        raise ConfigError("a linear start needs a `decoder.direct`", code="no-direct-path")
    path = network.direct
    was_training = network.training
    network.eval()
    parts = [_fitted_on(task, network, path, batch) for batch in batches]
    network.train(was_training)
    count = sum(len(found) for found, _ in parts)
    if count < FEWEST_TOKENS:
        raise UserError(
            f"a linear start needs {FEWEST_TOKENS} tokens with labels in every cell, {count} were "
            f"found in {sum(len(batch.case_ids) for batch in batches)} crops",
            remedy="use `--decoder.direct none`, or crops with more labels: placed on them "
            "(`--data.placement label`), of volumes no thinner than a cell, "
            f"{' x '.join(map(str, _cell(network.encoder.patch, path.cells)))} voxels",
            code="linear-start",
        )

    # In float64, part by part: nothing but features and shares is held for all crops.
    mean = _total(found.double().sum(0) for found, _ in parts) / count
    variance = _total((found.double() - mean).square().sum(0) for found, _ in parts) / count
    deviation = variance.sqrt().clamp_min(1e-6)
    centre = _total(shares.double().sum(0) for _, shares in parts) / count

    def standardised(found: Tensor) -> Tensor:
        return (found.double() - mean) / deviation

    square = _total(standardised(found).T @ standardised(found) for found, _ in parts)
    cross = _total(
        standardised(found).T @ (shares.double() - centre) for found, shares in parts
    )  # fmt: skip
    penalty = RIDGE * count * torch.eye(len(square), dtype=square.dtype, device=square.device)
    weight = torch.linalg.solve(square + penalty, cross)

    # Shares become logits: from their middle, so that 0 is undecided where classes overlap.
    is_each = task.members is not None or path.outputs == 1
    middle = 0.5 if is_each else 0.0
    entropies = torch.zeros(len(SCALES), dtype=torch.float64)
    for found, shares in parts:
        guess = standardised(found) @ weight + centre - middle
        entropies += torch.stack(
            [_entropy(path, scale * guess, shares, is_each=is_each) for scale in SCALES]
        )
    scale = SCALES[int(entropies.argmin())]
    weight, bias = _refined(
        path,
        torch.cat([standardised(found).float() for found, _ in parts]),
        torch.cat([shares for _, shares in parts]),
        (scale * weight).float(),
        (scale * (centre - middle)).float(),
        steps=REFINEMENTS if refines else 0,
        is_each=is_each,
    )
    folded = weight.double() / deviation[:, None]
    path.linear.weight.copy_(folded.T)
    path.linear.bias.copy_(bias - mean @ folded)
    _silence(network.decoder)
    chance = centre.logit(1e-6) if is_each else centre.clamp_min(1e-6).log()
    cells = count * len(centre) / path.outputs
    return LinearStart(
        sum(len(batch.case_ids) for batch in batches),
        count,
        sum(
            float(_entropy(path, path.linear(found), shares, is_each=is_each))
            for found, shares in parts
        )
        / cells,
        sum(
            float(_entropy(path, chance.expand_as(shares), shares, is_each=is_each))
            for _, shares in parts
        )
        / cells,
    )


@torch.enable_grad()
def _refined(
    path: DirectPath,
    features: Tensor,
    shares: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    steps: int,
    is_each: bool,
) -> tuple[Tensor, Tensor]:
    """A map of standardised features, `d (k c)`, that fits classes and not squares.

    Args:
        path: whose cells and outputs they are.
        features: `n d`, standardised.
        shares: `n (k c)`.
        weight: `d (k c)`, where it starts.
        bias: `(k c)`.
        steps: of Adam; few enough that no penalty is needed.
        is_each: whether outputs are sigmoids.

    Returns:
        Weight and bias, without gradient.
    """
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    optimiser = torch.optim.Adam([weight, bias], lr=REFINING_RATE, betas=(0.9, 0.99))
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=steps)
    chance = torch.Generator().manual_seed(0)
    for _ in range(steps):
        drawn = torch.randint(len(features), (REFINED_TOKENS,), generator=chance)
        drawn = drawn.to(features.device)
        logits, truth = features[drawn] @ weight + bias, shares[drawn]
        cells = truth.numel() / path.outputs
        entropy = _entropy(path, logits, truth, is_each=is_each) / cells
        loss = entropy + _missed(path, logits, truth, is_each=is_each)
        weight.grad, bias.grad = torch.autograd.grad(loss, (weight, bias))
        optimiser.step()
        decay.step()
    return weight.detach(), bias.detach()


def _missed(path: DirectPath, logits: Tensor, shares: Tensor, *, is_each: bool) -> Tensor:
    """One minus the outputs' mean soft Dice over all cells, scalar."""
    logits = logits.reshape(len(logits), path.outputs, -1)
    truth = shares.reshape(logits.shape).to(logits.dtype)
    guess = logits.sigmoid() if is_each else logits.softmax(1)
    both = (guess * truth).sum((0, 2))
    total = guess.sum((0, 2)) + truth.sum((0, 2))
    return 1 - ((2 * both + SMOOTH) / (total + SMOOTH)).mean()


def _total(terms: Iterable[Tensor]) -> Tensor:
    first, *others = terms
    return sum(others, start=first)


def _fitted_on(
    task: Segmentation, network: UNETR, path: DirectPath, batch: CropBatch
) -> tuple[Tensor, Tensor]:
    """Features `n d` and shares of the classes `n (k c)` of tokens with labelled voxels."""
    assert batch.labels is not None
    states, _ = network.encoded(batch.voxels, batch.spacing_mm, batch.valid, batch.present)
    labels = labels_on(states.grid, batch.labels, batch.valid)
    shares, known = cell_shares(labels, states.grid.patch, path.cells, task.classes)
    if task.members is not None:
        shares = torch.einsum("b n c k, r k -> b n c r", shares, task.members.to(shares.dtype))
    outputs = shares.transpose(2, 3).flatten(2)  # classes slowest, as the path's
    return path.features(states)[known].float(), outputs[known]


def labels_on(grid: TokenGrid, labels: Tensor, valid: Tensor | None) -> Tensor:
    """Labels on whole patches, `IGNORE_INDEX` wherever there is padding.

    Args:
        grid: the tokens of the crops.
        labels: `b x y z`, class indices.
        valid: `b x y z` bool, or None where all is valid.
    """
    if valid is not None:
        labels = labels.masked_fill(~valid, IGNORE_INDEX)
    far = [more - side for more, side in zip(grid.padded, labels.shape[1:], strict=True)]
    return F.pad(labels, [0, far[2], 0, far[1], 0, far[0]], value=IGNORE_INDEX)


def cell_shares(
    labels: Tensor, patch: Triple, cells: Triple, classes: int
) -> tuple[Tensor, Tensor]:
    """Which part of each cell of each token belongs to each class.

    Args:
        labels: `b x y z`, class indices on whole patches; `IGNORE_INDEX` takes no part.
        patch: voxels of a token.
        cells: cells of a token along x, y, z.
        classes: their number k.

    Returns:
        `b n c k` float32, and `b n` bool, whether every cell holds a labelled voxel.
    """
    x, y, z = _cell(patch, cells)
    patches = patchify(labels[:, None], patch)
    b, n, _ = patches.shape
    boxes = patches.reshape(b, n, cells[0], x, cells[1], y, cells[2], z)
    voxels = boxes.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(b, n, -1, x * y * z).long()
    counted = voxels != IGNORE_INDEX
    counts = torch.zeros((*voxels.shape[:3], classes), device=labels.device)
    counts.scatter_add_(3, torch.where(counted, voxels, 0), counted.float())
    total = counts.sum(-1, keepdim=True)
    return counts / total.clamp_min(1), (total[..., 0] > 0).all(-1)


def _entropy(path: DirectPath, logits: Tensor, shares: Tensor, *, is_each: bool) -> Tensor:
    """Sum of the cells' cross-entropies in nats (of each output by itself: their mean), scalar."""
    k = path.outputs
    logits = logits.reshape(len(logits), k, -1)
    truth = shares.reshape(len(shares), k, -1).to(logits.dtype)
    if is_each:
        return F.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / k
    return -(logits.log_softmax(1) * truth).sum()


def _cell(patch: Triple, cells: Triple) -> Triple:
    """Voxels of a cell of a token."""
    x, y, z = (edge // count for edge, count in zip(patch, cells, strict=True))
    return x, y, z


def _silence(decoder: nn.Module) -> None:
    last = decoder.out
    assert isinstance(last, nn.Conv3d)
    for parameter in last.parameters():
        parameter.zero_()
