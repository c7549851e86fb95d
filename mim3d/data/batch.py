"""What a feed hands to an objective. Needs torch and NumPy alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """A number of each case that a task asks for, such as a diagnosis or an age.

    Args:
        name: what the store calls it.
        classes: values whose place in this tuple is handed out; None hands out the number itself.
        is_optional: whether cases may lack it, whose number then is NaN.
    """

    name: str
    classes: tuple[float, ...] | None = None
    is_optional: bool = False


@dataclass(frozen=True)
class BatchNeeds:
    """What a task asks of its feed.

    Args:
        views: crops of one case under one id, each augmented by itself.
        labels: whether label maps are read.
        min_overlap: smallest share of its voxels, 0 to 1, that every further view has in common
            with the first, before either is augmented; 1 is the same place.
        several_sizes: whether it takes crops of several sizes in a step.
        targets: numbers of the case that every crop comes with.
    """

    views: int = 1
    labels: bool = False
    min_overlap: float = 1.0
    several_sizes: bool = False
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True)
class CropBatch:
    """Crops of one size, normalised and augmented.

    Args:
        voxels: `b c x y z`, float32, normalised.
        affine: `b 4 4`, float64, crop voxel to millimetres of its case, after every augmentation.
        case_ids: `b` case ids.
        crop_ids: `b`, int64, place of the crop in the global batch of its step; views share it. It
            stays on the CPU: keys are made of it, and reading it back would wait for the device.
        labels: `b x y z`, class indices, or None.
        valid: `b x y z`, False at padding, or None where there is no padding.
        targets: `b t`, float32, for classification (the place of the class) and regression, in the
            order of `BatchNeeds.targets`, NaN where a case lacks an optional one; or None.
        present: `b c`, the channels that exist, or None where all do.
        air: `b c`, normalised intensity below which a voxel is air, or None where unknown.
    """

    voxels: Tensor
    affine: Tensor
    case_ids: tuple[str, ...]
    crop_ids: Tensor
    labels: Tensor | None = None
    valid: Tensor | None = None
    targets: Tensor | None = None
    present: Tensor | None = None
    air: Tensor | None = None

    @property
    def parts(self) -> tuple[CropBatch, ...]:
        """Itself: crops of one size."""
        return (self,)

    @property
    def spacing_mm(self) -> Tensor:
        """Voxel size along the crop's axes, `b 3`, float32: the lengths of the affine's columns."""
        lengths: Tensor = self.affine[:, :3, :3].norm(dim=1)
        return lengths.float()

    def to(self, device: torch.device | str) -> CropBatch:
        """The same batch on another device."""

        target = torch.device(device)

        def there(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else moved(tensor, target)

        return replace(
            self,
            voxels=moved(self.voxels, target),
            affine=moved(self.affine, target),
            labels=there(self.labels),
            valid=there(self.valid),
            targets=there(self.targets),
            present=there(self.present),
            air=there(self.air),
        )


@dataclass(frozen=True)
class CropBatches:
    """Crops of several sizes that make one micro-batch.

    Args:
        parts: the crops of each size, at least one.
    """

    parts: tuple[CropBatch, ...]

    @property
    def case_ids(self) -> tuple[str, ...]:
        """Case ids, part by part."""
        return tuple(case_id for part in self.parts for case_id in part.case_ids)

    @property
    def crop_ids(self) -> Tensor:
        """Places in the global batch of the step, part by part, `b` int64 on the CPU."""
        return torch.cat([part.crop_ids for part in self.parts])

    def to(self, device: torch.device | str) -> CropBatches:
        """The same crops on another device."""
        return CropBatches(tuple(part.to(device) for part in self.parts))


MicroBatch = CropBatch | CropBatches
"""What a task is called with: both have `parts`, `case_ids`, `crop_ids` and `to`."""


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, without waiting for it; the same tensor where it is there already."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        # Only pinned memory is copied beside the host's work. Torch's pool keeps it until then.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
