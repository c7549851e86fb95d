"""What the pages on Python show: from files to a label map, and a network of one's own."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def use(scan: str, run: str, voxels: Tensor) -> tuple[Any, Tensor]:
    """A label map from a run, and logits from a network without weights."""
    # --8<-- [start:use]
    import mim3d

    volume = mim3d.read_volume(scan)  # voxels c x y z in RAS+, affine, spacing_mm
    segmenter = mim3d.load_segmenter(run)  # the folder of `mim3d finetune`
    labels = mim3d.predict_volume(segmenter, volume)  # on the scan's own grid

    encoder = mim3d.VolumeViT.preset("tiny", patch=(8, 8, 8), channels=1)
    network = mim3d.UNETR(encoder, classes=14)  # a plain module
    logits = network(voxels, spacing_mm=(1.5, 1.5, 2.0))  # b c x y z -> b k x y z
    # --8<-- [end:use]
    return labels, logits


def workflows(scans: str, store: str) -> Any:
    """Two verbs from Python."""
    # --8<-- [start:workflows]
    from mim3d.config.verbs import PreparationConfig, PrepareConfig
    from mim3d.workflows.info import info
    from mim3d.workflows.prepare import prepare

    config = PrepareConfig(prepare=PreparationConfig(spacing_mm=(1.5, 1.5, 3.0), workers=0))
    result = prepare(scans, out=store, config=config)
    print(result)
    print(info(store).facts)
    # --8<-- [end:workflows]
    return result


def parse(config: str, store: str) -> Any:
    """A config that ships, with settings over it."""
    # --8<-- [start:config]
    from mim3d.config.reading import read_config
    from mim3d.config.verbs import PretrainConfig

    settings = read_config(config, PretrainConfig, {"data.store": store, "training.steps": 200})
    # --8<-- [end:config]
    return settings
