"""Several Hounsfield windows of one CT at once, so that lung, soft tissue and bone all count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mim3d.foundation.errors import ConfigError
from mim3d.models.patch_head import Answer
from mim3d.objectives.targets.base import Look, PatchTarget, Target
from mim3d.tokens.grid import Triple

Window = tuple[float, float]


class Windows(Target):
    """Every voxel as each window shows it: its low end 0, its high end 1; `(w c px py pz)`.

    Crops are CT, normalised by one window, from which intensities in HU are found again. What
    that window has clipped is not there any more, so that all others lie in it.

    Args:
        channels: c, of the crops.
        windows_hu: low and high end of each, in HU.
        prepared_hu: the window by which crops are normalised: its ends are 0 and 1.

    Raises:
        ConfigError: no window, one whose ends are not in order, or one that reaches beyond the
            prepared one, or this one is not known.
    """

    def __init__(
        self, channels: int, windows_hu: Sequence[Window], prepared_hu: Window | None
    ) -> None:
        super().__init__(Answer(channels * len(windows_hu)))
        if prepared_hu is None:
            raise ConfigError(
                "`objective.target windows` needs the window by which voxels are normalised",
                remedy="`mim3d pretrain` takes it from the store; elsewhere set "
                "`objective.targets.prepared_hu`",
                code="window",
            )
        _check(windows_hu, prepared_hu)
        self.windows_hu = tuple(windows_hu)
        self.prepared_hu = prepared_hu

    @torch.no_grad()
    def of(self, look: Look) -> PatchTarget:
        """`b q (w c p)`, each 0 to 1."""
        patches = look.patches
        shown = [((patches - low) / (high - low)).clamp(0, 1) for low, high in self._ends]
        return PatchTarget(torch.cat(shown, dim=-1), self._back)

    def weigh(self, weights: Tensor | None, patch: Triple) -> Tensor | None:
        """Each window as the voxels count."""
        if weights is None or weights.shape[-1] == 1:
            return weights
        return weights.repeat(1, 1, len(self.windows_hu))

    @property
    def _ends(self) -> list[Window]:
        """Both ends of each window in normalised units."""
        start, width = self.prepared_hu[0], self.prepared_hu[1] - self.prepared_hu[0]
        return [((low - start) / width, (high - start) / width) for low, high in self.windows_hu]

    def _back(self, predicted: Tensor) -> Tensor:
        """Each voxel by the narrowest window that shows it as neither black nor white.

        Black and white say at most and at least what the ends of the window stand for.
        """
        pairs = zip(predicted.chunk(len(self.windows_hu), dim=-1), self._ends, strict=True)
        widest, *others = sorted(pairs, key=lambda pair: pair[1][0] - pair[1][1])
        found = _intensities(*widest)
        for shown, ends in others:
            low, high = ends
            grey = _intensities(shown, ends)
            limited = torch.where(shown < 1, found.clamp_max(low), found.clamp_min(high))
            found = torch.where((shown > 0) & (shown < 1), grey, limited)
        return found


def _intensities(shown: Tensor, ends: Window) -> Tensor:
    low, high = ends
    return shown * (high - low) + low


def _check(windows_hu: Sequence[Window], prepared_hu: Window) -> None:
    listed = ", ".join(f"[{low:g}, {high:g}]" for low, high in windows_hu)
    if not windows_hu or not all(low < high for low, high in windows_hu):
        raise ConfigError(
            f"`objective.targets.windows_hu` is [{listed}], expected a lower and a higher value "
            "for each window",
            code="window",
        )
    start, stop = prepared_hu
    if any(low < start or high > stop for low, high in windows_hu):
        raise ConfigError(
            f"`objective.targets.windows_hu` has [{listed}], but voxels are clipped to "
            f"[{start:g}, {stop:g}] HU",
            remedy="take windows within it, or a wider `data.window_hu`",
            code="window",
        )
