"""MONAI's networks of the same shape as ours, and MONAI's weights under our names.

MONAI is imported inside the functions: without it `side_by_side.py` still times our own side.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

from torch import Tensor, nn

from mim3d.config.sections import DecoderConfig
from mim3d.models.unetr import UNETR
from mim3d.objectives.masked import MaskedAutoencoder

PUBLISHED = DecoderConfig(taps=(4, 7, 10, 12), tap_norm="none")
"""The decoder of ours that computes what MONAI's UNETR does at 12 blocks and patch 16."""

ABSENT = "MONAI is not installed: not compared"
OTHER_NETWORK = "another network: speed only"

Names = Sequence[tuple[str, str]]

BLOCK: Names = (
    (r"\.mlp\.linear1\.", ".mlp.widen."),
    (r"\.mlp\.linear2\.", ".mlp.narrow."),
    (r"\.attn\.out_proj\.", ".attention.out."),
    (r"\.attn\.", ".attention."),
)
MAE: Names = (
    (r"^patch_embedding\.patch_embeddings\.", "encoder.embedding.projection."),
    (r"^patch_embedding\.position_embeddings", "encoder.positions.table"),
    (r"^cls_token", "encoder.class_token"),
    (r"^blocks\.12\.", "encoder.norm."),
    (r"^blocks\.", "encoder.blocks."),
    (r"^mask_tokens", "decoder.mask_token"),
    (r"^decoder_embed\.", "decoder.embed."),
    (r"^decoder_pos_embedding", "decoder.positions.table"),
    (r"^decoder_pred\.", "decoder.head."),
    (r"^decoder_blocks\.4\.", "decoder.norm."),
    (r"^decoder_blocks\.", "decoder.blocks."),
    *BLOCK,
)
SEGMENTER: Names = (
    (r"^vit\.patch_embedding\.patch_embeddings\.", "encoder.embedding.projection."),
    (r"^vit\.patch_embedding\.position_embeddings", "encoder.positions.table"),
    (r"^vit\.", "encoder."),
    (r"^encoder1\.layer\.", "decoder.trunk.raw."),
    # Their levels are numbered from the finest, ours from the coarsest.
    *(
        (rf"^encoder{4 - i}\.transp_conv_init\.", f"decoder.trunk.paths.{i}.first.")
        for i in range(3)
    ),
    *((rf"^encoder{4 - i}\.blocks\.", f"decoder.trunk.paths.{i}.further.") for i in range(3)),
    *((rf"^decoder{5 - i}\.transp_conv\.", f"decoder.trunk.levels.{i}.up.") for i in range(4)),
    *((rf"^decoder{5 - i}\.conv_block\.", f"decoder.trunk.levels.{i}.block.") for i in range(4)),
    (r"^out\.conv\.", "decoder.out."),
    (r"\.conv3\.", ".shortcut."),
    (r"\.conv\.", "."),
    *BLOCK,
)


def has_monai() -> bool:
    """Whether there is anybody to race against."""
    return importlib.util.find_spec("monai") is not None


def monai(module: str) -> Any:
    """A module of MONAI, which only declares its types in part."""
    return importlib.import_module(f"monai.{module}")


def masked_autoencoder(task: MaskedAutoencoder, side: int) -> Any:
    """MONAI's `MaskedAutoEncoderViT` of the task's shape; the task takes over its weights.

    Args:
        task: encoder with a class token, learned positions and no bias of queries, keys and values.
        side: voxels of a crop along each axis.
    """
    encoder, config = task.encoder, task.config
    theirs = monai("networks.nets").MaskedAutoEncoderViT(
        encoder.channels,
        side,
        encoder.patch,
        hidden_size=encoder.width,
        mlp_dim=4 * encoder.width,
        num_layers=encoder.depth,
        num_heads=encoder.heads,
        masking_ratio=config.mask_ratio,
        decoder_hidden_size=config.decoder_width,
        decoder_mlp_dim=4 * config.decoder_width,
        decoder_num_layers=config.decoder_depth,
        decoder_num_heads=config.decoder_heads,
    )
    take_weights(task, theirs, MAE)
    # MONAI's sine-cosine table does not learn, so ours must not either.
    for table in (encoder.positions.table, task.decoder.positions.table):
        assert table is not None
        table.requires_grad_(False)
    return theirs


def unetr(network: UNETR, side: int) -> Any:
    """MONAI's `UNETR` of the network's shape; the network takes over its weights.

    Args:
        network: with the `PUBLISHED` decoder, learned positions and no bias of queries, keys and
            values.
        side: voxels of a crop along each axis.
    """
    encoder = network.encoder
    theirs = monai("networks.nets").UNETR(
        encoder.channels,
        network.classes,
        side,
        feature_size=network.decoder_config.feature_size,
        hidden_size=encoder.width,
        mlp_dim=4 * encoder.width,
        num_heads=encoder.heads,
    )
    take_weights(network, theirs, SEGMENTER)
    return theirs


def allow_bf16(theirs: Any) -> None:
    """Lets MONAI's `MaskedAutoEncoderViT` run under autocast, which it does not as shipped.

    Its `forward` puts the decoder's bf16 tokens into fp32 mask tokens; they are cast before.
    """
    theirs.decoder_embed.register_forward_hook(lambda _module, _given, tokens: tokens.float())


@contextlib.contextmanager
def masked_by(theirs: Any, mask: Tensor) -> Iterator[None]:
    """Makes MONAI's `MaskedAutoEncoderViT` hide these tokens.

    Args:
        theirs: the network.
        mask: `b n` bool, as many True in every sample.
    """
    seen = (~mask).nonzero()[:, 1].reshape(len(mask), -1)

    def masking(x: Tensor, masking_ratio: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
        return x.gather(1, seen[..., None].expand(-1, -1, x.shape[-1])), seen, mask.int()

    with mock.patch.object(theirs, "_masking", masking):
        yield


def take_weights(ours: nn.Module, theirs: nn.Module, names: Names) -> None:
    """Copies every weight of theirs to ours, by name and in our shape; none may be left over."""
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    taken: dict[str, Tensor] = {}
    for name, value in theirs.state_dict().items():
        if "norm_cross_attn" in name:
            continue  # MONAI makes them and never uses them
        for pattern, our_name in names:
            name = re.sub(pattern, our_name, name)
        taken[name] = value.reshape(shapes[name])
    ours.load_state_dict(taken, strict=True)
