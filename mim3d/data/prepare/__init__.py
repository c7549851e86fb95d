"""From files of scans to a store; and from one volume to what a store would hold of it."""

from mim3d.data.prepare.case import prepare_case, read_images
from mim3d.data.prepare.cohort import prepare_store, read_source
from mim3d.data.prepare.keys import image_key
from mim3d.data.prepare.outcome import PreparationResult, Refusal
from mim3d.data.prepare.summary import rebuild
from mim3d.data.prepare.volume import VolumeRule, prepare_volume

__all__ = [
    "PreparationResult",
    "Refusal",
    "VolumeRule",
    "image_key",
    "prepare_case",
    "prepare_store",
    "prepare_volume",
    "read_images",
    "read_source",
    "rebuild",
]
