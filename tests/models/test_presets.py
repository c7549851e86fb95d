"""Sizes by name and the completion of a config."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch

from mim3d.config.encoder import EncoderConfig
from mim3d.foundation.errors import ConfigError, ShapeError
from mim3d.models.presets import PRESETS, completed, size_of
from mim3d.models.vit import VolumeViT


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


def test_a_patch_without_voxels_is_refused_before_crops_are_divided_by_it() -> None:
    given = EncoderConfig(patch=(0, 8, 8))

    with pytest.raises(ConfigError, match=r"`encoder.patch` is \(0, 8, 8\), expected 1 voxel"):
        completed(given, channels=1, crop_size=(16, 16, 16), spacing_mm=(1.0, 1.0, 1.0))


def test_completion_fills_what_the_config_leaves_open_and_nothing_else() -> None:
    given = EncoderConfig(patch=(8, 8, 4), channels=2)

    full = completed(given, channels=1, crop_size=(96, 90, 17), spacing_mm=(1.0, 1.0, 3.0))

    assert full.channels == 2
    assert full.learned_grid == (12, 12, 5)
    assert full.default_spacing_mm == (1.0, 1.0, 3.0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"patch": (0, 4, 4)}, "`encoder.patch` is (0, 4, 4), expected 1 voxel or more"),
        ({"learned_grid": (0, 2, 2)}, "`encoder.learned_grid` is (0, 2, 2)"),
        ({"default_spacing_mm": (0.0, 1.0, 1.0)}, "`encoder.default_spacing_mm` is"),
        ({"default_spacing_mm": (1.0, math.nan, 1.0)}, "`encoder.default_spacing_mm` is"),
        ({"wavelengths_mm": (0.0, 800.0)}, "`encoder.wavelengths_mm` is (0.0, 800.0)"),
        ({"wavelengths_mm": (-1.0, 5.0)}, "`encoder.wavelengths_mm` is"),
        ({"wavelengths_mm": (800.0, 8.0)}, "expected above 0, the shortest first"),
        ({"wavelengths_mm": (8.0, math.nan)}, "`encoder.wavelengths_mm` is"),
        ({"mlp_ratio": 0.0}, "`encoder.mlp_ratio` is 0.0"),
        ({"registers": -1}, "`encoder.registers` is -1, expected 0 or more"),
        ({"drop_path": 1.0}, "`encoder.drop_path` is 1.0"),
        ({"attention_dropout": -0.1}, "`encoder.attention_dropout` is -0.1"),
    ],
)
def test_numbers_that_no_encoder_can_have_are_refused_by_name(
    fields: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        VolumeViT(replace(EncoderConfig(preset="tiny", depth=1), **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("spacing_mm", [(1.0, 0.0, 1.0), (1.0, 1.0, -2.0), (1.0, math.nan, 1.0)])
def test_a_spacing_that_cannot_be_is_refused(spacing_mm: tuple[float, float, float]) -> None:
    encoder = VolumeViT(EncoderConfig(preset="tiny", depth=1, patch=(4, 4, 4)))

    with pytest.raises(ShapeError, match="a spacing above 0"):
        encoder(torch.zeros(1, 1, 8, 8, 8), spacing_mm)
