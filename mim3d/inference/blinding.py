"""The encoder-use audit: what a segmenter predicts when its encoder has nothing to say.

A decoder with a path from the raw image can do without the encoder; a gain claimed for pre-training
needs an encoder that is used. Dice under `blind` stands beside the real one in every report.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mim3d.foundation.errors import UserError
from mim3d.models.hidden_states import HiddenStates


@contextlib.contextmanager
def blind(network: nn.Module) -> Iterator[None]:
    """Within the block all hidden states that `network.encoder` hands on are zeros.

    Where tokens lie stays known, for a decoder could use that without the encoder.

    Raises:
        UserError: the network has no part named `encoder`.
    """
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise UserError(
            f"`{type(network).__name__}` has no `encoder` that could be blinded", code="no-encoder"
        )
    handle = encoder.register_forward_hook(_zeroed)
    try:
        yield
    finally:
        handle.remove()


def _zeroed(_module: nn.Module, _inputs: Any, states: HiddenStates) -> HiddenStates:
    return replace(
        states,
        tokens=torch.zeros_like(states.tokens),
        taps=tuple(torch.zeros_like(tap) for tap in states.taps),
        prefix=None if states.prefix is None else torch.zeros_like(states.prefix),
    )
