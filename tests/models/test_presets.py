"""Sizes by name and the completion of a config."""

from __future__ import annotations

import pytest

from mim3d.config.sections import EncoderConfig
from mim3d.foundation.errors import ConfigError
from mim3d.models.presets import PRESETS, completed, size_of


def test_heads_are_64_wide_in_every_preset() -> None:
    assert {size.width // size.heads for size in PRESETS.values()} == {64}


def test_fields_stand_above_the_preset() -> None:
    size = size_of(EncoderConfig(preset="tiny", depth=6))

    assert size == (192, 6, 3)


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="no multiple"):
        size_of(EncoderConfig(preset="tiny", heads=5))


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="tiny, small, base, large"):
        size_of(EncoderConfig(preset="huge"))  # type: ignore[arg-type]


def test_completion_fills_what_the_config_leaves_open_and_nothing_else() -> None:
    given = EncoderConfig(patch=(8, 8, 4), channels=2)

    full = completed(given, channels=1, crop_size=(96, 90, 17), spacing_mm=(1.0, 1.0, 3.0))

    assert full.channels == 2
    assert full.learned_grid == (12, 12, 5)
    assert full.default_spacing_mm == (1.0, 1.0, 3.0)
