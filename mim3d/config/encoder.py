"""The encoder, as every verb builds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mim3d.config.data import Triple


@dataclass(frozen=True)
class EncoderConfig:
    """The vision transformer."""

    preset: Literal["tiny", "small", "base", "large"] = "base"
    """Width x depth x heads: tiny 192 x 12 x 3, small 384 x 12 x 6, base 768 x 12 x 12,
    large 1024 x 24 x 16."""
    width: int | None = None
    """Width of a token, in place of the preset's."""
    depth: int | None = None
    """Number of blocks, in place of the preset's."""
    heads: int | None = None
    """Attention heads, in place of the preset's."""
    mlp_ratio: float = 4.0
    """Width of the MLP as a multiple of the token's."""
    patch: Triple = (16, 16, 16)
    """Voxels behind one token along x, y, z; each a power of two where a UNETR is built on it."""
    stem: Literal["patches", "convolutional"] = "patches"
    """From voxels to tokens: one linear map of each patch; or convolutions down to the token grid.
    While tokens are masked these stay inside visible patches, so that nothing leaks; afterwards
    they run over the whole crop. Needs patches of powers of two, 4 or more along an axis."""
    stem_width: int = 16
    """Channels of the convolutional stem at its finest level, doubled with each coarser one; 32
    suits `base` and `large`."""
    channels: int | None = None
    """Channels of a volume; none takes the store's."""
    embedding: Literal["joint", "per_contrast"] = "joint"
    """From the channels of a patch to its token: one map of all of them together; or one of each
    contrast with a vector of its own, averaged over those that are there, so that the encoder takes
    any of the contrasts it knows. Needs `stem patches`."""
    contrasts: tuple[str, ...] = ()
    """Names of the contrasts that `embedding: per_contrast` knows; empty takes the store's. Stores
    and volumes are matched to them by name and may lack some."""
    positions: Literal["learned", "sincos_index", "sincos_mm", "rotary_mm", "rotary_index"] = (
        "sincos_mm"
    )
    """Learned table; sine-cosine of the token's index; sine-cosine or rotary of the token's centre
    in millimetres from the crop's centre; or rotary of the same in voxels, whatever the spacing."""
    wavelengths_mm: tuple[float, float] = (8.0, 800.0)
    """Shortest and longest wavelength of positions in millimetres; of `rotary_index` in voxels."""
    learned_grid: Triple | None = None
    """Token grid of the learned table; other grids interpolate it. None takes the crop's."""
    default_spacing_mm: tuple[float, float, float] | None = None
    """Spacing where a caller gives none; training writes the cohort's median here."""
    class_token: bool = False
    """One more token that gathers the volume; it has no position."""
    registers: int = 0
    """Number of further learned tokens without position (Darcet et al., arXiv:2309.16588)."""
    qkv_bias: bool = True
    """Bias of the query, key and value map."""
    drop_path: float = 0.0
    """Stochastic depth: rate of the last block, growing linearly from 0."""
    attention_dropout: float = 0.0
    """Dropout of attention weights, in training only."""
    layer_scale: float | None = None
    """Initial LayerScale of each residual branch; none leaves it out."""
    norm_epsilon: float = 1e-5
    """What LayerNorm adds to a variance. Weights of timm's and of SelfMedMAE's were trained with
    1e-6."""
    initialisation: Literal["xavier", "normal"] = "xavier"
    """Linear layers: Xavier-uniform, or truncated normal with deviation 0.02."""
    checkpointing: bool = False
    """Recompute blocks in the backward pass: a fifth to a third more time for much less memory."""
