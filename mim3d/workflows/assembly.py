"""From a config and a store to networks, tasks and validators: where the lower floors meet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mim3d.config.data import DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.data.store import Store, open_store, open_stores
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.randomness import generator
from mim3d.models.presets import completed
from mim3d.tokens.contrasts import check_different, places_of
from mim3d.training.standing import FitResult
from mim3d.workflows.run_record import RECORD_FORMAT


def store_of(data: DataConfig, *, several: bool = False) -> Store:
    """The store a config names, or its stores as one.

    Args:
        data: the config's section.
        several: whether `stores` are taken.

    Raises:
        ConfigError: the config names none, or several where one is taken, or both.
    """
    if data.stores and not several:
        raise ConfigError(
            "`data.stores` is for pre-training alone",
            remedy="name the one store with `--data.store STORE`",
            code="stores",
        )
    if data.stores and data.store is not None:
        raise ConfigError(
            "`data.store` and `data.stores` are both set",
            remedy="name all stores in `data.stores` and leave `data.store` out",
            code="stores",
        )
    if data.store_weights is not None and len(data.stores) < 2:
        raise ConfigError(
            "`data.store_weights` needs several `data.stores`",
            remedy="leave it out: one store has every crop",
            code="stores",
        )
    if data.stores:
        return open_stores(data.stores)
    if data.store is None:
        raise ConfigError(
            "no store is named",
            remedy="`mim3d prepare SOURCE --out STORE` makes one; then add `--data.store STORE`",
            code="no-store",
        )
    return open_store(data.store)


def shares_of(store: Store, cases: tuple[str, ...]) -> str:
    """What a pre-training says of where its cases lie.

    Raises:
        UserError: one of several stores has none of them.
    """
    shares = store.strata(cases)
    empty = [name for name, share in shares.items() if not share]
    if empty:
        raise UserError(
            f"there is no case to pre-train on in the store `{empty[0]}`",
            where=str(store.path),
            remedy="leave it out of `data.stores`; a subject that judges in one store, by its id, "
            "is left out of all",
            code="empty-cohort",
        )
    if len(shares) == 1:
        return f"`{store.path}`"
    return ", ".join(f"`{name}` ({len(share)})" for name, share in shares.items())


def resolved_encoder(encoder: EncoderConfig, data: DataConfig, store: Store) -> EncoderConfig:
    """The encoder's config with what the store decides filled in.

    Raises:
        ConfigError: the config asks for another number of channels than the store has, or the store
            has a contrast that the config does not name.
    """
    if encoder.embedding == PER_CONTRAST:
        return _with_contrasts(encoder, data, store)
    channels = len(store.channel_names)
    if encoder.channels not in (None, channels):
        raise ConfigError(
            f"`encoder.channels` is {encoder.channels}, but `{store.path}` has {channels}: "
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


PER_CONTRAST = "per_contrast"


def _with_contrasts(encoder: EncoderConfig, data: DataConfig, store: Store) -> EncoderConfig:
    """With the names of the contrasts, of which the store may lack some."""
    names = store.channel_names
    if len({member.channel_names for member in store.members.values()}) > 1:
        listed = ", ".join(f"`{name}` has {', '.join(member.channel_names)}"
                           for name, member in store.members.items())  # fmt: skip
        raise ConfigError(
            f"`encoder.embedding` per_contrast goes by names, which differ: {listed}",
            remedy="prepare the stores with the same names of channels, or take "
            "`--encoder.embedding joint`",
            code="contrasts",
        )
    if encoder.contrasts:
        places_of(names, encoder.contrasts, f"`{store.path}`")
    check_different(names, f"`{store.path}`")
    encoder = replace(encoder, contrasts=encoder.contrasts or names)
    if encoder.channels not in (None, len(encoder.contrasts)):
        raise ConfigError(
            f"`encoder.channels` is {encoder.channels}, but there are {len(encoder.contrasts)} "
            f"contrasts: {', '.join(encoder.contrasts)}",
            remedy="leave `encoder.channels` out",
            code="channels",
        )
    return completed(
        encoder,
        channels=len(encoder.contrasts),
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
