"""Our encoder and UNETR under the names and in the shapes of MONAI's `ViT` and `UNETR`.

What MONAI's modules have no place for is listed in words: a state dict that loads and then answers
something else would be worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mim3d.models.classifier import VolumeClassifier
from mim3d.models.decoders import UnetrDecoder
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.tokens.grid import TokenGrid, Triple

EPSILON = 1e-5
"""Of every LayerNorm of MONAI's."""
UNETR_PATCH, UNETR_DEPTH, UNETR_TAPS = (16, 16, 16), 12, (4, 7, 10, 12)
"""What MONAI's UNETR always has."""
UNUSED = ("norm_cross_attn.weight", "norm_cross_attn.bias")
"""Of every block of MONAI's 1.4 and later, which makes them and reads them never."""
NAMES = (
    (r"^blocks\.(\d+)\.mlp\.widen\.", r"blocks.\1.mlp.linear1."),
    (r"^blocks\.(\d+)\.mlp\.narrow\.", r"blocks.\1.mlp.linear2."),
    (r"^blocks\.(\d+)\.attention\.out\.", r"blocks.\1.attn.out_proj."),
    (r"^blocks\.(\d+)\.attention\.qkv\.", r"blocks.\1.attn.qkv."),
    (r"^trunk\.raw\.", "encoder1.layer."),
    (r"^trunk\.paths\.(\d)\.first\.", lambda m: f"encoder{4 - int(m[1])}.transp_conv_init.conv."),
    (r"^trunk\.paths\.(\d)\.further\.", lambda m: f"encoder{4 - int(m[1])}.blocks."),
    (r"^trunk\.levels\.(\d)\.up\.", lambda m: f"decoder{5 - int(m[1])}.transp_conv.conv."),
    (r"^trunk\.levels\.(\d)\.block\.", lambda m: f"decoder{5 - int(m[1])}.conv_block."),
    (r"\.conv([12])\.weight$", r".conv\1.conv.weight"),
    (r"\.shortcut\.", ".conv3.conv."),
    (r"(blocks\.\d+\.0)\.weight$", r"\1.conv.weight"),
    (r"^out\.", "out.conv.conv."),
)  # fmt: skip
"""Our names, without `encoder.` and `decoder.`, and theirs; applied one after the other."""


class MonaiModule(NamedTuple):
    """A module of MONAI's that gives the same answers.

    `getattr(monai.networks.nets, name)(**arguments)` loads `state` strictly.
    """

    name: str
    arguments: dict[str, Any]
    state: dict[str, Tensor]


def encoder_obstacles(encoder: VolumeViT, *, may_have_class_token: bool = False) -> list[str]:
    """What of an encoder MONAI's `ViT` has no place for, in words."""
    config, found = encoder.config, []
    if config.positions.startswith("rotary_"):
        found.append(f"`encoder.positions {config.positions}`: MONAI adds a table to the tokens")
    if config.stem != "patches":
        found.append(f"`encoder.stem {config.stem}`: MONAI has one linear map of each patch")
    if config.embedding != "joint":
        found.append(f"`encoder.embedding {config.embedding}`: MONAI maps all channels together")
    if config.registers:
        found.append(f"`encoder.registers {config.registers}`: MONAI has none")
    if config.class_token and not may_have_class_token:
        found.append("`encoder.class_token`: MONAI's only feeds its classification head")
    if encoder.norm.eps != EPSILON:
        found.append(f"`encoder.norm_epsilon {encoder.norm.eps:g}`: MONAI's is {EPSILON:g}")
    return found


def unetr_obstacles(network: UNETR) -> list[str]:
    """What of a segmenter MONAI's `UNETR` has no place for, in words."""
    encoder, decoder = network.encoder, network.decoder_config
    found = encoder_obstacles(encoder)
    if decoder.name != "unetr" or not isinstance(network.decoder, UnetrDecoder):
        return [*found, f"`decoder.name {decoder.name}`: MONAI has `unetr`"]
    if encoder.patch != UNETR_PATCH:
        found.append(f"`encoder.patch {_typed(encoder.patch)}`: MONAI's is {_typed(UNETR_PATCH)}")
    if encoder.depth != UNETR_DEPTH:
        found.append(f"{encoder.depth} blocks: MONAI's UNETR has {UNETR_DEPTH}")
    if network.decoder.taps != UNETR_TAPS:
        taps = _typed(network.decoder.taps)
        found.append(f"`decoder.taps {taps}`: MONAI's are {_typed(UNETR_TAPS)}")
    if decoder.tap_norm != "none":
        found.append(f"`decoder.tap_norm {decoder.tap_norm}`: MONAI normalises no tap")
    if network.direct is not None:
        found.append(f"`decoder.direct {decoder.direct}`: MONAI has no path beside the decoder")
    return found


def monai_encoder(encoder: VolumeViT, size: Triple, spacing_mm: Tensor | None) -> MonaiModule:
    """MONAI's `ViT` for crops of one size; positions by index or in mm become its table.

    Args:
        encoder: without `encoder_obstacles`.
        size: voxels of a crop, whole patches.
        spacing_mm: `3`, at which positions in millimetres are worked out.
    """
    return MonaiModule("ViT", _vit_arguments(encoder, size), _vit_state(encoder, size, spacing_mm))


def monai_unetr(network: UNETR, size: Triple, spacing_mm: Tensor | None) -> MonaiModule:
    """MONAI's `UNETR` for crops of one size; arguments as `monai_encoder`'s.

    Heads on coarser grids, which only training reads, are left out.
    """
    vit = _vit_arguments(network.encoder, size)
    kept = ("in_channels", "img_size", "hidden_size", "mlp_dim", "num_heads", "qkv_bias")
    arguments = {name: vit[name] for name in kept}
    arguments |= {
        "out_channels": network.classes, "feature_size": network.decoder_config.feature_size
    }  # fmt: skip
    encoder = _vit_state(network.encoder, size, spacing_mm)
    state = {f"vit.{name}": tensor for name, tensor in encoder.items()}
    for name, tensor in network.decoder.state_dict().items():
        if not name.startswith("coarse."):
            state[_theirs(name)] = tensor
    return MonaiModule("UNETR", arguments, state)


def monai_classifier(
    network: VolumeClassifier, size: Triple, spacing_mm: Tensor | None
) -> MonaiModule:
    """MONAI's `ViT` with a classification head, for a network that reads its class token."""
    encoder = network.encoder
    state = _vit_state(encoder, size, spacing_mm)
    assert encoder.class_token is not None  # its caller has looked
    state["cls_token"] = encoder.class_token.detach()[None]
    for part, tensor in network.decoder.linear.state_dict().items():
        state[f"classification_head.{part}"] = tensor
    arguments = {**_vit_arguments(encoder, size), "classification": True, "post_activation": "none",
                 "num_classes": network.decoder.linear.out_features}  # fmt: skip
    return MonaiModule("ViT", arguments, state)


def _vit_arguments(encoder: VolumeViT, size: Triple) -> dict[str, Any]:
    hidden = encoder.blocks[0].mlp.widen.out_features  # type: ignore[union-attr]
    return {
        "in_channels": encoder.channels,
        "img_size": list(size),
        "patch_size": list(encoder.patch),
        "hidden_size": encoder.width,
        "mlp_dim": hidden,
        "num_layers": encoder.depth,
        "num_heads": encoder.heads,
        "qkv_bias": encoder.config.qkv_bias,
    }


def _vit_state(encoder: VolumeViT, size: Triple, spacing_mm: Tensor | None) -> dict[str, Tensor]:
    ours = _without_scales(encoder.state_dict())
    kernel = ours.pop("embedding.projection.weight")
    state = {
        "patch_embedding.position_embeddings": position_table(encoder, size, spacing_mm),
        "patch_embedding.patch_embeddings.weight": kernel.reshape(
            encoder.width, encoder.channels, *encoder.patch
        ),
        "patch_embedding.patch_embeddings.bias": ours.pop("embedding.projection.bias"),
    }
    for name in ("positions.table", "class_token"):
        ours.pop(name, None)
    state |= {_theirs(name): tensor for name, tensor in ours.items()}
    for number in range(encoder.depth):
        one, zero = (torch.full((encoder.width,), value) for value in (1.0, 0.0))
        state |= {f"blocks.{number}.{name}": value.clone()
                  for name, value in zip(UNUSED, (one, zero), strict=True)}  # fmt: skip
    return state


@torch.no_grad()
def position_table(encoder: VolumeViT, size: Triple, spacing_mm: Tensor | None) -> Tensor:
    """What an encoder adds to the tokens of a crop of this size and spacing, `1 n d`."""
    grid = TokenGrid.over(size, encoder.patch)
    given = None if spacing_mm is None else spacing_mm[None]
    device = encoder.norm.weight.device
    coordinates = encoder.positions.coordinates(grid, given, None, device)
    added = encoder.positions.added(coordinates, grid)
    assert added is not None  # rotary positions are an obstacle
    return added.clone()


def _without_scales(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LayerScale multiplied into the map before it."""
    ours = dict(state)
    for key in [key for key in ours if re.fullmatch(r"blocks\.\d+\.scale[12]\.factor", key)]:
        factor = ours.pop(key)
        block = key.rsplit(".", 2)[0]
        before = f"{block}.{'attention.out' if 'scale1' in key else 'mlp.narrow'}"
        ours[f"{before}.weight"] = ours[f"{before}.weight"] * factor[:, None]
        ours[f"{before}.bias"] = ours[f"{before}.bias"] * factor
    return ours


def _theirs(name: str) -> str:
    for pattern, theirs in NAMES:
        name = re.sub(pattern, theirs, name)
    return name


def _typed(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values))
