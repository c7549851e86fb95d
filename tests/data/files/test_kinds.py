from __future__ import annotations

import pytest

from mim3d.data.files import read_volume
from mim3d.foundation.errors import VolumeError

from .making import codes, dicom_folder, meta, nifti, nrrd, put, quietly, scan, zipped

GOOD = {
    "NIfTI": nifti(scan()),
    "gzip": zipped(nifti(scan())),
    "NRRD": nrrd(scan()),
    "MHA": meta(scan()),
}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("case.nii", "gzip"),
        ("case.nii.gz", "NIfTI"),
        ("case", "NIfTI"),
        ("case.nrrd", "NIfTI"),
        ("case.nii.gz", "NRRD"),
        ("case.mha", "NRRD"),
        ("case.nrrd", "MHA"),
        ("case.dcm", "gzip"),
    ],
)
def test_content_decides_and_a_name_that_says_otherwise_is_noted(tmp_path, name, content):
    volume = quietly(put(tmp_path, name, GOOD[content]))

    assert (volume.voxels[0] == scan()).all()
    assert codes(volume) == {"name"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("CASE.NII", "NIfTI"),
        ("CASE.NII.GZ", "gzip"),
        ("a.b.c.Nrrd", "NRRD"),
        (".hidden.mha", "MHA"),
        ("-rf.nii", "NIfTI"),
        ("ümlaut 体积 %s{}.nii", "NIfTI"),
        ("[1].nii.gz", "gzip"),
        ("quote'\"`$(id);&.nii.gz", "gzip"),
    ],
)
def test_names_are_data(tmp_path, name, content):
    assert read_volume(put(tmp_path, name, GOOD[content])).notes == ()


def test_dicom_under_the_name_of_a_scan_is_noted(tmp_path):
    dicom_folder(tmp_path, 1)
    path = (tmp_path / "IM000.dcm").rename(tmp_path / "case.nii")

    assert codes(quietly(path)) == {"name", "one-slice"}


FOREIGN = {
    "empty": (b"", "empty"),
    "gzip of nothing": (zipped(b""), "gzip stream of nothing"),
    "one byte": (b"x", "no NIfTI"),
    "text": (b"hello, this is no volume\n" * 40, "no NIfTI"),
    "zeros": (bytes(5000), "no NIfTI"),
    "gzip of zeros": (zipped(bytes(5000)), "no NIfTI"),
    "web page": (b"\n<!DOCTYPE html><html>sign in</html>", "web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
    "zip": (b"PK\x03\x04" + bytes(400), "zip archive"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(400), "HDF5"),
    "NumPy": (b"\x93NUMPY" + bytes(400), "NumPy"),
    "pickle": (b"\x80\x04c__builtin__\neval\n" + bytes(300), "no NIfTI"),
    "header cut": (nifti(scan())[:200], "ends within the header"),
    "magic only": (b"NRRD0004\n", "missing"),
    "first line only": (b"ObjectType = Image\n", "missing"),
}


@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize("name", ["case.nii.gz", "case"])
def test_what_is_no_volume_is_named(tmp_path, name, content):
    raw, words = FOREIGN[content]

    with pytest.raises(VolumeError, match=words):
        read_volume(put(tmp_path, name, raw))
