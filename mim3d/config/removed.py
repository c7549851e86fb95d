"""Settings that configs once had: what was stored with one is read all the same, or says why not.

A run's `config.yaml` and a benchmark's `plan.json` name every setting of the version that wrote
them. One that is gone since takes nothing away where it stood at the default it had.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mim3d.foundation.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Removed:
    """A setting that is gone.

    Args:
        default: it had, as YAML holds it; of a section, those of its settings.
        why: what came in its place, as the end of a sentence.
        had_effect: whether another value made another run.
    """

    default: Any
    why: str
    had_effect: bool = True


REMOVED: Mapping[str, Mapping[str, Removed]] = {
    "pretrain": {
        "objective.contrast.centre_momentum": Removed(
            0.9, "BYOL lives by `objective.contrast.projector_norm batch` and has no centre"
        ),
    },
    "finetune": {
        "evaluation": Removed(
            {
                "nsd_tolerance_mm": 1.0,
                "resamples": 2000,
                "confidence": 0.95,
                "allow_missing": False,
            },
            "it had no effect on a fine-tuning; `mim3d evaluate` takes `evaluation.*`",
            had_effect=False,
        ),
    },
}
"""Verb to dotted key, or to a section."""


def removed(key: str, verb: str | None = None) -> Removed | None:
    """What is known of a setting that is gone; None for any other.

    Args:
        key: dotted.
        verb: whose config it stood in; None looks at those of all.
    """
    section, _, name = key.partition(".")
    for table in REMOVED.values() if verb is None else [REMOVED.get(verb, {})]:
        if key in table:
            return table[key]
        if section in table and name in table[section].default:
            return replace(table[section], default=table[section].default[name])
    return None


def is_dropped(key: str, value: Any, verb: str | None = None, place: str = "") -> bool:
    """Whether a stored setting is left out: it is gone, and stood at its default or had no effect.

    Args:
        key: dotted.
        value: as YAML or JSON hold it.
        verb: whose config it stands in; None looks at those of all.
        place: where, for messages: `` in `plan.json` ``.

    Raises:
        ConfigError: it is gone, and another value than it stood at made another run.
    """
    known = removed(key, verb)
    if known is None:
        return False
    if value == known.default:
        logger.info("`%s`%s is left out: it was removed, and stands at its default", key, place)
    elif known.had_effect:
        raise gone(key, known, f"{place} is `{str(value)[:60]}` and")
    else:
        logger.warning("`%s`%s is left out: %s", key, place, known.why)
    return True


def gone(key: str, known: Removed, place: str = "") -> ConfigError:
    """Says that a setting is no more.

    Args:
        key: dotted.
        known: what is known of it.
        place: where it stands.
    """
    only = "; what was made with it, only the version that made it can continue"
    return ConfigError(
        f"`{key}`{place} is a setting that was removed: {known.why}",
        remedy=f"leave it out of a config{only if known.had_effect else ''}",
        code="removed-key",
    )
