"""Small trainings that are planned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mim3d.config.data import DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig
from mim3d.config.plan import FinetunePlanConfig, PlanConfig, PretrainPlanConfig
from mim3d.config.training import OptimConfig, TrainingConfig
from mim3d.foundation.reporting import Silent
from mim3d.workflows.plan.plan import plan

TINY = EncoderConfig(width=24, depth=4, heads=2, patch=(4, 8, 4))
DATA = DataConfig(crop_size=(16, 32, 24))
MASKED = PretrainPlanConfig(
    data=DATA,
    encoder=TINY,
    objective=PretextConfig(decoder_width=16, decoder_depth=1, decoder_heads=2),
    optim=OptimConfig(ema=0.9),
    training=TrainingConfig(batch_size=16),
    plan=PlanConfig(gpu="h200", volumes=10, volume_shape=(64, 64, 48)),
)


def facts(config: PretrainPlanConfig | FinetunePlanConfig = MASKED, **said: Any) -> dict[str, Any]:
    return plan(replace(config, plan=replace(config.plan, **said)), reporter=Silent()).facts
