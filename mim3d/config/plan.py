"""What `mim3d plan` is asked beside the config that it plans."""

from __future__ import annotations

from dataclasses import dataclass, field

from mim3d.config.data import Triple
from mim3d.config.verbs import FinetuneConfig, PretrainConfig


@dataclass(frozen=True)
class PlanConfig:
    """The machine and the cohort a training is planned for."""

    gpu: str = "cpu"
    """GPU that will train, in small or capital letters, or `cpu` for this machine, which is then
    measured. One of cpu, h200, h100, a100, l40s, rtx4090, v100."""
    devices: int = 1
    """Number of GPUs, or of processes on the CPU."""
    devices_per_node: int = 8
    """GPUs that share a machine; beyond it gradients cross the network."""
    volumes: int | None = None
    """Volumes of the cohort; none takes the store's, or 1,000 where no store is named."""
    volume_shape: Triple = (512, 512, 300)
    """Voxels of a volume; where a store is named, its median."""
    epochs: float | None = None
    """Length in place of `training.steps`: passes over the cohort, each of as many crops as fill
    its volumes once without overlap."""
    disk_mb_s: float = 1000.0
    """MB that the disk or network mount delivers a second to each device."""
    compression: float = 2.6
    """How many times smaller a store is than its int16 voxels."""
    resident_gb: float | None = None
    """GB for resident volumes, each device's; none takes what training leaves free there."""
    classes: int | None = None
    """Classes with background; none takes the store's, or 14 where no store is named."""
    measure: bool = True
    """On the CPU: take two real steps on synthetic crops and correct the expected time by them."""


@dataclass(frozen=True)
class PretrainPlanConfig(PretrainConfig):
    """A pre-training to be planned."""

    plan: PlanConfig = field(default_factory=PlanConfig)


@dataclass(frozen=True)
class FinetunePlanConfig(FinetuneConfig):
    """A fine-tuning to be planned."""

    plan: PlanConfig = field(default_factory=PlanConfig)
