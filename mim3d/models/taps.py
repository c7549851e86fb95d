"""What all decoders share: which hidden states they read, and these as maps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mim3d.config.task import DecoderConfig
from mim3d.foundation.errors import ConfigError
from mim3d.models.hidden_states import HiddenStates
from mim3d.tokens.grid import TokenGrid


def tap_numbers(config: DecoderConfig, depth: int) -> tuple[int, int, int, int]:
    """Blocks passed where hidden states are taken; by default L/4, L/2, 3L/4 and L, rounded up.

    Raises:
        ConfigError: a tap beyond the encoder, or taps that do not ascend.
    """
    if config.taps is None:
        one, two, three = (-(-depth * quarter // 4) for quarter in (1, 2, 3))
        return one, two, three, depth
    first, *_, last = config.taps
    if list(config.taps) != sorted(config.taps) or first < 1 or last > depth:
        raise ConfigError(
            f"`decoder.taps` {config.taps} must ascend between 1 and the encoder's {depth} blocks",
            remedy="leave it out for a quarter, half, three quarters and all of the blocks",
            code="bad-taps",
        )
    return config.taps


class Taps(nn.Module):
    """Hidden states as feature maps on the token grid.

    Where a tap is the encoder's last block it is taken behind the encoder's final norm; the others
    get a LayerNorm of their own, or none (`tap_norm`). Padding becomes 0.

    Args:
        numbers: blocks passed.
        depth: blocks of the encoder.
        width: channels of a token.
        norm: `layer` or `none`.
    """

    def __init__(self, numbers: tuple[int, ...], depth: int, width: int, norm: str) -> None:
        super().__init__()
        self.numbers = numbers
        self.depth = depth
        self.norms = nn.ModuleList(
            nn.LayerNorm(width) if norm == "layer" and number < depth else nn.Identity()
            for number in numbers
        )

    def forward(self, states: HiddenStates) -> list[Tensor]:
        """`b d gx gy gz` each, shallowest first."""
        maps = []
        for number, tap, norm in zip(self.numbers, states.taps, self.norms, strict=True):
            tokens = states.tokens if number == self.depth else norm(tap)
            if states.token_valid is not None:
                tokens = tokens * states.token_valid[..., None]
            b, _, d = tokens.shape
            maps.append(tokens.transpose(1, 2).reshape(b, d, *states.grid.counts))
        return maps


def padded(voxels: Tensor, grid: TokenGrid) -> Tensor:
    """Voxels with zeros at the far end up to whole patches."""
    x, y, z = (more - side for more, side in zip(grid.padded, voxels.shape[2:], strict=True))
    return F.pad(voxels, [0, z, 0, y, 0, x]) if x or y or z else voxels


def cut_back(logits: Tensor, voxels: Tensor) -> Tensor:
    """Logits of the voxels' size."""
    x, y, z = voxels.shape[2:]
    return logits[:, :, :x, :y, :z]
