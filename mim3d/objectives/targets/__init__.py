"""What masked tokens are compared with, and how; each target in a module of its own."""

from mim3d.objectives.targets.base import Look, PatchTarget, Target
from mim3d.objectives.targets.errors import voxel_error, weighted_mean
from mim3d.objectives.targets.registry import TARGETS, check_target, make_target
from mim3d.objectives.targets.voxels import patch_target

__all__ = [
    "TARGETS",
    "Look",
    "PatchTarget",
    "Target",
    "check_target",
    "make_target",
    "patch_target",
    "voxel_error",
    "weighted_mean",
]
