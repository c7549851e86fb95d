"""A thousand damaged files from fixed seeds: what is accepted is bit-equal to the truth.

Each batch runs in a process of its own with 256 MiB of address space to spare and a limit of five
seconds a file, so that a hang, a crash or an allocation by the word of a header is seen here.
"""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mim3d

from .making import meta, nifti, nrrd, scan, zipped

RUNNER = """if True:
    import json, resource, signal, sys, warnings
    sys.path.insert(0, sys.argv[1])
    import numpy as np
    from mim3d.data.files import read_volume
    from mim3d.foundation.errors import VolumeError
    warnings.simplefilter("ignore")
    truth = np.load("truth.npy")
    if sys.platform.startswith("linux"):
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + (256 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    results = []
    for name in json.load(open("names.json")):
        signal.alarm(5)
        try:
            volume = read_volume(name)
            equal = volume.voxels.shape[1:] == truth.shape and (volume.voxels[0] == truth).all()
            results.append("equal" if equal else "other")
        except VolumeError as error:
            results.append(f"refused: {error.code}")
        except Exception as error:
            results.append(f"crashed: {error!r}")
    signal.alarm(0)
    print(json.dumps(results))
"""


def outcomes(folder: Path, truth: np.ndarray, files: list[tuple[str, bytes]]) -> list[str]:
    """What the reader makes of each file, judged in another process."""
    np.save(folder / "truth.npy", truth)
    names = [f"{index}_{name}" for index, (name, _) in enumerate(files)]
    for name, (_, raw) in zip(names, files, strict=True):
        (folder / name).write_bytes(raw)
    (folder / "names.json").write_text(json.dumps(names))
    root = str(Path(mim3d.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, root], cwd=folder, capture_output=True, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-1000:])
    return list(json.loads(done.stdout))


def hurt(raw: bytes, start: int, draw: random.Random) -> bytes:
    """One injury of a stream somewhere behind `start`."""
    data = bytearray(raw)
    at = draw.randrange(start, len(data))
    length = draw.choice([1, 4, 64, 512])
    kind = draw.randrange(9)
    if kind == 0:
        del data[at:]
    elif kind == 1:
        data[at] ^= 1 << draw.randrange(8)
    elif kind == 2:
        data[at : at + length] = bytes(len(data[at : at + length]))
    elif kind == 3:
        data[at:at] = draw.randbytes(length)
    elif kind == 4:
        del data[at : at + length]
    elif kind == 5:
        data[at:at] = data[at : at + length]
    elif kind == 6:
        data += draw.randbytes(length)
    elif kind == 7:
        del data[-draw.randrange(1, 9) :]
    else:
        other = draw.randrange(start, len(data))
        first, second = data[at : at + length], data[other : other + length]
        if len(first) == len(second) and abs(at - other) >= length:
            data[at : at + length], data[other : other + length] = second, first
    return bytes(data)


@pytest.mark.parametrize("shape", [(11, 13, 7), (64, 56, 48)], ids=["small", "large"])
@pytest.mark.parametrize("seed", range(2))
def test_500_injured_streams_give_the_truth_or_an_error(tmp_path, shape, seed):
    draw = random.Random(seed)
    truth = scan(shape, seed)
    raw = nifti(truth)
    members = b"".join(
        zipped(raw[at : at + len(raw) // 3]) for at in range(0, len(raw), len(raw) // 3)
    )
    sources = [
        ("x.nii.gz", zipped(raw), 0),
        ("x.nii.gz", zipped(raw, 1), 0),
        ("x.nii.gz", members, 0),
        ("x.nii.gz", zipped(nifti(truth, version=2)), 0),
        ("x.nrrd", nrrd(truth), nrrd(truth).index(b"\n\n") + 2),
        ("x.mha", meta(truth), meta(truth).index(b"LOCAL\n") + 6),
    ]
    files = []
    for _ in range(125):
        name, good, start = draw.choice(sources)
        files.append((name, hurt(good, start, draw)))

    found = outcomes(tmp_path, truth, files)

    assert {result.split(":")[0] for result in found} <= {"equal", "refused"}
    assert found.count("equal") < len(found) // 4


ABSURD = [
    b"\0" * 8,
    b"\xff" * 8,
    b"\x7f" * 8,
    struct.pack("<d", np.nan),
    struct.pack("<2f", np.nan, np.inf),
    struct.pack("<2f", 1e30, -1),
    struct.pack("<4h", 32767, -1, 1, 0),
    struct.pack("<q", 2**62),
]
# Sizes, type, offset: whatever they become, the voxels are the truth or refused. (pixdim and the
# forms decide about flips, slope and intercept about values: no reader can know better.)
PLACES = {1: [(0, 4), *((40 + 2 * n, 2) for n in range(8)), (72, 2), (108, 4), (344, 4)],
          2: [(0, 4), (4, 8), (14, 2), *((16 + 8 * n, 8) for n in range(8)), (168, 8)]}  # fmt: skip


def absurd_nifti(truth: np.ndarray, draw: random.Random) -> bytes:
    version = draw.choice([1, 2])
    raw = bytearray(nifti(truth, version=version))
    for _ in range(draw.choice([1, 1, 2])):
        at, size = draw.choice(PLACES[version])
        if draw.random() < 0.4:
            raw[at + draw.randrange(size)] ^= 1 << draw.randrange(8)
        else:
            raw[at : at + size] = draw.choice(ABSURD)[:size]
    return bytes(raw)


WORDS = ["-1", "0", "nan", "inf", "1e400", "99999999999999999999", "LIST", "%d", "../x", "A" * 300,
         "A" * 70_000, "\0", ":", "=", "(", ")", "", "#", "2147483648", "none"]  # fmt: skip
KEPT = ("sizes", "DimSize", "space", "Transform", "Offset", "ElementSpacing", "endian", "Binary")
"""Lines whose numbers no reader can know better; they are only dropped or doubled."""


def absurd_text(raw: bytes, end: bytes, draw: random.Random) -> bytes:
    header, found, data = raw.partition(end)
    lines = header.decode("latin-1").split("\n")
    at = draw.randrange(1, len(lines))
    kind = draw.randrange(4)
    if kind == 0:
        lines.insert(draw.randrange(1, len(lines)), lines[at])
    elif kind == 1:
        lines.insert(at, draw.choice(WORDS))
    elif kind == 2 and not lines[at].startswith(KEPT):
        words = lines[at].split(" ")
        words[draw.randrange(len(words))] = draw.choice(WORDS)
        lines[at] = " ".join(words)
    elif not lines[at].startswith("TransformMatrix"):
        # Without it the axes are LPS, noted: the rule.
        del lines[at]
    return "\n".join(lines).encode("latin-1") + found + data


@pytest.mark.parametrize("seed", range(2))
def test_500_absurd_headers_give_the_truth_or_an_error(tmp_path, seed):
    draw = random.Random(100 + seed)
    truth = scan(seed=seed)
    files = []
    for _ in range(250):
        kind = draw.choice(["nii", "nii.gz", "nrrd", "mha"])
        if kind.startswith("nii"):
            raw = absurd_nifti(truth, draw)
            files.append((f"x.{kind}", zipped(raw, 1) if kind == "nii.gz" else raw))
        elif kind == "nrrd":
            good = nrrd(truth, encoding=draw.choice(["raw", "gzip", "ascii"]))
            files.append(("x.nrrd", absurd_text(good, b"\n\n", draw)))
        else:
            good = meta(truth, compressed=draw.random() < 0.5)
            files.append(("x.mha", absurd_text(good, b"\nElementDataFile", draw)))

    found = outcomes(tmp_path, truth, files)

    wrong = [
        (result, raw[:400])
        for result, (_, raw) in zip(found, files, strict=True)
        if result.split(":")[0] not in ("equal", "refused")
    ]
    assert wrong == []
    assert found.count("equal") < len(found) * 0.6
