"""What readers of frozen features are given: of a run's encoder, of a random one, of raw voxels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mim3d.config.data import Triple
from mim3d.config.inference import InferenceConfig
from mim3d.data.store import Store
from mim3d.data.volume import spacing_of
from mim3d.evaluation.probes import MOST_VOXELS, position_features, voxel_features
from mim3d.inference.seen import Seen
from mim3d.models.classifier import Pool, no_class_token
from mim3d.tokens.grid import TokenGrid
from mim3d.tokens.patches import patchify
from mim3d.workflows.frozen import FrozenEncoder
from mim3d.workflows.tasks.classification import stored_volume

RUN, RANDOM, VOXELS = "this run", "random weights", "raw voxels"
"""Whose features a row of the comparison reads."""


@dataclass(frozen=True, eq=False)
class SeenTokens:
    """The patches of a volume, by each view.

    Attributes:
        features: `n d` by view.
        places: `n 3`, where each lies in `grid`.
        grid: all patches of the volume.
    """

    features: Mapping[str, Tensor]
    places: Tensor
    grid: TokenGrid


class Views:
    """How a volume of a store is looked at.

    Args:
        encoders: by name, all of one patch; at least one.
        store: whose volumes.
        cases: those that readers are fitted to, which tell how far positions reach.
        config: of the windows.
        window: voxels of a window.
        pool: what of an encoder stands for a volume.
        with_voxels: whether raw voxels are a view too.
    """

    def __init__(
        self,
        encoders: Mapping[str, FrozenEncoder],
        store: Store,
        cases: Sequence[str],
        config: InferenceConfig,
        *,
        window: Triple,
        pool: Pool = "mean",
        with_voxels: bool = True,
    ) -> None:
        self.encoders, self.store, self.config, self.window = dict(encoders), store, config, window
        self.pool, self.with_voxels = pool, with_voxels
        first = next(iter(encoders.values()))
        self.patch = first.encoder.patch
        if pool == "class_token" and not first.encoder.class_token:
            raise no_class_token()
        entries = [store.entry(case) for case in cases]
        reach = [
            n * edge / 2
            for one in entries
            for n, edge in zip(one.shape[1:], one.spacing_mm, strict=True)
        ]
        self.reach_mm = torch.tensor(max(reach), dtype=torch.float64)
        smallest = [min(sides) for sides in zip(*(one.shape[1:] for one in entries), strict=True)]
        side = math.floor((MOST_VOXELS / store.channels) ** (1 / 3) + 1e-9)
        self.boxes = tuple(max(1, min(side, edge)) for edge in smallest)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the views."""
        return (*self.encoders, *((VOXELS,) if self.with_voxels else ()))

    def tokens(self, case_id: str) -> SeenTokens:
        """The patches of a case, by every view; all have the same places."""
        seen = self._seen(case_id)
        found = {name: one.features(seen, self.config, self.window)
                 for name, one in self.encoders.items()}  # fmt: skip
        first = next(iter(found.values()))
        features = {name: one.patches for name, one in found.items()}
        if self.with_voxels:
            features[VOXELS] = self._patch_voxels(seen, first.grid, first.places)
        return SeenTokens(features, first.places, first.grid)

    def volume(self, case_id: str) -> dict[str, Tensor]:
        """One vector a view that stands for a case."""
        seen = self._seen(case_id)
        features: dict[str, Tensor] = {}
        for name, one in self.encoders.items():
            features[name] = one.features(seen, self.config, self.window).pooled(self.pool)
        if self.with_voxels:
            # The whole volume in as many boxes as a token has numbers at most.
            features[VOXELS] = F.adaptive_avg_pool3d(seen.voxels, self.boxes).flatten()
        return features

    def _seen(self, case_id: str) -> Seen:
        with self.store.open(case_id) as case:
            drops_air = any(one.drops_air for one in self.encoders.values())
            return stored_volume(case, wants_body=self.config.skip_air or drops_air)

    def _patch_voxels(self, seen: Seen, grid: TokenGrid, places: Tensor) -> Tensor:
        """Intensities of patches, and where in the volume they lie."""
        far = [more - side for more, side in zip(grid.padded, seen.shape, strict=True)]
        whole = F.pad(seen.voxels, [0, far[2], 0, far[1], 0, far[0]])
        index = (places * torch.tensor([grid.counts[1] * grid.counts[2], grid.counts[2], 1])).sum(1)
        patches = patchify(whole[None], grid.patch)[0, index]
        what = voxel_features(patches, len(seen.voxels), grid.patch)
        spacing = torch.tensor([spacing_of(seen.affine)])
        where = grid.centres_mm(spacing)[0, index]
        extent = (-self.reach_mm).expand(3), self.reach_mm.expand(3)
        return torch.cat([what.double(), position_features(where, extent)], dim=1).float()
