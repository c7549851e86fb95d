"""What a DICOM slice must say to be read, and what the slices of a volume must have in common."""

from __future__ import annotations

import numpy as np

from mim3d.data.files.dicom_tags import Tags
from mim3d.foundation.errors import VolumeError

SAME_DIRECTION = 1e-3
GRAY = ("MONOCHROME1", "MONOCHROME2")
PIXEL_TYPE = ("bits_allocated", "bits_stored", "signed")
COMPRESSED = {f"1.2.840.10008.1.2.{end}" for end in ("5", *(f"4.{n}" for n in (
    50, 51, 57, 70, 80, 81, 90, 91)))}  # fmt: skip
"""RLE, JPEG (baseline, extended, lossless), JPEG-LS and JPEG 2000: what SimpleITK decodes."""
MOST_GROWTH, ANY_SLICE = 1032, 16 << 20
"""A compressed frame grows by no more than the first, or to no more than so many bytes: an empty
slice takes next to nothing, but a huge one that does is an invention of its header."""


def check_equal(slices: list[Tags]) -> None:
    """Refuses slices that do not belong together."""
    first = slices[0]
    rescaled = [tags for tags in slices if tags.numbers.get("slope")]
    if len(rescaled) < len(slices) and not all(is_neutral(tags) for tags in rescaled):
        raise VolumeError(
            f"{len(slices) - len(rescaled)} of its {len(slices)} slices have no rescale slope",
            remedy="export the series again",
            code="slices-differ",
        )
    for tags in slices[1:]:
        what = None
        if any(tags.whole(name) != first.whole(name) for name in ("rows", "columns")):
            what = "size"
        elif not np.allclose(
            tags.numbers["orientation"], first.numbers["orientation"], atol=SAME_DIRECTION, rtol=0
        ):
            what = "orientation"
        elif not np.allclose(tags.numbers["spacing"], first.numbers["spacing"], rtol=1e-4, atol=0):
            what = "pixel spacing"
        elif any(tags.whole(name) != first.whole(name) for name in PIXEL_TYPE):
            what = "the type of their pixels"
        if what is not None:
            raise VolumeError(
                f"its slices `{first.path.name}` and `{tags.path.name}` differ in {what}",
                remedy="keep the slices of one acquisition in the folder",
                code="slices-differ",
            )


def check_slice(tags: Tags) -> None:
    """Refuses a slice that has no place or no pixels that are read."""

    def refuse(what: str, remedy: str = "export the series again", code: str = "dicom") -> None:
        raise VolumeError(f"its slice `{tags.path.name}` {what}", remedy=remedy, code=code)

    if tags.pixels is None:
        refuse("has no pixels", code="damaged")
    if tags.whole("samples", 1) != 1 or tags.text("photometric") not in GRAY:
        refuse("is in colour", "convert it to a volume of intensities", "voxel-type")
    if tags.whole("frames", 1) != 1:
        refuse("holds several frames, which is not read", "convert it to NIfTI (`dcm2niix`)")
    if tags.has_lut:
        refuse("needs a look-up table, which is not read", "convert it to NIfTI (`dcm2niix`)")
    if tags.whole("rows") < 1 or tags.whole("columns") < 1:
        refuse("has no size")
    allocated, stored = tags.whole("bits_allocated"), tags.whole("bits_stored")
    if (
        allocated not in (8, 16, 32)
        or not 1 <= stored <= allocated
        or tags.whole("high_bit", stored - 1) != stored - 1
        or tags.whole("signed") not in (0, 1)
    ):
        refuse("has pixels of an impossible type", code="voxel-type")
    if not tags.several("position", 3) or not tags.several("orientation", 6):
        refuse("has no position or orientation")
    if not tags.several("spacing", 2):
        refuse("has no pixel spacing", code="spacing")
    if min(tags.several("spacing", 2)) <= 0:
        refuse("has a pixel spacing that is not positive", code="spacing")
    if bool(tags.several("slope", 1)) != bool(tags.several("intercept", 1)):
        refuse("has a rescale slope or intercept without the other", code="scaling")
    if tags.numbers.get("slope") == [0.0]:
        refuse("has a rescale slope of 0", code="scaling")
    needed = tags.whole("rows") * tags.whole("columns") * (allocated // 8)
    length = sum(size for _, size in tags.pixels or [])
    if tags.is_native:
        if length not in (needed, needed + needed % 2):
            refuse(f"has {length} bytes of pixels where {needed} are expected", code="damaged")
    elif tags.text("syntax") not in COMPRESSED:
        refuse("is encoded in a way that is not read", "convert it to NIfTI (`dcm2niix`)")
    elif not length or needed > max(MOST_GROWTH * length, ANY_SLICE):
        refuse(f"has {length} compressed bytes where {needed} are declared", code="more-declared")


def is_neutral(tags: Tags) -> bool:
    """Whether a slice's values are its stored ones."""
    slope, intercept = tags.numbers.get("slope"), tags.numbers.get("intercept")
    return slope in (None, [], [1.0]) and intercept in (None, [], [0.0])
