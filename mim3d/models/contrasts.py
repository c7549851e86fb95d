"""The contrasts that an encoder knows by name, and volumes laid out by them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.foundation.errors import ConfigError, ShapeError, check_shape
from mim3d.tokens.contrasts import check_different, spread


class Placed(NamedTuple):
    """Volumes with a channel for each contrast that an encoder knows."""

    voxels: Tensor
    """`b c x y z`, 0 where a contrast is not there."""
    shown: Tensor | None
    """`b 1 c` bool, which are there; None for an encoder that maps all channels jointly."""


def known_contrasts(config: EncoderConfig) -> tuple[str, ...]:
    """The names of an encoder with a map for each contrast; empty for a joint one.

    Args:
        config: its section, `channels` filled in. Without names they are numbers.

    Raises:
        ConfigError: names for a joint encoder, two alike, more or fewer than channels, or a stem
            that has no map for each.
    """
    if config.embedding == "joint":
        if config.contrasts:
            raise ConfigError(
                "`encoder.contrasts` names contrasts, and `encoder.embedding joint` knows none",
                remedy="add `--encoder.embedding per_contrast`, or leave the names out",
                code="contrasts",
            )
        return ()
    if config.embedding != "per_contrast":
        raise ConfigError(
            f"`encoder.embedding {config.embedding}` is not one of joint, per_contrast"
        )
    if config.stem != "patches":
        raise ConfigError(
            f"`encoder.embedding per_contrast` has no `encoder.stem {config.stem}`",
            remedy="add `--encoder.stem patches`, or `--encoder.embedding joint`",
            code="contrasts",
        )
    channels = config.channels or 1
    names = config.contrasts or tuple(str(number) for number in range(channels))
    check_different(names, "`encoder.contrasts`")
    if len(names) != channels:
        raise ConfigError(
            f"`encoder.channels` is {channels} beside {len(names)} `encoder.contrasts`",
            remedy="leave `encoder.channels` out",
            code="contrasts",
        )
    return names


def place(
    voxels: Tensor, present: Tensor | None, places: tuple[int, ...], contrasts: int
) -> Placed:
    """Volumes laid out by contrast.

    Args:
        voxels: `b c x y z`, whose channels are the contrasts at `places`.
        present: `b c` bool, which of them are there; None is all.
        places: of each channel.
        contrasts: how many are known.

    Raises:
        ShapeError: another number of channels than of places.
    """
    check_shape(voxels, "b c x y z", "VolumeViT")
    if voxels.shape[1] != len(places):
        raise ShapeError(f"VolumeViT expects {len(places)} contrasts, got {voxels.shape[1]}")
    if present is None:
        # Not `len(voxels)`: a program that is exported would be made for this batch alone.
        there = torch.ones((voxels.shape[0], len(places)), dtype=torch.bool, device=voxels.device)
    else:
        there = present
        voxels = torch.where(there[:, :, None, None, None], voxels, voxels.new_zeros(()))
    if places == tuple(range(contrasts)):
        return Placed(voxels, there[:, None])
    return Placed(spread(voxels, places, contrasts), spread(there, places, contrasts)[:, None])
