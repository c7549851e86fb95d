"""The 39 ways in which work on scans goes wrong, and what mim3d promises for each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One failure mode.

    Args:
        number: fixed; proofs and messages of commits refer to it.
        failure: what goes wrong.
        promise: what mim3d does.
    """

    number: int
    failure: str
    promise: str


GROUPS: dict[str, range] = {
    "Reading files": range(1, 13),
    "Preparing and judging": range(13, 17),
    "Memory": range(17, 19),
    "Writing": range(19, 24),
    "The same run": range(24, 29),
    "Input that means harm": range(29, 34),
    "Privacy, network and the rest": range(34, 40),
}

_TEXTS = (
    (
        "`.nii.gz` cut short by a copy, a quota, a download",
        "an error that says how much of the stream is there; no voxel of it is used",
    ),
    (
        "a flipped bit, a wrong check value or size, a changed voxel compressed anew",
        "nothing is handed out before the check value of the whole file agrees",
    ),
    (
        "bytes behind the end, several members, a name that says another format",
        "members are one stream; foreign bytes are noted; content decides the format",
    ),
    (
        "a header that promises fewer or more voxels than there are",
        "exact agreement, or an error with both numbers",
    ),
    (
        "sizes that are huge or overflow, compression bombs",
        "refused before anything is allocated",
    ),
    (
        "sform and qform disagree, are absent, singular or no numbers",
        "one written rule; a contradiction about left and right or size is an error",
    ),
    (
        "storage orders, oblique and sheared axes",
        "all 48 orders give identical voxels; shear beyond 0.01 is an error",
    ),
    (
        "voxel sizes of zero, below zero, no number, in other units",
        "an error, or a note where a sound sform decides; units are converted",
    ),
    (
        "voxels that are NaN, infinite or 1e300",
        "counted, contained and noted; no NaN enters a store",
    ),
    (
        "labels that are fractions, out of range, NaN or one-hot",
        "rounded within 0.001, never cut; anything else is an error with the voxel's place",
    ),
    (
        "image and label on different grids",
        "corners within 0.05 voxel, else an error with the distance in mm",
    ),
    (
        "DICOM: missing, duplicate, tilted, uneven, mixed slices; rescale per slice",
        "sorted by position, gaps compared; whatever is no volume is an error",
    ),
    (
        "nothing is foreground, a crop loses labels, a volume is constant",
        "quarantined with the reason; the crop is widened until it holds every label",
    ),
    (
        "an outlier sets the scale, a window for CT on MR, classes vanish on resampling",
        "percentiles over the body; a lost class is an error, a large change a note",
    ),
    (
        "a metric flatters: NaN skipped, a missed organ improves a distance",
        "an explicit table for empty classes, n beside every mean; a miss never improves a score",
    ),
    (
        "a file kills or stalls the process that reads it",
        "own parsers for text headers, DICOM in a child with limits; the other cases go on",
    ),
    (
        "a prediction larger than memory",
        "slabs with a running decision, equal to one piece bit for bit; the plan is printed first",
    ),
    (
        "out of memory in training, preparation, workers",
        "an estimate before the start; an exit code of its own with estimate and remedy",
    ),
    (
        "killed while a checkpoint is written",
        "every acknowledged step loads (files are flushed before they are named; that the power "
        "fails is not tried)",
    ),
    (
        "killed while a case of a store or a prediction is written",
        "what is there is whole; the same command goes on to an equal result (as above, with the "
        "power on)",
    ),
    (
        "disk full, quota, read-only, vanished",
        "one sentence; older files untouched; never a wrong file in silence",
    ),
    (
        "a store is stale: source, config or format changed",
        "keyed by content and preparation: rebuilt exactly where either changed",
    ),
    (
        "several processes share a store, two runs share a folder",
        "one whole store; the second run is refused",
    ),
    (
        "a sample depends on workers, order or number of devices",
        "counter-based streams by seed, step, index and purpose",
    ),
    (
        "a resumed run is not the same run",
        "bit-equal on CPU after any interruption",
    ),
    (
        "SIGTERM, SIGUSR1, Ctrl-C, the end of a SLURM job",
        "a checkpoint at the end of the step, and an exit that can be resumed",
    ),
    (
        "a loss or gradient that is not finite",
        "the step is skipped in all processes, counted and logged; it never reaches the weights",
    ),
    (
        "a run that learns nothing, a process that is gone, a collective that hangs",
        "said; waiting is finite; a restart goes on from the last acknowledged step",
    ),
    (
        "weights that run code",
        "own files are safetensors and JSON; foreign ones only through `mim3d convert`, "
        "tensors only, in a child",
    ),
    (
        "pickles in arrays, caches and queues",
        "never read",
    ),
    (
        "archives, references and names that leave their folder",
        "no archive is unpacked, data files are neighbours only, outputs stay in their folder",
    ),
    (
        "YAML and JSON with tags, aliases, depth, duplicate keys",
        "a config or one sentence, in less than a second",
    ),
    (
        "HDF5 and safetensors of hostile structure",
        "links, external storage, virtual sets and foreign types are refused unread",
    ),
    (
        "names of patients travel in headers, tags, logs, paths",
        "new headers, case ids only; paths only on request",
    ),
    (
        "network, telemetry, silent downloads",
        "none",
    ),
    (
        "weights half loaded, a silent start from scratch",
        "whole or not at all, listed key by key",
    ),
    (
        "code by name: `_target_`, import strings, shell words",
        "registries are literal; nothing is imported or run from a config",
    ),
    (
        "a prediction in the wrong orientation, shape, type or place",
        "the way back is part of the volume; geometry fields are the source's bytes",
    ),
    (
        "drift: another version's store, config or checkpoint; bits that rot",
        "format versions, checksums at opening, `mim3d doctor` for all of them",
    ),
)

ROWS: dict[int, Row] = {
    number: Row(number, failure, promise)
    for number, (failure, promise) in enumerate(_TEXTS, start=1)
}
"""By number."""
