"""Rows 4 and 5: headers that promise what is not there."""

from __future__ import annotations

import tracemalloc
import warnings
from pathlib import Path

import numpy as np

from mim3d.data.files import ReadWarning, read_label, read_volume
from mim3d.foundation.errors import VolumeError
from mim3d.foundation.randomness import generator
from tests.data.files.making import AFFINE, ORDERS, nifti, reoriented, zipped
from tests.reliability.child import judged
from tests.reliability.header_mutations import mutated_nifti, mutated_text
from tests.reliability.header_oracle import agrees
from tests.reliability.header_sources import Form, forms
from tests.reliability.proof import Tally, proof

PEAK = 1.3
OTHER = "other, as its header says"
"""Sizes in another order, a type of the same width, another scale or place: no file can tell."""


@proof(rows=(4, 5), trials="mutated NIfTI-1 headers", quick=700, full=10_000, stretch=2_500)
def nifti_1_headers(trials: range, seed: int, folder: Path) -> Tally:
    """What a NIfTI-1 header promises is there to the byte, or the file is refused.

    In less than five seconds and within 256 MiB, whatever the header says.
    """
    return _tallied("NIfTI-1", trials, seed, folder)


@proof(rows=(4, 5), trials="mutated NIfTI-2 headers", quick=700, full=10_000, stretch=2_500)
def nifti_2_headers(trials: range, seed: int, folder: Path) -> Tally:
    """What a NIfTI-2 header promises is there to the byte, or the file is refused."""
    return _tallied("NIfTI-2", trials, seed, folder)


@proof(rows=(4, 5), trials="mutated NRRD headers", quick=700, full=10_000, stretch=2_500)
def nrrd_headers(trials: range, seed: int, folder: Path) -> Tally:
    """What an NRRD header promises is there to the byte, or the file is refused."""
    return _tallied("NRRD", trials, seed, folder)


@proof(rows=(4, 5), trials="mutated MetaImage headers", quick=700, full=10_000, stretch=2_500)
def meta_image_headers(trials: range, seed: int, folder: Path) -> Tally:
    """What a MetaImage header promises is there to the byte, or the file is refused."""
    return _tallied("MetaImage", trials, seed, folder)


@proof(rows=(5,), trials="large volumes", quick=4, full=60, stretch=30)
def peaks(trials: range, seed: int, folder: Path) -> Tally:
    """Reading 24 MiB or more takes at most 1.3 times the memory, whatever is done to the voxels."""
    tally = Tally()
    most = 0.0
    found = judged(trials, lambda trial: _peak(trial, seed, folder), spare_bytes=None)
    for trial, each in zip(trials, found, strict=True):
        peak = float(each.outcome or "inf")
        most = max(most, peak)
        fault = each.fault or f"{peak:.2f} times the declared size"
        tally.add(trial, "within" if peak <= PEAK else "broken", None if peak <= PEAK else fault)
    tally.notes.append(f"peak at most {most:.2f} x the declared size")
    return tally


def _peak(trial: int, seed: int, folder: Path) -> str:
    """Peak of all that was allocated, in sizes of the volume as stored or kept."""
    draw = generator(seed, trial, "peak")
    kind = ("u1", "i2", "u2", "i4", "i8", "f4", "f8")[trial % 7]
    shape = (64, 128, int(draw.integers(3072, 3584)) // np.dtype(kind).itemsize)
    voxels = draw.integers(1, 9, shape).astype(kind)
    is_label, slope = trial % 3 == 1, [0, 0.5][int(draw.integers(2))]
    if kind[0] == "f" and not is_label:
        voxels[draw.random(shape) < 0.2] = np.nan
    order = ORDERS[int(draw.integers(len(ORDERS)))]
    turned, affine = reoriented(voxels, AFFINE, order)

    def scaled(header: dict[str, float]) -> None:
        header["scl_slope"] = 0.0 if is_label else slope

    raw = nifti(turned, affine, change=scaled)
    path = folder / "x.nii.gz"
    path.write_bytes(zipped(raw, 1) if draw.integers(2) else raw)
    kept = 4 if is_label or slope or kind[0] == "f" or kind == "i8" else 1
    declared = voxels.size * max(kept, voxels.itemsize)
    del voxels, turned, raw
    tracemalloc.start()
    volume = read_label(path) if is_label else read_volume(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del volume
    return f"{peak / declared:.4f}"


def mutated(path: str, trial: int, seed: int) -> tuple[Form, bytes]:
    """A form of the path and a header for it."""
    draw = generator(seed, trial, path)
    form = forms(path)[int(draw.integers(len(forms(path))))]
    if path.startswith("NIfTI"):
        return form, mutated_nifti(form.header, int(path[-1]), draw)
    return form, mutated_text(form.header, draw)


def _tallied(path: str, trials: range, seed: int, folder: Path) -> Tally:
    def judge(trial: int) -> str:
        form, header = mutated(path, trial, seed)
        return _verdict(form, header, folder)

    tally = Tally()
    found = judged(trials, judge)
    for trial, each in zip(trials, found, strict=True):
        kind = each.outcome.split(":")[0]
        broken = each.fault or (each.outcome if kind == "wrong" else None)
        tally.add(trial, "broken" if broken else kind, broken)
    return tally


def _verdict(form: Form, header: bytes, folder: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ReadWarning)
        try:
            volume = read_volume(form.put(folder, header))
        except VolumeError as error:
            if error.code == "memory":
                raise MemoryError from None
            return "refused"
    try:
        said = form.said(header)
    except Exception as error:
        return f"wrong: read as {volume.voxels.shape}, the oracle says {error!r}"
    if not agrees(volume, said):
        return f"wrong: read as {volume.voxels.shape} of {form.name}, the oracle differs"
    return "equal" if agrees(volume, form.said(form.header)) else OTHER
