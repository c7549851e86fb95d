"""A small study as it lies on a disk, and a secret beside it."""

from __future__ import annotations

import http.client
import shutil
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import pytest

from mim3d.config.view import ViewConfig
from mim3d.data.classes import ClassTable
from mim3d.data.phantom import PhantomRule, make_cohort
from mim3d.evaluation.folders import evaluate_folder
from mim3d.inference.label_files import write_label_files
from mim3d.workflows.prepare import prepare
from mim3d.workflows.view.server import Server, serving
from mim3d.workflows.view.view import opened

SHAPE = (23, 17, 11)
# Turned by 0.3 about x: oblique, and each voxel 1.5 x 1 x 3 mm.
AFFINE = np.array([
    [1.5, 0, 0, -20],
    [0, np.cos(0.3), -3 * np.sin(0.3), -7],
    [0, np.sin(0.3), 3 * np.cos(0.3), 4],
    [0, 0, 0, 1.0],
])  # fmt: skip
CLASSES = ClassTable.from_values([0, 3, 7], {3: "liver", 7: "left kidney"})
CASES = ("case_a", "case_b", "case_c")


def image_of(number: int) -> np.ndarray:
    """Depends on position; a background of 0 and a body that grows brighter along each axis."""
    x, y, z = np.indices(SHAPE)
    body = (x - 11) ** 2 / 100 + (y - 8) ** 2 / 49 + (z - 5) ** 2 / 25 < 1
    return (body * (100 + 9 * x + 5 * y + 20 * z + 30 * number)).astype(np.int16)


def labels_of(number: int, *, shift: int = 0) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[4 + shift : 12 + shift, 5:12, 2:8] = 3
    labels[14:19, 6 + number : 10 + number, 4:7] = 7
    return labels


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def png(path: Path, grey: int, side: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = b"".join(b"\0" + bytes([grey] * side) for _ in range(side))
    content = b"\x89PNG\r\n\x1a\n"
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    for kind, part in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(part)) + kind + part
        content += struct.pack(">I", zlib.crc32(kind + part))
    path.write_bytes(content)
    return path


@pytest.fixture(scope="session")
def study_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("viewed")
    for number, case in enumerate(CASES):
        save(folder / "study/images" / f"{case}.nii.gz", image_of(number))
        save(folder / "study/labels" / f"{case}.nii.gz", labels_of(number))
        predicted = labels_of(number, shift=number)
        save(folder / "study/predictions/mae" / f"{case}.nii.gz", predicted)
    write_label_files(folder / "study/predictions/mae", CLASSES)
    results = evaluate_folder(
        folder / "study/predictions/mae", folder / "study/labels", classes=CLASSES
    )
    results.write(folder / "study/results.json")
    run = folder / "study/runs/pretrain"
    for grey, name in ((60, "reconstruction_0000000"), (200, "reconstruction_0000100")):
        png(run / "pictures" / f"{name}.png", grey)
    png(run / "pictures/curves.png", 128)
    (run / "status.json").write_text("{}")
    save(folder / "secret/patient_zero.nii.gz", image_of(9))
    png(folder / "secret/face.png", 1)
    return folder


@pytest.fixture
def study(study_once: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(study_once, tmp_path / "viewed")
    return tmp_path / "viewed/study"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two small cases, beside the cohort it was made of."""
    folder = tmp_path_factory.mktemp("prepared")
    rule = PhantomRule(shape=(20, 16, 12), organs=1)
    make_cohort(folder / "cohort", training=1, validation=1, rule=rule)
    prepare(str(folder / "cohort"), out=str(folder / "store"))
    return folder / "store"


@dataclass(frozen=True)
class Site:
    """A running server as a client sees it."""

    server: Server
    address: str

    def get(
        self, place: str, *, method: str = "GET", host: str | None = None, raw: bool = False
    ) -> tuple[int, dict[str, str], bytes]:
        """Asks for a place below the token, or for a raw path, letter for letter."""
        parts = urlsplit(self.address)
        client = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
        path = place if raw else parts.path + place
        client.putrequest(method, path, skip_host=True)
        client.putheader("Host", parts.netloc if host is None else host)
        client.endheaders()
        answer = client.getresponse()
        content = answer.read()
        client.close()
        return answer.status, dict(answer.getheaders()), content


@pytest.fixture
def site(study: Path) -> Iterator[Site]:
    with opened(str(study), ViewConfig()) as (server, _), serving(server) as address:
        yield Site(server, address)
