"""What stands on the encoder while views are compared: pooling, projector and predictor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mim3d.foundation.errors import ConfigError
from mim3d.models.blocks import initialise
from mim3d.models.vit import HiddenStates


class Projector(nn.Module):
    """Features to what is compared: linear maps with LayerNorm and GELU between.

    LayerNorm where papers have BatchNorm: statistics over a handful of volumes are noise, and
    differ between processes. Stores `layers`.

    Args:
        width_in: of the features.
        width: of the inner layers.
        depth: number of linear maps, 1 or more.
        out: width of what is compared.
        last_norm: whether a LayerNorm without weights follows the last map.

    Raises:
        ConfigError: a depth or a width below 1.
    """

    def __init__(
        self, width_in: int, width: int, depth: int, out: int, *, last_norm: bool = False
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
            layers += [nn.Linear(width_in, width), nn.LayerNorm(width), nn.GELU()]
            width_in = width
        layers.append(nn.Linear(width_in, out))
        if last_norm:
            layers.append(nn.LayerNorm(out, elementwise_affine=False))
        self.layers = nn.Sequential(*layers)
        initialise(self, "xavier")

    def forward(self, features: Tensor) -> Tensor:
        """`... width_in` to `... out`."""
        projected: Tensor = self.layers(features)
        return projected


class Predictor(Projector):
    """One view's projection to the other's (Grill et al., arXiv:2006.07733): two linear maps.

    Args:
        width: of what is compared, in and out.
        hidden: width between.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden, 2, width)


def pooled(states: HiddenStates) -> Tensor:
    """What the encoder knows of each crop as a whole, `b d`, after the final norm.

    The class token where the encoder has one, else the mean over the tokens that are valid.
    """
    if states.has_class_token:
        assert states.prefix is not None
        return states.prefix[:, 0]
    tokens = states.tokens.float()
    if states.token_valid is None:
        return tokens.mean(dim=1)
    valid = states.token_valid[..., None]
    total = torch.where(valid, tokens, tokens.new_zeros(())).sum(dim=1)
    return total / valid.sum(dim=1).clamp_min(1)
