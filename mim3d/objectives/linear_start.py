"""The start of a segmenter's linear path: ridge regression on what the frozen encoder gives.

Linear probe first, then fine-tuning, so that the features are not bent towards a random head
(Kumar et al., arXiv:2202.10054). In closed form it takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim3d.data.batch import IGNORE_INDEX, CropBatch
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.models.direct import DirectPath
from mim3d.models.unetr import UNETR
from mim3d.objectives.segmentation import Segmentation
from mim3d.tokens.grid import Triple
from mim3d.tokens.patches import patchify

RIDGE = 1e-3
"""Penalty as a share of the features' mean square sum: keeps what few crops do not tell at 0."""
SCALES = tuple(2.0 ** (power / 2) for power in range(13))
"""Factors from predicted shares to logits, 1 to 64, of which the likeliest is taken."""


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
def start_linearly(task: Segmentation, batches: Sequence[CropBatch]) -> LinearStart:
    """Fits the linear path to labelled crops and silences the decoder beside it.

    With standardised features X (`n d`), shares of the classes in each cell Y (`n ck`) and their
    means, W = (X'X + r I)^-1 X'(Y - mean Y); logits are W's shares times one factor, chosen by
    likelihood. The decoder's last map becomes 0, so that training starts from the probe.

    Args:
        task: its network has a linear path.
        batches: labelled crops of the training cases.

    Raises:
        ConfigError: the network has no linear path.
        UserError: hardly any token is labelled.
    """
    network = task.network
    if not isinstance(network, UNETR) or network.direct is None:
        raise ConfigError("a linear start needs `decoder.direct linear`", code="no-direct-path")
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
            remedy="use `--decoder.direct random`, or place crops on labels with "
            "`--data.placement label`",
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
    best = int(entropies.argmin())
    scale, folded = SCALES[best], weight / deviation[:, None]
    path.linear.weight.copy_((scale * folded).T)
    path.linear.bias.copy_(scale * (centre - mean @ folded - middle))
    _silence(network.decoder)
    chance = centre.logit(1e-6) if is_each else centre.clamp_min(1e-6).log()
    cells = count * len(centre) / path.outputs
    return LinearStart(
        sum(len(batch.case_ids) for batch in batches),
        count,
        float(entropies[best]) / cells,
        sum(
            float(_entropy(path, chance.expand_as(shares), shares, is_each=is_each))
            for _, shares in parts
        )
        / cells,
    )


def _total(terms: Iterable[Tensor]) -> Tensor:
    first, *others = terms
    return sum(others, start=first)


def _fitted_on(
    task: Segmentation, network: UNETR, path: DirectPath, batch: CropBatch
) -> tuple[Tensor, Tensor]:
    """Features `n d` and shares of the classes `n (k c)` of tokens with labelled voxels."""
    assert batch.labels is not None
    states, voxels = network.encoded(batch.voxels, batch.spacing_mm, batch.valid)
    labels = batch.labels
    if batch.valid is not None:
        labels = labels.masked_fill(~batch.valid, IGNORE_INDEX)
    far = [more - side for more, side in zip(states.grid.padded, voxels.shape[2:], strict=True)]
    labels = F.pad(labels, [0, far[2], 0, far[1], 0, far[0]], value=IGNORE_INDEX)
    shares, known = cell_shares(labels, states.grid.patch, path.cells, task.classes)
    if task.members is not None:
        shares = torch.einsum("b n c k, r k -> b n c r", shares, task.members.to(shares.dtype))
    outputs = shares.transpose(2, 3).flatten(2)  # classes slowest, as the path's
    return path.features(states)[known].float(), outputs[known]


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
    x, y, z = (edge // count for edge, count in zip(patch, cells, strict=True))
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


def _silence(decoder: nn.Module) -> None:
    last = decoder.out
    assert isinstance(last, nn.Conv3d)
    for parameter in last.parameters():
        parameter.zero_()
