"""From a config to its pretext task."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mim3d.config.sections import DataConfig, EncoderConfig, PretextConfig
from mim3d.config.verbs import PretrainConfig
from mim3d.foundation.reporting import Silent
from mim3d.models.vit import VolumeViT
from mim3d.workflows import pretrain


def test_a_teacher_begins_as_a_copy_of_the_encoder_that_init_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Loaded behind the task, the encoder had a teacher of random weights."""

    def start_from(encoder: VolumeViT, *_: Any) -> None:
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.fill_(0.25)

    monkeypatch.setattr(pretrain, "start_from", start_from)
    config = PretrainConfig(
        data=DataConfig(store="none"),
        encoder=EncoderConfig(width=24, depth=1, heads=2, patch=(4, 4, 4)),
        objective=PretextConfig(name="byol"),
        init="runs/before",
    )

    task: Any = pretrain.pretext_task(config, Silent())

    for mine, theirs in zip(
        task.teacher.module.encoder.parameters(), task.encoder.parameters(), strict=True
    ):
        assert torch.equal(mine, torch.full_like(mine, 0.25))
        assert torch.equal(mine, theirs)
