"""What stands on the encoder while views are compared: pooling, projector and predictor."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mim3d.foundation.errors import ConfigError
from mim3d.models.blocks import initialise
from mim3d.models.classifier import pooled, pooled_tokens
from mim3d.models.gathering import batch_moments
from mim3d.models.hidden_states import HiddenStates

Norm = Literal["batch", "layer"]

VARIANCE_EPSILON = 1e-5
"""Added to variances, as torch's BatchNorm does."""


class BatchNorm(nn.Module):
    """Rows by the mean and deviation of the whole global batch (Ioffe and Szegedy, 2015).

    It takes away what all crops have in common, which otherwise grows until nothing else is left:
    with LayerNorm in its place SimCLR and BYOL lost all but one or two directions within forty
    steps. There are no running statistics: heads are never used alone. Stores `weight`, `bias`.

    Args:
        width: numbers of a row.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, rows: Tensor, *, together: bool) -> Tensor:
        """`b d` to `b d`, two rows or more.

        Args:
            rows: of this process.
            together: whether those of all processes count, all of which must then call.
        """
        own = rows.float()
        mean, variance = batch_moments(own, together=together)
        normed = (own - mean) * (variance + VARIANCE_EPSILON).rsqrt()
        return (normed * self.weight + self.bias).to(rows.dtype)


class Projector(nn.Module):
    """Features to what is compared: linear maps with a norm and GELU between.

    Stores `layers`.

    Args:
        width_in: of the features.
        width: of the inner layers.
        depth: number of linear maps, 1 or more.
        out: width of what is compared.
        norm: `batch` as in the papers, or `layer`, for which rows do not know of each other.
        last_norm: whether a LayerNorm without weights follows the last map.

    Raises:
        ConfigError: a depth or a width below 1.
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        depth: int,
        out: int,
        *,
        norm: Norm = "layer",
        last_norm: bool = False,
    ) -> None:
        super().__init__()
        if min(depth, width, out) < 1:
            raise ConfigError(
                f"a projector of {depth} layers, {width} wide, to {out} numbers cannot be built: "
                "`objective.contrast.projector_depth`, `projector_width` and `projector_out` are "
                "1 or more",
                code="range",
            )
        layers: list[nn.Module] = []
        for _ in range(depth - 1):
            is_batch = norm == "batch"  # which takes a bias away again
            between = BatchNorm(width) if is_batch else nn.LayerNorm(width)
            layers += [nn.Linear(width_in, width, bias=not is_batch), between, nn.GELU()]
            width_in = width
        layers.append(nn.Linear(width_in, out))
        if last_norm:
            layers.append(nn.LayerNorm(out, elementwise_affine=False))
        self.layers = nn.Sequential(*layers)
        initialise(self, "xavier")

    def forward(self, features: Tensor, *, together: bool = False) -> Tensor:
        """`... width_in` to `... out`; with BatchNorm `b width_in`, and `together` as there."""
        for layer in self.layers:
            is_batch = isinstance(layer, BatchNorm)
            features = layer(features, together=together) if is_batch else layer(features)
        return features


class Predictor(Projector):
    """One view's projection to the other's (Grill et al., arXiv:2006.07733): two linear maps.

    Args:
        width: of what is compared, in and out.
        hidden: width between.
        norm: as the projector's.
    """

    def __init__(self, width: int, hidden: int, *, norm: Norm = "layer") -> None:
        super().__init__(width, hidden, 2, width, norm=norm)


def crop_features(states: HiddenStates) -> Tensor:
    """What the encoder knows of each crop as a whole, `b d`, after the final norm.

    The class token where the encoder has one, else the mean over the tokens that are valid.
    """
    if states.has_class_token:
        return pooled(states, "class_token")
    return pooled_tokens(states.tokens.float(), states.token_valid, "mean")
