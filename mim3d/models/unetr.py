"""The segmenter: an encoder and a decoder behind one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mim3d.config.task import DecoderConfig
from mim3d.models.decoders import SkipSegmenter, build_decoder
from mim3d.models.direct import DirectPath
from mim3d.models.encoder_input import Crops, Spacing
from mim3d.models.hidden_states import HiddenStates
from mim3d.models.vit import VolumeViT


class UNETR(nn.Module):
    """Logits for every voxel (Hatamizadeh et al., arXiv:2103.10504).

    Its weights are named `encoder.*` and `decoder.*`.

    Args:
        encoder: a `VolumeViT`, pre-trained or not.
        classes: outputs of the last map: classes with a softmax, regions with a sigmoid.
        decoder: which decoder; none is UNETR's with normalised taps.
    """

    def __init__(
        self, encoder: VolumeViT, classes: int, decoder: DecoderConfig | None = None
    ) -> None:
        super().__init__()
        self.classes = classes
        self.decoder_config = decoder or DecoderConfig()
        self.encoder = encoder
        self.decoder = build_decoder(self.decoder_config, encoder, classes)
        if self.decoder_config.direct != "none":
            self.decoder.direct = DirectPath(encoder, classes)

    @classmethod
    def load(cls, path: str | Path, *, checkpoint: str = "last") -> UNETR:
        """The whole segmenter of a run or a hub folder, in eval mode, on the CPU.

        Args:
            path: where it lies; nothing is looked up anywhere else.
            checkpoint: which of a run's, `last` or `best`.

        Raises:
            WeightsError: there are no weights, or not those of a whole segmenter.
        """
        from mim3d.models.saved import load_unetr

        return load_unetr(path, checkpoint)

    @property
    def direct(self) -> DirectPath | None:
        """The linear path beside the decoder, stored under `decoder.direct`; None without one."""
        path = getattr(self.decoder, "direct", None)
        assert path is None or isinstance(path, DirectPath)
        return path

    def forward(
        self,
        voxels: Tensor,
        spacing_mm: Spacing = None,
        valid: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """Logits `b k x y z` of the voxels' own size.

        Args:
            voxels: `b c x y z`, normalised, any size.
            spacing_mm: `b 3` or three numbers; none takes the encoder's default.
            valid: `b x y z` bool, False at padding; none is all valid.
            present: `b c` bool, which contrasts are there; none is all (`VolumeViT.placed`).
        """
        return self.decoded(*self.encoded(voxels, spacing_mm, valid, present))

    def decoded(self, states: HiddenStates, voxels: Tensor) -> Tensor:
        """Logits `b k x y z` from hidden states and the voxels that `encoded` gave with them."""
        logits: Tensor = self.decoder(states, voxels)
        return logits if self.direct is None else logits + self.direct(states, voxels)

    def pyramid(
        self,
        voxels: Tensor,
        spacing_mm: Spacing = None,
        valid: Tensor | None = None,
        present: Tensor | None = None,
    ) -> list[Tensor]:
        """The logits, and behind them those of the coarser levels that are supervised in training.

        Arguments as `forward`'s.
        """
        if not isinstance(self.decoder, SkipSegmenter):
            return [self(voxels, spacing_mm, valid, present)]
        return self._levels(*self.encoded(voxels, spacing_mm, valid, present))

    def pyramids_packed(self, crops: Sequence[Crops]) -> list[list[Tensor]]:
        """`pyramid` of groups of crops of several sizes, which are encoded as one sequence.

        Args:
            crops: as `VolumeViT.forward_packed` takes them, with 0 in padding.
        """
        taps: Any = self.decoder.taps
        states = self.encoder.forward_packed(crops, taps=taps)
        return [self._levels(seen, group.voxels) for seen, group in zip(states, crops, strict=True)]

    def _levels(self, states: HiddenStates, voxels: Tensor) -> list[Tensor]:
        """The logits, and behind them those of the coarser levels, if there are any."""
        decoder = self.decoder
        if isinstance(decoder, SkipSegmenter):
            logits = decoder.pyramid(states, voxels)
        else:
            logits = [decoder(states, voxels)]
        if self.direct is not None:
            logits[0] = logits[0] + self.direct(states, voxels)
        return logits

    def encoded(
        self,
        voxels: Tensor,
        spacing_mm: Spacing,
        valid: Tensor | None,
        present: Tensor | None = None,
    ) -> tuple[HiddenStates, Tensor]:
        """Hidden states at the decoder's taps, and the voxels by contrast, none in padding.

        Arguments as `VolumeViT`'s.
        """
        voxels, shown = self.encoder.placed(voxels, present)
        if valid is not None:
            voxels = torch.where(valid[:, None], voxels, voxels.new_zeros(()))
        taps = self.decoder.taps
        return self.encoder(voxels, spacing_mm, valid=valid, taps=taps, shown=shown), voxels
