"""From a config and a store to networks, tasks and validators: where the lower floors meet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mim3d.config.sections import DataConfig, EncoderConfig
from mim3d.data.store import Store, open_store
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.randomness import generator
from mim3d.models.presets import completed
from mim3d.training.loop import FitResult
from mim3d.workflows.loading import RECORD_FORMAT


def store_of(data: DataConfig) -> Store:
    """The store a config names.

    Raises:
        ConfigError: the config names none.
    """
    if data.store is None:
        raise ConfigError(
            "no store is named",
            remedy="`mim3d prepare SOURCE --out STORE` makes one; then add `--data.store STORE`",
            code="no-store",
        )
    return open_store(data.store)


def resolved_encoder(encoder: EncoderConfig, data: DataConfig, store: Store) -> EncoderConfig:
    """The encoder's config with what the store decides filled in.

    Raises:
        ConfigError: the config asks for another number of channels than the store has.
    """
    channels = len(store.channel_names)
    if encoder.channels not in (None, channels):
        raise ConfigError(
            f"`encoder.channels` is {encoder.channels}, but `{data.store}` has {channels}: "
            f"{', '.join(store.channel_names)}",
            remedy="leave `encoder.channels` out, or prepare a store of so many channels",
            code="channels",
        )
    return completed(
        encoder,
        channels=channels,
        crop_size=data.crop_size,
        spacing_mm=store.median_spacing_mm,
    )


@contextmanager
def initialising(seed: int, what: str) -> Iterator[None]:
    """Weights made in this block depend on the seed and on `what` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(seed, "initialise", what).integers(2**62)))
        yield


def preparation_record(store: Store, cases: tuple[str, ...], verb: str) -> dict[str, Any]:
    """What a run keeps of its store, so that prediction needs the run folder alone."""
    return {
        "format": RECORD_FORMAT,
        "verb": verb,
        "preparation": store.preparation,
        "modalities": list(store.modalities),
        "channel_names": list(store.channel_names),
        "classes": store.classes.as_json() if store.classes is not None else None,
        "median_spacing_mm": list(store.median_spacing_mm),
        "fingerprint": store.fingerprint,
        "trained_on": {case: store.source_hash(case) for case in cases},
    }


def run_folder(out: str | None, verb: str, name: str) -> Path:
    """Where a run goes: `--out`, or `runs/<verb>-<config name>`."""
    return Path(out) if out is not None else Path("runs") / f"{verb}-{name}"


def skipped(done: FitResult) -> str:
    """What a training says of steps it left out because something was not finite."""
    return f"; {done.skipped:,} steps were skipped as not finite" if done.skipped else ""
