from __future__ import annotations

import hashlib

import pytest

from mim3d.data.files import content_key
from mim3d.foundation.errors import VolumeError

from .making import dicom_folder, meta, nifti, put, scan, zipped


def test_a_file_is_known_by_the_sha256_of_its_bytes(tmp_path):
    for raw in (zipped(nifti(scan())), b"no volume at all", b""):
        path = put(tmp_path, "case.nii.gz", raw)
        assert content_key(path) == hashlib.sha256(raw).hexdigest()


def test_a_header_with_data_beside_it_changes_with_either(tmp_path):
    raw = meta(scan(), compressed=False, ElementDataFile="x.raw")
    end = raw.index(b"x.raw\n") + 6
    header, data = put(tmp_path, "x.mhd", raw[:end]), put(tmp_path, "x.raw", raw[end:])
    before = content_key(header)

    data.write_bytes(raw[end:-1] + b"?")
    other_data = content_key(header)
    data.write_bytes(raw[end:])
    header.write_bytes(raw[:end].replace(b"2.5", b"2.4"))

    assert len({before, other_data, content_key(header)}) == 3


def test_a_pair_has_one_key_by_either_name(tmp_path):
    raw = nifti(scan())
    put(tmp_path, "x.hdr", raw[:344] + b"ni1\0")
    put(tmp_path, "x.img", raw[352:])

    assert content_key(tmp_path / "x.hdr") == content_key(tmp_path / "x.img")
    assert content_key(tmp_path / "x.hdr") != hashlib.sha256(raw[:344] + b"ni1\0").hexdigest()


def test_a_series_is_known_by_its_slices_whatever_they_are_called(tmp_path):
    dicom_folder(tmp_path)
    before = content_key(tmp_path)

    for k, path in enumerate(sorted(tmp_path.iterdir(), reverse=True)):
        path.rename(tmp_path / f"other{k}")
    (tmp_path / "notes.txt").write_text("new")
    renamed = content_key(tmp_path)
    (tmp_path / "other0").unlink()

    assert renamed == before
    assert content_key(tmp_path) != before


def test_an_absent_file_is_an_error(tmp_path):
    with pytest.raises(VolumeError, match="no such file"):
        content_key(tmp_path / "absent.nii")
