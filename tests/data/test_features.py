"""Files of features: what h5py and the csv module read back is what went in."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from mim3d.data.features import CaseFeatures, ending_of, write_features
from mim3d.foundation.errors import UserError

ABOUT = {"run": "runs/mae", "patch": (4, 5, 3)}


def cases(token: bool = True) -> list[CaseFeatures]:
    random = np.random.default_rng(0)
    made = []
    for number, patches in enumerate((3, 1, 5)):
        made.append(
            CaseFeatures(
                f"käse_{number}",
                random.normal(size=4).astype(np.float32),
                random.normal(size=4).astype(np.float32) if token else None,
                random.normal(size=(patches, 4)).astype(np.float32),
                random.normal(size=(patches, 3)) * 100,
                f"sub-{number // 2}",
                "training" if number else "test",
                {"age": 61.5} if number else {},
            )
        )
    return made


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_hdf5_gives_back_volumes_patches_and_whose_they_are(tmp_path):
    path = tmp_path / "features.h5"

    assert write_features(path, iter(cases()), level="both", about=ABOUT) == 3

    with h5py.File(path) as file:
        assert file.attrs["run"] == "runs/mae"
        assert file.attrs["patch"].tolist() == [4, 5, 3]
        assert file["case_id"].asstr()[:].tolist() == ["käse_0", "käse_1", "käse_2"]
        assert file["subject_id"].asstr()[:].tolist() == ["sub-0", "sub-0", "sub-1"]
        assert file["list"].asstr()[:].tolist() == ["test", "training", "training"]
        np.testing.assert_array_equal(file["features"], [case.volume for case in cases()])
        np.testing.assert_array_equal(file["class_token"], [case.class_token for case in cases()])
        np.testing.assert_array_equal(file["targets/age"], [np.nan, 61.5, 61.5])
        first = file["patches/first"][:]
        assert first.tolist() == [0, 3, 4, 9]
        for place, case in enumerate(cases()):
            part = slice(first[place], first[place + 1])
            np.testing.assert_array_equal(file["patches/features"][part], case.patches)
            np.testing.assert_array_equal(file["patches/centres_mm"][part], case.centres_mm)


@pytest.mark.parametrize(("level", "absent"), [("volume", "patches"), ("patches", "features")])
def test_hdf5_holds_only_the_level_asked_for(tmp_path, level, absent):
    write_features(tmp_path / "f.h5", cases(), level=level, about=ABOUT)

    with h5py.File(tmp_path / "f.h5") as file:
        assert absent not in file
        assert len(file["case_id"]) == 3


def test_a_csv_of_volumes_reads_back_exactly(tmp_path):
    write_features(tmp_path / "f.csv", cases(), level="volume", about=ABOUT)

    rows = rows_of(tmp_path / "f.csv")
    assert [row["case"] for row in rows] == ["käse_0", "käse_1", "käse_2"]
    assert [row["target_age"] for row in rows] == ["", "61.5", "61.5"]
    for row, case in zip(rows, cases(), strict=True):
        features = [np.float32(row[f"feature_{place}"]) for place in range(4)]
        tokens = [np.float32(row[f"class_token_{place}"]) for place in range(4)]
        np.testing.assert_array_equal(features, case.volume)
        np.testing.assert_array_equal(tokens, case.class_token)


def test_a_csv_of_patches_has_a_row_a_patch_with_its_place(tmp_path):
    made = cases(token=False)

    write_features(tmp_path / "f.csv", made, level="patches", about=ABOUT)

    rows = rows_of(tmp_path / "f.csv")
    assert [row["case"][-1] for row in rows] == list("000122222")
    places = [[float(row[f"{axis}_mm"]) for axis in "xyz"] for row in rows]
    np.testing.assert_array_equal(places, np.concatenate([c.centres_mm for c in made]))
    features = [[np.float32(row[f"feature_{place}"]) for place in range(4)] for row in rows]
    np.testing.assert_array_equal(features, np.concatenate([c.patches for c in made]))


@pytest.mark.parametrize("name", ["f.h5", "f.csv"])
def test_what_breaks_off_leaves_the_old_file_and_nothing_else(tmp_path, name):
    def breaking():
        yield cases()[0]
        raise ZeroDivisionError("planted")

    path = tmp_path / name
    path.write_bytes(b"old")

    with pytest.raises(ZeroDivisionError):
        write_features(path, breaking(), level="volume", about=ABOUT)

    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_of_no_case_nothing_is_written(tmp_path):
    assert write_features(tmp_path / "f.h5", [], level="both", about=ABOUT) == 0
    assert not list(tmp_path.iterdir())


def test_other_endings_and_a_csv_of_both_are_refused():
    with pytest.raises(UserError, match=r"`\.h5` or `\.csv`"):
        ending_of("features.npy", "volume")
    with pytest.raises(UserError, match="one kind of row"):
        ending_of("features.csv", "both")
    assert ending_of("Features.HDF5", "both") == ".h5"


FULL = """
import resource, signal, sys
import numpy as np
from mim3d.data.features import CaseFeatures, write_features
from mim3d.foundation.errors import DiskError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
token, many = np.zeros(64, np.float32), np.zeros((40, 64), np.float32)
cases = (CaseFeatures(str(i), token, token, many, np.zeros((40, 3))) for i in range(60))
try:
    write_features(sys.argv[1], cases, level=sys.argv[2], about={})
except DiskError as error:
    print(error.exit_code, error)
"""


@pytest.mark.parametrize("level", ["both", "volume"])
def test_a_disk_that_is_full_is_an_error_and_no_end_of_the_process(tmp_path, level):
    path = tmp_path / "features.h5"

    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path), level], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("5 ")
    assert "features.h5" in done.stdout
    assert not list(tmp_path.iterdir())
