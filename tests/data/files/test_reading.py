from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import mim3d
from mim3d.config.read import ReadConfig
from mim3d.data.files import (
    ReadWarning,
    content_key,
    read_geometry,
    read_label,
    read_pair,
    read_volume,
)
from mim3d.foundation.errors import VolumeError

from .making import AFFINE, SHAPE, meta, nifti, nrrd, put, quietly, reoriented, scan, zipped


def test_a_note_is_also_a_warning_that_names_the_file(tmp_path):
    path = put(tmp_path, "case", nifti(scan()))

    with pytest.warns(ReadWarning, match=r"case: its name") as caught:
        volume = read_volume(path)

    assert [note.code for note in volume.notes] == ["name"]
    assert caught[0].filename == __file__


def test_the_path_in_an_error_is_the_one_that_was_typed(tmp_path, monkeypatch):
    put(tmp_path, "case.nii", b"nothing")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(VolumeError) as caught:
        read_volume("case.nii")

    assert caught.value.where == "case.nii"


@pytest.mark.parametrize("maker", [lambda v: zipped(nifti(v, version=2)), nrrd, meta])
def test_geometry_costs_the_header_only_and_agrees_with_the_volume(tmp_path, maker):
    stored, _ = reoriented(scan(), AFFINE, "PIR")
    path = put(tmp_path, "case.nii.gz", maker(stored))
    volume = quietly(path)

    geometry = read_geometry(path)

    assert geometry.shape == volume.shape
    assert geometry.channels == 1
    assert geometry.spacing_mm == volume.spacing_mm
    assert np.array_equal(geometry.affine, volume.affine)
    assert geometry.dtype == "int16"
    # The voxels are not looked at: a damaged end goes unseen here and only here.
    path.write_bytes(path.read_bytes()[:-9] + b"?" * 9)
    assert read_geometry(path).shape == volume.shape
    with pytest.raises(VolumeError):
        quietly(path)


# Pairs


def moved(shift=(0.0, 0.0, 0.0), scale=(1.0, 1.0, 1.0), degrees=0.0) -> np.ndarray:
    affine = AFFINE.copy()
    angle = np.deg2rad(degrees)
    turn = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    affine[:3, :3] = turn @ (affine[:3, :3] * scale)
    affine[:3, 3] += shift
    return affine


def pair_in(folder, image_affine, label_affine, label=None, **options):
    label = (scan() % 5).astype("u1") if label is None else label
    image = put(folder, "image.nii.gz", zipped(nifti(scan(), image_affine)))
    return image, put(folder, "label.nii.gz", zipped(nifti(label, label_affine, **options)))


@pytest.mark.parametrize("order", ["RAS", "LPS", "SAR", "IPL"])
def test_one_grid_in_two_storage_orders_is_a_pair(tmp_path, order):
    label, affine = reoriented((scan() % 5).astype("u1"), AFFINE, order)

    volume, labels = read_pair(*pair_in(tmp_path, AFFINE, affine, label))

    assert volume.shape == labels.shape == SHAPE
    assert (labels.voxels[0] == scan() % 5).all()


@pytest.mark.parametrize("seed", range(60))
def test_small_shifts_are_judged_as_the_written_rule_judges_them(tmp_path, seed):
    random = np.random.default_rng(seed)
    affine = moved(random.normal(0, 0.03, 3), 1 + random.normal(0, 0.002, 3), random.normal(0, 0.1))
    # Written out: every corner, its distance in voxels of the image.
    farthest = 0.0
    for x in (0, SHAPE[0] - 1):
        for y in (0, SHAPE[1] - 1):
            for z in (0, SHAPE[2] - 1):
                apart = (affine - AFFINE) @ [x, y, z, 1]
                voxels = np.array(apart[:3]) / (0.8, 1.2, 2.5)
                farthest = max(farthest, float(np.sqrt((voxels**2).sum())))
    if abs(farthest - 0.05) < 1e-4:
        pytest.skip("float32 rounding of the header decides")
    paths = pair_in(tmp_path, AFFINE, affine)

    if farthest <= 0.05:
        read_pair(*paths)
    else:
        with pytest.raises(VolumeError, match="mm apart"):
            read_pair(*paths)


@pytest.mark.parametrize(
    "affine",
    [
        moved((0.4, 0, 0)),
        moved((0, 0, 50)),
        moved(degrees=1),
        moved(scale=(1, 1, 1.02)),
        np.diag([-1, 1, 1, 1]) @ AFFINE,
    ],
)
def test_two_grids_are_refused_with_the_distance_in_mm(tmp_path, affine):
    image, label = pair_in(tmp_path, AFFINE, affine)

    with pytest.raises(VolumeError, match=r"\d mm apart") as caught:
        read_pair(image, label)

    assert caught.value.where == str(label)


def test_two_shapes_are_refused_with_both(tmp_path):
    label = (scan()[:, :, 1:] % 5).astype("u1")

    with pytest.raises(VolumeError, match=r"11 x 13 x 7 at .* mm and 11 x 13 x 6 at .* mm"):
        read_pair(*pair_in(tmp_path, AFFINE, AFFINE, label))


@pytest.mark.parametrize("order", ["RAS", "LPS", "SAR"])
def test_a_label_without_orientation_lies_on_the_images_voxels_only_if_trusted(tmp_path, order):
    stored, affine = reoriented(scan(), AFFINE, order)
    image = put(tmp_path, "image.nii", nifti(stored, affine))
    label = put(tmp_path, "label.nii", nifti((stored % 5).astype("u1"), affine, sform=0, qform=0))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReadWarning)
        with pytest.raises(VolumeError) as caught:
            read_pair(image, label)
        volume, labels = read_pair(image, label, trust_image_grid=True)

    assert "trust_image_grid" in (caught.value.remedy or "")
    assert (labels.voxels == volume.voxels % 5).all()
    assert np.array_equal(labels.affine, volume.affine)
    assert all(stride >= 0 for stride in labels.voxels.strides)


# Memory


def test_reading_needs_little_more_than_the_volume(tmp_path):
    """Peak address space within 1.3 times the voxels: no second copy, whatever is converted."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the limit is Linux's")
    voxels = np.tile(scan((48, 40, 36)), (4, 4, 4))
    turned, affine = reoriented(voxels, AFFINE, "LPI")

    def scaled(header):
        header["scl_slope"] = 0.5

    put(tmp_path, "plain.nii.gz", zipped(nifti(turned, affine), 1))
    put(tmp_path, "scaled.nii.gz", zipped(nifti(turned, affine, change=scaled), 1))
    put(tmp_path, "wide.nii.gz", zipped(nifti(turned.astype("f8"), affine), 1))
    program = """if True:
        import resource, sys
        sys.path.insert(0, sys.argv[1])
        from mim3d.data.files import read_volume
        read_volume("tiny.nii.gz")
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + int(1.3 * int(sys.argv[3])) + (16 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        read_volume(sys.argv[2])
    """
    put(tmp_path, "tiny.nii.gz", zipped(nifti(scan())))
    root = str(Path(mim3d.__file__).parents[1])

    for name, width in (("plain", 2), ("scaled", 4), ("wide", 8)):
        size = voxels.size * width
        command = [sys.executable, "-c", program, root, f"{name}.nii.gz", str(size)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, (name, done.stderr[-500:])


# Files that lie beside this checkout


def digest(voxels: np.ndarray) -> str:
    """The manifest's: shape in ASCII, then little-endian float32 in C order, -0 as 0."""
    array = np.ascontiguousarray(voxels, dtype="<f4") + np.float32(0)
    return hashlib.sha256(" ".join(map(str, array.shape)).encode() + array.tobytes()).hexdigest()


def read_row(zoo: Path, row: dict[str, str]):
    if row["kind"] == "label":
        return read_label(zoo / row["file"])
    if row["kind"] == "pair":
        return read_pair(zoo / row["file"], zoo / row["with"])[1]
    return read_volume(zoo / row["file"])


def faults_of(zoo: Path, row: dict[str, str]) -> list[str]:
    """What a row of the manifest asks for and the reader does not do."""
    try:
        volume = read_row(zoo, row)
    except VolumeError as error:
        sound = error.where and error.code and not error.what.endswith(".")
        planted = any(word in f"{error} {error.remedy}" for word in ("PLANTED", "19610203"))
        return [] if row["expected"] == "reject" and sound and not planted else [repr(error)]
    if row["expected"] == "reject" and row["sha256"] == "-":
        return ["accepted"]
    faults = [] if digest(volume.voxels) == row["sha256"] else ["other voxels"]
    expected = np.array([float(number) for number in row["affine"].split()]).reshape(3, 4)
    if not np.allclose(volume.affine[:3], expected, atol=1e-3):
        faults.append("other affine")
    if row["expected"] != "reject" and bool(volume.notes) != (row["expected"] == "warn"):
        faults.append(f"notes {[note.code for note in volume.notes]}")
    return faults


@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore::mim3d.data.files.ReadWarning")
@pytest.mark.parametrize(
    "folder",
    ["orders", "formats", "geometry", "stream", "header", "crash", "voxels", "labels", "pairs",
     "dicom", "names", "traps"],
)  # fmt: skip
def test_every_row_of_the_zoo_behaves_as_its_manifest_says(shared, tmp_path, monkeypatch, folder):
    zoo = shared / "zoo"
    monkeypatch.chdir(tmp_path)
    with open(zoo / "manifest.tsv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))

    faults = {
        row["file"]: found
        for row in rows
        if row["file"].startswith(f"{folder}/") and (found := faults_of(zoo.resolve(), row))
    }

    assert faults == {}
    assert list(tmp_path.iterdir()) == []


REAL = {
    "samples/ct_torso/ct.nii.gz": ((122, 101, 112), "int16"),
    "samples/mha/pet_sts025.mha": ((37, 34, 47), "float32"),
    "samples/mha/ct_lung_mask.mha": ((115, 157, 129), "uint8"),
    "samples/nrrd/breast1_image.nrrd": ((45, 120, 21), "int16"),
    "samples/nrrd/prostate_phantom_subvolume.nrrd": ((82, 67, 13), "uint16"),
    "samples/ct_dicom/series": ((512, 512, 20), "float32"),
    "samples/mr_dicom/series": ((75, 55, 25), "int16"),
    "samples/brain_tumour/case_t1.nii.gz": ((120, 120, 77), None),
}


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL)
def test_real_files_of_every_format_are_read_without_a_note(shared, name):
    shape, kind = REAL[name]

    volume = read_volume(shared / "data" / name)

    assert volume.shape == shape
    assert kind is None or volume.voxels.dtype == kind
    assert volume.notes == ()
    assert len(content_key(shared / "data" / name)) == 64


@pytest.mark.real_data
def test_real_pairs_share_their_grids(shared):
    data = shared / "data"
    read_pair(data / "samples/ct_dicom/series", data / "samples/ct_dicom/organs.nii.gz")
    read_pair(data / "samples/nrrd/breast1_image.nrrd", data / "samples/nrrd/breast1_label.nrrd")
    for name in ("hippocampus_msd", "mouse_rtg4510", "sts_ibsi", "sts_ibsi_mr"):
        for image in sorted((data / name / "imagesTr").iterdir())[:3]:
            volume, labels = read_pair(image, data / name / "labelsTr" / image.name)
            assert labels.voxels.any()
            # mouse: scl_slope other than 1, applied in float64.
            assert (volume.voxels.dtype == np.float32) or name != "mouse_rtg4510"


@pytest.mark.real_data
def test_mr_dicom_holds_the_published_volume_voxel_for_voxel(shared):
    series = read_volume(shared / "data/samples/mr_dicom/series")
    published = read_volume(shared / "data/sts_ibsi_mr/imagesTr/STS_025.nii.gz")

    start = np.linalg.solve(series.affine, published.affine @ [0, 0, 0, 1])[:3].round().astype(int)
    x, y, z = (slice(at, at + size) for at, size in zip(start, published.shape, strict=True))
    assert (series.voxels[:, x, y, z] == published.voxels).all()


def test_the_config_states_its_limit_in_bytes():
    assert ReadConfig().max_bytes == 8 * 2**30
