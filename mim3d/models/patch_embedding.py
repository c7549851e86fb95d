"""From patches to tokens, by the kind of embedding and at any size of a patch."""

from __future__ import annotations

from torch import Tensor

from mim3d.config.data import Triple
from mim3d.config.encoder import EncoderConfig
from mim3d.foundation.errors import ConfigError
from mim3d.models.resize import resized_kernel
from mim3d.models.stem import ConvStem
from mim3d.tokens.contrasts import ContrastEmbedding
from mim3d.tokens.embed import PatchEmbedding
from mim3d.tokens.patches import CutCrop

Embedding = PatchEmbedding | ContrastEmbedding | ConvStem


def make_embedding(config: EncoderConfig, channels: int, width: int) -> Embedding:
    """The embedding that an encoder's config describes, freshly initialised.

    Args:
        config: the encoder's section.
        channels: of the voxels.
        width: channels of a token.

    Raises:
        ConfigError: an unknown stem, or one that cannot be built.
    """
    if config.embedding == "per_contrast":
        return ContrastEmbedding(channels, config.patch, width)
    if config.stem == "convolutional":
        return ConvStem(channels, config.patch, width, config.stem_width)
    if config.stem == "patches":
        return PatchEmbedding(channels, config.patch, width)
    raise ConfigError(f"`encoder.stem {config.stem}` is not one of patches, convolutional")


def embed(
    embedding: Embedding,
    cut: CutCrop,
    index: Tensor | None,
    shown: Tensor | None,
    *,
    patch: Triple,
    channels: int,
    is_masked: bool,
) -> Tensor:
    """Tokens of the patches at `index`, `b k d`; of all patches if it is None.

    Args:
        embedding: of any kind.
        cut: crops and their patches.
        index: `b k`, int64.
        shown: `b n c` or `b 1 c` bool, which contrasts of a token are looked at; needed by a
            `ContrastEmbedding` alone.
        patch: what the embedding's weights were made for; they are resized to the patches given.
        channels: of the voxels.
        is_masked: whether some patches must not be seen by others.

    Raises:
        ConfigError: patches of another size than a convolutional stem was made for.
    """
    crop, patches = cut
    if isinstance(embedding, ConvStem):
        # A token that knows of its surroundings would know what is masked beside it.
        tokens: Tensor = embedding(cut, index, is_masked=is_masked)
        return tokens
    kernel = None
    if crop.grid.patch != patch:
        kernel = resized_kernel(embedding.projection.weight, patch, crop.grid.patch, channels)
    if isinstance(embedding, ContrastEmbedding):
        assert shown is not None  # `VolumeViT.placed` says what is there
        tokens = embedding(patches, shown, index, kernel)
    else:
        tokens = embedding(patches, index, kernel)
    return tokens
