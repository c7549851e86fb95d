"""The weights of a run or hub folder: which file they are, and how another run starts from them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from mim3d.config.encoder import EncoderConfig
from mim3d.foundation.digests import file_digest
from mim3d.foundation.errors import UserError
from mim3d.foundation.reporting import Reporter
from mim3d.models.adaptation import Adapted, adapted_tensors
from mim3d.models.saved import HUB_WEIGHTS, is_hub, read_hub
from mim3d.models.vit import VolumeViT
from mim3d.models.weights import Weights, encoder_config, encoder_tensors, transfer_encoder
from mim3d.training.checkpoints import WEIGHTS, Checkpoints, read_weights, weights_digest

Which = Literal["last", "best"]
INIT = "init.json"
"""What a run keeps of the one it started from."""


def checkpoint_of(run: str | Path, which: Which = "last") -> Path:
    """The folder of a run's checkpoint.

    Raises:
        UserError: there is no run, or it has no such checkpoint.
    """
    folder = Path(run)
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"`{run}` is not a run folder",
            remedy="give the folder that `mim3d pretrain` or `mim3d finetune` wrote",
            code="no-run",
        )
    found = Checkpoints(folder / "checkpoints").find(which)
    if found is None:
        raise UserError(
            f"run `{run}` has no `{which}` checkpoint yet",
            remedy="the command that began it goes on when it is typed again",
            code="no-checkpoint",
        )
    return found


def weights_of(run: str | Path, which: Which = "last") -> Weights:
    """What a run, or a hub folder that was made of one, predicts with, and the file's header.

    Raises:
        UserError: there is no run, no such checkpoint, or it is damaged.
    """
    if is_hub(run):
        return read_hub(run).weights
    return Weights(*read_weights(checkpoint_of(run, which)))


def encoder_of(run: str | Path, which: Which = "last") -> EncoderConfig:
    """The config of a run's encoder, from the header of its weights."""
    _, metadata = weights_of(run, which)
    return encoder_config(metadata, source=str(run))


def start_from(
    encoder: VolumeViT,
    run: str,
    which: Which,
    reporter: Reporter,
    adapt: Collection[str] | None = None,
) -> None:
    """Puts a run's encoder into `encoder`, whole or not at all.

    Args:
        encoder: what the weights are for.
        run: whose they are.
        which: of its checkpoints.
        reporter: is told what was taken, left and adapted.
        adapt: what may be adapted: `patch`, `channels`, `positions`; None is nothing.

    Raises:
        WeightsError: anything does not fit; every key is listed.
    """
    tensors, metadata = weights_of(run, which)
    found = encoder_config(metadata, source=run)
    report = transfer_encoder(encoder, tensors, source=run, found=found, adapt=adapt or ())
    left = f"; {len(report.left)} others (decoder, head) start afresh" if report.left else ""
    reporter.say(f"loaded all {len(report.loaded)} encoder tensors of `{run}`{left}")
    for adapted in report.adapted:
        reporter.say(f"adapted {adapted}")


def run_digest(run: str | Path, which: Which = "last") -> str:
    """SHA-256 of the file of weights that a run predicts with."""
    if is_hub(run):
        return file_digest(Path(run) / HUB_WEIGHTS)
    return file_digest(checkpoint_of(run, which) / WEIGHTS)


def initial_record(
    run: str,
    which: Which = "last",
    *,
    asked: EncoderConfig | None = None,
    adapt: Collection[str] | None = None,
) -> dict[str, Any]:
    """What a run that starts from another keeps of it: the step, and a digest of the encoder.

    The digest is `weights_digest` of the encoder's tensors by their own keys: equal exactly where
    every number is. It is of the tensors as the other run has them, before any is adapted.

    Args:
        run: the other one.
        which: of its checkpoints.
        asked: the encoder that the run itself has; needed to say what was adapted.
        adapt: as `start_from`'s.
    """
    step = read_hub(run).step if is_hub(run) else int(checkpoint_of(run, which).name)
    tensors, metadata = weights_of(run, which)
    inside, left = encoder_tensors(tensors)
    changes: tuple[Adapted, ...] = ()
    if asked is not None and adapt:
        found = encoder_config(metadata, source=run)
        _, changes = adapted_tensors(inside, found, asked, parts=adapt, source=run)
    return {
        "init": run,
        "checkpoint": which,
        "step": step,
        "encoder_digest": weights_digest(inside),
        "loaded": sorted(inside),
        "left": list(left),
        # Only where there is any: a run that adapts nothing keeps the same record as ever.
        **({"adapted": [asdict(one) for one in changes]} if changes else {}),
    }
