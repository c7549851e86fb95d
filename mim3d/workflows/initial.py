"""Which encoder a training has that starts from another run: that run's, except what was said."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from mim3d.config.encoder import EncoderConfig
from mim3d.config.verbs import FinetuneConfig, PretrainConfig
from mim3d.data.store import Store
from mim3d.foundation.errors import ConfigError
from mim3d.models.adaptation import JOINT, LEARNED, check_adaptable, part_of
from mim3d.workflows.assembly import resolved_encoder
from mim3d.workflows.run_weights import encoder_of

SCRATCH = "none"
"""What `--init` says to start from scratch."""
LEARNING_FIELDS = ("drop_path", "attention_dropout", "checkpointing", "default_spacing_mm")
"""Fields of the encoder that belong to a training or its store, and not to weights."""


def is_fresh(config: PretrainConfig | FinetuneConfig) -> bool:
    """Whether a training starts from no other run."""
    return config.init in (None, SCRATCH)


def encoder_for(
    config: PretrainConfig | FinetuneConfig, store: Store, said: Collection[str] | None = None
) -> EncoderConfig:
    """The encoder of a training, with what its store and its initial run decide filled in.

    Where config and line are silent on the encoder, it is the initial run's. What they say must
    agree with that run or be listed in `init_adapt` (`adopted`).

    Args:
        config: of the training.
        store: that it trains on.
        said: dotted settings that were written down; None takes those that differ from the
            defaults, and `encoder.patch` where `init_adapt` lists it.

    Raises:
        ConfigError: the config contradicts the run or the store.
        WeightsError: the run's weights cannot be adapted so.
    """
    if is_fresh(config):
        return resolved_encoder(config.encoder, config.data, store)
    found = encoder_of(str(config.init), config.init_checkpoint)
    taken = adopted(config, found, said)
    if config.encoder.channels is None and (taken.embedding, found.embedding) == (JOINT, JOINT):
        taken = _with_channels(taken, config, store)
    elif taken.embedding != found.embedding:
        taken = replace(taken, channels=None)
    resolved = resolved_encoder(taken, config.data, store)
    check_adaptable(found, resolved, source=str(config.init))
    return resolved


def adopted(
    config: PretrainConfig | FinetuneConfig,
    found: EncoderConfig,
    said: Collection[str] | None = None,
) -> EncoderConfig:
    """The initial run's encoder with what was said of it, channels and grid perhaps still open.

    Args:
        config: of the training.
        found: the initial run's encoder.
        said: as `encoder_for`'s.

    Raises:
        ConfigError: something that was said differs and is not listed in `init_adapt`.
    """
    asked, parts = config.encoder, config.init_adapt or ()
    taken = {field: getattr(asked, field) for field in LEARNING_FIELDS}
    for field, value in vars(asked).items():
        if field in LEARNING_FIELDS or not _is_said(field, config, said):
            continue
        if field == "learned_grid" and LEARNED not in (asked.positions, found.positions):
            continue  # without a table it is the crop's, and no part of the weights
        if value != getattr(found, field) and part_of(field) not in parts:
            raise _differs(field, config, found)
        taken[field] = value
    if "positions" in parts and taken.get("positions", found.positions) == LEARNED:
        taken.setdefault("learned_grid", None)  # that of the crops
    return replace(found, **taken)


def _is_said(
    field: str, config: PretrainConfig | FinetuneConfig, said: Collection[str] | None
) -> bool:
    if said is not None:
        return f"encoder.{field}" in said
    # The default patch is a patch like any other: whoever adapts to it means it.
    is_meant = field == "patch" and "patch" in (config.init_adapt or ())
    plain = type(config.encoder)()
    return is_meant or getattr(config.encoder, field) != getattr(plain, field)


def _with_channels(
    taken: EncoderConfig, config: PretrainConfig | FinetuneConfig, store: Store
) -> EncoderConfig:
    """With the store's number of channels, if the run's may be adapted to it."""
    channels = len(store.channel_names)
    if taken.channels in (None, channels) or "channels" in (config.init_adapt or ()):
        return replace(taken, channels=None)
    raise ConfigError(
        f"`{config.init}` has {_counted(taken.channels or 1)}, but `{store.path}` has "
        f"{channels}: {', '.join(store.channel_names)}",
        remedy=f"add `--init_adapt {_listed(config, 'channels')}`: one channel becomes many by "
        "repeating its kernel, many become one by their sum; or prepare a store of so many",
        code="channels",
    )


def _differs(
    field: str, config: PretrainConfig | FinetuneConfig, found: EncoderConfig
) -> ConfigError:
    there = getattr(found, field)
    remedy = (
        f"add `--encoder.{field} {_typed(there)}`, or take `encoder.{field}` out of the config: "
        "then it comes from the run"
    )
    part = part_of(field)
    if part is not None:
        remedy += f"; or add `--init_adapt {_listed(config, part)}` to adapt the run's weights"
    return ConfigError(
        f"`encoder.{field}` is {getattr(config.encoder, field)}, but `{config.init}` has {there}",
        remedy=remedy,
        code="encoder-differs",
    )


def _listed(config: PretrainConfig | FinetuneConfig, part: str) -> str:
    """What `--init_adapt` would have to say, with what it says already."""
    return ",".join([*(config.init_adapt or ()), part])


def _counted(channels: int) -> str:
    return "1 channel" if channels == 1 else f"{channels} channels"


def _typed(value: object) -> str:
    """A setting as one types it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
