"""What an encoder knows of a volume of any size: the features of its patches, and of the whole.

The volume is divided into patches once, from its first voxel on. Windows lie on whole patches of
that grid, so that each patch has one feature: the mean over the windows that saw it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mim3d.config.inference import InferenceConfig
from mim3d.data.volume import spacing_of
from mim3d.inference.seen import Seen
from mim3d.inference.sliding_window import Predictor, filled_up, window_crops
from mim3d.inference.windows import Sweep, Triple, in_parts, plan_sweep
from mim3d.models.classifier import Pool, no_class_token, pooled_tokens
from mim3d.models.encoder_input import Spacing
from mim3d.models.hidden_states import HiddenStates
from mim3d.models.vit import VolumeViT
from mim3d.tokens.grid import TokenGrid
from mim3d.tokens.patches import without_air


class TokenReader(nn.Module):
    """An encoder whose answer is one tensor, so that windows may be slid over it.

    Args:
        encoder: whose features are read.
    """

    def __init__(self, encoder: VolumeViT) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, voxels: Tensor, spacing_mm: Spacing = None, valid: Tensor | None = None
    ) -> Tensor:
        """Features behind the final norm, `b (k n) d`: the class token if there is one, then all.

        Args:
            voxels: `b c x y z`, normalised.
            spacing_mm: `b 3`.
            valid: `b x y z` bool, False at padding.
        """
        states: HiddenStates = self.encoder(voxels, spacing_mm, valid=valid)
        if not states.has_class_token:
            return states.tokens
        assert states.prefix is not None  # the class token is in it
        return torch.cat([states.prefix[:, :1], states.tokens], dim=1)


@dataclass(frozen=True, eq=False)
class VolumeFeatures:
    """What is known of a volume.

    Attributes:
        patches: `n d` float32 on the CPU, of the patches that a window saw.
        places: `n 3` int64, where each lies in `grid`; z fastest.
        grid: all patches of the volume.
        class_token: `d`, mean over the windows; None where the encoder has none.
    """

    patches: Tensor
    places: Tensor
    grid: TokenGrid
    class_token: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """The mean of the patches, `d`."""
        return self.patches.mean(dim=0)

    def pooled(self, pool: Pool) -> Tensor:
        """What stands for the volume, `d` or `2d`, of all its patches at once.

        A classifier pools each window by itself (`models.classifier`), and the mean over several
        windows has another deviation.

        Raises:
            ConfigError: a class token is asked for and there is none.
        """
        if pool != "class_token":
            return pooled_tokens(self.patches[None], None, pool)[0]
        if self.class_token is None:
            raise no_class_token()
        return self.class_token

    def centres_mm(self, affine: NDArray[np.float64]) -> NDArray[np.float64]:
        """The middle of each patch in millimetres of the world (RAS+), `n 3`.

        Of a patch that reaches beyond the volume it is the middle of the whole patch.

        Args:
            affine: (4, 4), from the middle of a voxel of the volume to millimetres.
        """
        middles = (self.places.numpy() + 0.5) * np.array(self.grid.patch) - 0.5
        return np.asarray(middles @ affine[:3, :3].T + affine[:3, 3])


def aligned_sweep(
    shape: Triple,
    window: Triple,
    patch: Triple,
    overlap: float,
    body: NDArray[np.bool_] | None = None,
) -> Sweep:
    """Windows that begin and end between patches, in voxels.

    Args:
        shape: voxels of the volume.
        window: voxels of a window, rounded up to whole patches.
        patch: voxels of a patch.
        overlap: share of a window, in patches, that the next one covers again.
        body: `x y z`; windows without any body voxel are left out, unless none has any.
    """
    counts = TokenGrid.over(shape, patch).counts
    across = TokenGrid.over(window, patch).counts
    coarse = None if body is None else _any_of_patch(body, patch)
    plan = plan_sweep(counts, across, overlap, coarse)
    first = [side.start * edge for side, edge in zip(plan.inside, patch, strict=True)]
    x, y, z = (slice(low, low + side) for low, side in zip(first, shape, strict=True))
    return Sweep(
        _times(plan.size, patch),
        (x, y, z),
        _times(plan.window, patch),
        plan.axis,
        tuple(_times(start, patch) for start in plan.starts),
        plan.skipped,
    )


def encode_volume(
    seen: Seen,
    read: Predictor,
    config: InferenceConfig,
    *,
    patch: Triple,
    window: Triple,
    device: torch.device | str,
    drop_air: bool = False,
) -> VolumeFeatures:
    """The features of a volume.

    Args:
        seen: the volume as the encoder sees it; windows without body are left out where it is
            known, unless none has any.
        read: a `TokenReader` (`inference.segmenter.predicting`).
        config: overlap and windows a batch; its `window` is not read.
        patch: voxels of a patch.
        window: voxels of a window; a smaller volume is filled up to it.
        device: where windows are encoded.
        drop_air: of an encoder that never saw patches without body: they are padding to it here
            too, and have no feature, where the body is known.
    """
    sweep = aligned_sweep(seen.shape, window, patch, config.overlap, seen.body)
    voxels, valid = filled_up(seen.voxels, sweep)
    body = None
    if drop_air and seen.body is not None and seen.body.any():
        body, _ = filled_up(torch.from_numpy(seen.body), sweep)
    device = torch.device(device)
    spacing = torch.tensor(spacing_of(seen.affine), dtype=torch.float32, device=device)
    counts = TokenGrid.over(sweep.size, patch).counts
    across = TokenGrid.over(sweep.window, patch)
    sums: Tensor | None = None
    seen_by = torch.zeros(counts)
    class_token: Tensor | None = None
    for starts in in_parts(sweep.starts, config.windows_per_batch):
        crops, known = window_crops(voxels, valid, sweep, starts, seen.as_seen, device)
        shown = torch.ones(len(starts), *across.counts, dtype=torch.bool)
        if body is not None:
            holds = torch.stack([body[sweep.box(start)] for start in starts]).to(device)
            real = holds if known is None else holds & known
            shown = (F.max_pool3d(real[:, None].float(), patch, patch)[:, 0] > 0).cpu()
            known = without_air(known, holds, patch)
        found = read(crops, spacing.expand(len(starts), 3), known).float().cpu()
        extra, tokens = found[:, : found.shape[1] - across.n], found[:, -across.n :]
        if sums is None:
            sums = torch.zeros((*counts, tokens.shape[2]))
        if extra.shape[1]:
            total = extra[:, 0].sum(dim=0)
            class_token = total if class_token is None else class_token + total
        for start, one, there in zip(starts, tokens, shown, strict=True):
            box = _box(start, patch, across.counts)
            rows = one.reshape(*across.counts, -1)
            sums[box] += torch.where(there[..., None], rows, rows.new_zeros(()))
            seen_by[box] += there
    assert sums is not None  # there is always one window
    grid = TokenGrid.over(seen.shape, patch)
    inside = _box([side.start for side in sweep.inside], patch, grid.counts)
    times = seen_by[inside].flatten()
    patches = sums[inside].reshape(grid.n, -1)[times > 0] / times[times > 0, None]
    mean = None if class_token is None else class_token / len(sweep.starts)
    return VolumeFeatures(patches, grid.indices()[times > 0], grid, mean)


def _times(counts: Triple, patch: Triple) -> Triple:
    x, y, z = (count * edge for count, edge in zip(counts, patch, strict=True))
    return x, y, z


def _box(start: Triple | list[int], patch: Triple, counts: Triple) -> tuple[slice, slice, slice]:
    """So many patches from the one that begins at a voxel on."""
    firsts = (low // edge for low, edge in zip(start, patch, strict=True))
    x, y, z = (slice(first, first + count) for first, count in zip(firsts, counts, strict=True))
    return x, y, z


def _any_of_patch(body: NDArray[np.bool_], patch: Triple) -> NDArray[np.bool_]:
    """Whether a patch holds any voxel of the body, `gx gy gz`."""
    found = F.max_pool3d(
        torch.from_numpy(body.astype(np.float32))[None], patch, ceil_mode=True
    )  # fmt: skip
    return np.asarray(found[0].numpy() > 0)
