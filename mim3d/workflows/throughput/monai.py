"""MONAI's networks of the same shape as ours, and MONAI's weights under our names.

MONAI is imported inside the functions: without it, our own side is timed alone.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from mim3d.config.encoder import EncoderConfig
from mim3d.config.task import DecoderConfig
from mim3d.data.batch import CropBatch
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.objectives.mae import MaskedAutoencoder
from mim3d.objectives.masks import resting_ratio
from mim3d.objectives.segmentation import Segmentation
from mim3d.tokens.patches import patchify
from mim3d.workflows.throughput.inputs import moment
from mim3d.workflows.throughput.race import SHIPPED, TUNED, Contestant, require
from mim3d.workflows.throughput.steps import RATE, Preset, calls_on, step

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


def room(module: str) -> Any:
    """A module of MONAI, which only declares its types in part."""
    return importlib.import_module(f"monai.{module}")


def plain_encoder(preset: Preset, edge: int, side: int, *, class_token: bool) -> EncoderConfig:
    """The encoder of ours that computes what MONAI's ViT does.

    Args:
        preset: its size.
        edge: voxels of a patch along each axis.
        side: voxels of a crop along each axis.
        class_token: `MaskedAutoEncoderViT` has one, `UNETR` has none.
    """
    grid = side // edge
    return EncoderConfig(
        preset=preset,
        patch=(edge, edge, edge),
        positions="learned",
        learned_grid=(grid, grid, grid),
        class_token=class_token,
        qkv_bias=False,
    )


def published_segmenter(preset: Preset, side: int, classes: int) -> UNETR:
    """The network of ours that computes what MONAI's UNETR does."""
    encoder = plain_encoder(preset, 16, side, class_token=False)
    return UNETR(VolumeViT(encoder), classes, PUBLISHED)


def masked_autoencoder(task: MaskedAutoencoder, side: int) -> Any:
    """MONAI's `MaskedAutoEncoderViT` of the task's shape; the task takes over its weights.

    Args:
        task: with a `plain_encoder` that has a class token.
        side: voxels of a crop along each axis.
    """
    encoder, config = task.encoder, task.config
    theirs = room("networks.nets").MaskedAutoEncoderViT(
        encoder.channels,
        side,
        encoder.patch,
        hidden_size=encoder.width,
        mlp_dim=4 * encoder.width,
        num_layers=encoder.depth,
        num_heads=encoder.heads,
        masking_ratio=resting_ratio(config),
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
        network: a `published_segmenter`.
        side: voxels of a crop along each axis.
    """
    encoder = network.encoder
    theirs = room("networks.nets").UNETR(
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


def masked_loss(network: Any, batch: CropBatch) -> Tensor:
    """What a user of MONAI writes: the error of all patches, times the mask."""
    predicted, mask = network(batch.voxels)
    error = (predicted - patchify(batch.voxels, network.patch_size)).square().mean(-1)
    loss: Tensor = (error * mask).sum() / mask.sum()
    return loss


def same_masked_step(task: MaskedAutoencoder, theirs: Any, batch: CropBatch) -> str:
    """Compares loss and gradients of both under the mask that ours draws."""
    block: Any = task.encoder.blocks[0]
    with exact():
        outcome = task(batch, moment(0, pictures=True))
        assert outcome.pictures is not None
        px, py, pz = task.encoder.patch
        mask = outcome.pictures["mask"][:, ::px, ::py, ::pz].flatten(1)
        with masked_by(theirs, mask):
            expected = masked_loss(theirs, batch)
        embedding = theirs.patch_embedding.patch_embeddings
        pairs = [
            (block.attention.qkv.weight, theirs.blocks[0].attn.qkv.weight),
            (task.encoder.embedding.projection.weight, embedding.weight),
        ]
        found = agreement(outcome.loss, expected, pairs, bound=1e-4)
    task.zero_grad()
    theirs.zero_grad()
    return found


def segmentation_loss(network: Any, batch: CropBatch) -> Tensor:
    """MONAI's loss of MONAI's network."""
    assert batch.labels is not None
    loss = room("losses").DiceCELoss(to_onehot_y=True, softmax=True)
    value: Tensor = loss(network(batch.voxels), batch.labels[:, None])
    return value


def same_segmentation_step(task: Segmentation, theirs: Any, batch: CropBatch) -> str:
    """Compares loss and gradients of both."""
    network: Any = task.network
    with exact():
        pairs = [
            (network.encoder.blocks[0].attention.qkv.weight, theirs.vit.blocks[0].attn.qkv.weight),
            (network.decoder.out.weight, theirs.out.conv.conv.weight),
        ]
        ours = task(batch, moment(0)).loss
        # The instance norms of small maps amplify rounding; in float64 gradients agree to 1e-14.
        found = agreement(ours, segmentation_loss(theirs, batch), pairs, bound=1e-2)
    task.zero_grad()
    theirs.zero_grad()
    return found


def agreement(
    ours: Tensor, theirs: Tensor, pairs: Sequence[tuple[Any, Any]], *, bound: float
) -> str:
    """How far losses and gradients lie apart; ends the run where it is more than rounding.

    Args:
        ours: our loss in fp32, not yet backward.
        theirs: likewise.
        pairs: our weight and theirs, of which gradients are compared.
        bound: largest norm of a difference between gradients / norm of theirs.
    """
    for loss in (ours, theirs):
        loss.backward()  # type: ignore[no-untyped-call]
    apart = abs(float(ours.detach() - theirs.detach()) / float(theirs.detach()))
    gradients = [(mine.grad.flatten(1), other.grad.flatten(1)) for mine, other in pairs]
    farthest = max(float((mine - other).norm() / other.norm()) for mine, other in gradients)
    losses = f"within {apart:.0e}" if apart else "equal"
    found = f"fp32 loss {losses}, gradients within {farthest:.0e}"
    require(apart < 1e-5 and farthest < bound, found)
    return found


def exact() -> contextlib.AbstractContextManager[None]:
    """Convolutions in true fp32 on a GPU too, while results are compared."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def their_steps(
    network: Any,
    loss: Callable[[Any, CropBatch], Tensor],
    given: Sequence[CropBatch],
    patch: Callable[[Any], None] = lambda _: None,
) -> list[Contestant]:
    """MONAI's network as shipped, and a patched copy in bf16 with fused AdamW."""
    tuned = copy.deepcopy(network)
    patch(tuned)
    plain = torch.optim.AdamW(network.parameters(), lr=RATE)
    fused = torch.optim.AdamW(tuned.parameters(), lr=RATE, fused=True)
    first = step(lambda batch, _: loss(network, batch), plain, given, bf16=False)
    second = step(lambda batch, _: loss(tuned, batch), fused, given, bf16=True)
    calls = calls_on(given)
    return [
        Contestant(f"{SHIPPED}: fp32, AdamW", first, "reference", calls),
        Contestant(f"{TUNED}: bf16, fused AdamW", second, "the same network", calls),
    ]
