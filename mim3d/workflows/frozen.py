"""The encoder of any run, frozen: ready to read volumes by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mim3d.config.data import DataConfig, Triple
from mim3d.config.encoder import EncoderConfig
from mim3d.config.inference import InferenceConfig
from mim3d.config.reading import read_config
from mim3d.config.tree import hints
from mim3d.config.verbs import FinetuneConfig, PretrainConfig
from mim3d.data.prepare import VolumeRule
from mim3d.foundation.errors import UserError
from mim3d.foundation.reporting import Silent
from mim3d.inference.features import TokenReader, VolumeFeatures, encode_volume
from mim3d.inference.seen import Seen
from mim3d.inference.segmenter import Segmenter, predicting
from mim3d.models.vit import VolumeViT
from mim3d.training.fabric import choose_device, choose_precision
from mim3d.workflows.run_record import load_preparation, rule_of
from mim3d.workflows.run_weights import Which, checkpoint_of, encoder_of, start_from


@dataclass(frozen=True, eq=False)
class FrozenEncoder:
    """An encoder that learns nothing more.

    Attributes:
        run: its folder.
        step: of the checkpoint.
        encoder: its config.
        reader: the network with its window and how its input is made; its rule is None where the
            run knows no preparation (converted weights).
        record: what the run keeps of its store.
        drops_air: whether patches without body were left out of its training, and are here.
    """

    run: str
    step: int
    encoder: EncoderConfig
    reader: Segmenter
    record: dict[str, Any]
    drops_air: bool = False

    @property
    def network(self) -> VolumeViT:
        """The encoder itself."""
        reader = self.reader.network
        assert isinstance(reader, TokenReader)
        return reader.encoder

    def for_channels(self, names: Sequence[str], source: str) -> FrozenEncoder:
        """The same for volumes of these channels.

        Args:
            names: of the volumes' channels, in their order.
            source: whose they are, for the message.

        Raises:
            UserError: there are more or fewer than the encoder takes, or one that it does not know.
        """
        network = self.network
        if network.contrasts:
            reader = replace(self.reader, channel_names=self.reader.channel_names or tuple(names))
            return replace(self, reader=reader.for_channels(names))
        if len(names) != network.channels:
            raise UserError(
                f"the encoder of `{self.run}` has {network.channels} channel(s), but {source} has "
                f"{len(names)}: {', '.join(names)}",
                remedy="prepare a store of so many channels",
                code="channels",
            )
        return replace(self, reader=replace(self.reader, channel_names=tuple(names)))

    def features(
        self, seen: Seen, config: InferenceConfig, window: Triple | None = None
    ) -> VolumeFeatures:
        """What it knows of a volume.

        Args:
            seen: the volume as the encoder sees it.
            config: overlap and windows a batch.
            window: voxels of a window; None is that of its training.

        Raises:
            UserError: its training left patches without body out, and it is not known what is air.
        """
        if self.drops_air and seen.body is None:
            raise UserError(
                f"`{self.run}` was trained without patches of air, and it is not known what is air "
                "in this volume",
                remedy="prepare the cohort again",
                code="no-air",
            )
        with predicting(self.reader) as read:
            return encode_volume(
                seen,
                read,
                config,
                patch=self.encoder.patch,
                window=window or self.reader.window,
                device=self.reader.device,
                drop_air=self.drops_air,
            )


def load_encoder(
    run: str | Path,
    *,
    checkpoint: Which = "last",
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
) -> FrozenEncoder:
    """The encoder of a run that was pre-trained, fine-tuned or converted.

    Args:
        run: its folder.
        checkpoint: which of its checkpoints.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        precision: `auto` is bf16 where the device does it in hardware.

    Raises:
        UserError: no such run or checkpoint, or a damaged one.
        WeightsError: its weights are no whole encoder.
    """
    record, config = load_preparation(run), encoder_of(run, checkpoint)
    said = config_of(run, record)
    data = said.data
    encoder = VolumeViT(config)
    start_from(encoder, str(run), checkpoint, Silent())
    chosen = choose_device(device)
    names = tuple(record["channel_names"])
    reader = Segmenter(
        TokenReader(encoder),
        window_of(config, data, record),
        rule=rule_of(data.window_hu, record, run) if _says_how(record) else None,
        channel_names=names or None,
        device=chosen,
        precision=choose_precision(precision, chosen),
    )
    step = int(checkpoint_of(run, checkpoint).name)
    return FrozenEncoder(str(run), step, config, reader, record, drops_air(said))


def drops_air(said: PretrainConfig | FinetuneConfig) -> bool:
    """Whether the encoder never saw patches of air: what a segmenter says of it is not read."""
    if isinstance(said, PretrainConfig):
        return said.objective.drop_air
    return said.task != "segmentation" and said.classification.drop_air


def config_of(run: str | Path, record: dict[str, Any]) -> PretrainConfig | FinetuneConfig:
    """How a run was trained."""
    path = Path(run) / "config.yaml"
    if record["verb"] == "finetune":
        return read_config(path, FinetuneConfig)
    return read_config(path, PretrainConfig)


def window_of(encoder: EncoderConfig, data: DataConfig, record: dict[str, Any]) -> Triple:
    """The crop that a run was trained on; of converted weights their table's grid, if any."""
    if record["preparation"] or encoder.learned_grid is None:
        return data.crop_size
    x, y, z = (n * edge for n, edge in zip(encoder.learned_grid, encoder.patch, strict=True))
    return x, y, z


def _says_how(record: dict[str, Any]) -> bool:
    """Whether a run's record tells one way from files to volumes: not of several stores."""
    return not set(hints(VolumeRule)).isdisjoint(record["preparation"])


def check_prepares(frozen: FrozenEncoder) -> None:
    """Raises `UserError` where a run does not know how files become what its encoder sees."""
    if frozen.reader.rule is None:
        raise UserError(
            f"`{frozen.run}` does not say how its volumes were prepared, so no file can be shown "
            "to it",
            remedy="`mim3d prepare SOURCE --out STORE` makes a store; then `mim3d embed "
            f"{frozen.run} STORE`",
            code="no-preparation",
        )
