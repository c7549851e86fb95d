"""Settings that configs once had: what was stored with one is read all the same, or says why not.

A run's `config.yaml` and a benchmark's `plan.json` name every setting of the version that wrote
them. One that is gone since takes nothing away where it stood at the default it had.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mim3d.foundation.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Removed:
    """A setting that is gone.

    Args:
        default: it had, as YAML holds it.
        why: what came in its place, as the end of a sentence.
    """

    default: Any
    why: str


REMOVED: Mapping[str, Mapping[str, Removed]] = {
    "pretrain": {
        "objective.contrast.centre_momentum": Removed(
            0.9, "BYOL lives by `objective.contrast.projector_norm batch` and has no centre"
        ),
    },
}
"""Verb to dotted key."""


def removed(key: str, verb: str | None = None) -> Removed | None:
    """What is known of a setting that is gone; None for any other.

    Args:
        key: dotted.
        verb: whose config it stood in; None looks at those of all.
    """
    tables = REMOVED.values() if verb is None else [REMOVED.get(verb, {})]
    return next((table[key] for table in tables if key in table), None)


def is_dropped(key: str, value: Any, verb: str | None = None, place: str = "") -> bool:
    """Whether a stored setting is left out: it is gone, and stood at the default it had.

    Args:
        key: dotted.
        value: as YAML or JSON hold it.
        verb: whose config it stands in; None looks at those of all.
        place: where, for messages: `` in `plan.json` ``.

    Raises:
        ConfigError: it is gone, and stood at another value.
    """
    known = removed(key, verb)
    if known is None:
        return False
    if value != known.default:
        raise gone(key, known, f"{place} is `{str(value)[:60]}` and")
    logger.info("`%s`%s is left out: it was removed, and stands at its default", key, place)
    return True


def gone(key: str, known: Removed, place: str = "") -> ConfigError:
    """Says that a setting is no more.

    Args:
        key: dotted.
        known: what is known of it.
        place: where it stands.
    """
    return ConfigError(
        f"`{key}`{place} is a setting that was removed: {known.why}",
        remedy="leave it out of a config; what was made with it, only the version that made it "
        "can continue",
        code="removed-key",
    )
