from __future__ import annotations

import gzip
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

import mim3d
from mim3d.data.files import read_label, read_volume, write_label, write_volume
from mim3d.data.files import writing as writing_module
from mim3d.foundation.errors import ResourceError, ShapeError, UserError

from .making import (
    AFFINE,
    ORDERS,
    dicom_folder,
    meta,
    nifti,
    nrrd,
    put,
    quietly,
    reoriented,
    scan,
    zipped,
)

GEOMETRY = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x",
            "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units")  # fmt: skip
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = [[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]]


def landmark_of(volume) -> tuple[np.ndarray, tuple[int, int, int]]:
    place = (2, 9, volume.shape[2] // 2)
    labels = np.zeros(volume.shape, np.int64)
    labels[place] = 7
    return labels, place


def millimetres_by_nibabel(path) -> np.ndarray:
    image = nibabel.load(path)
    (place,) = np.argwhere(np.asarray(image.dataobj).reshape(image.shape[:3]) == 7)
    return (image.affine @ [*place, 1])[:3]


def millimetres_by_simpleitk(path) -> np.ndarray:
    image = SimpleITK.ReadImage(str(path))
    ((z, y, x),) = np.argwhere(SimpleITK.GetArrayFromImage(image) == 7)
    lps = image.TransformIndexToPhysicalPoint((int(x), int(y), int(z)))
    return np.array([-lps[0], -lps[1], lps[2]])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("affine", [AFFINE, OBLIQUE @ AFFINE], ids=["straight", "oblique"])
def test_a_prediction_lies_where_the_scan_lies_in_every_program(tmp_path, order, affine):
    stored, own = reoriented(scan(), affine, order)
    source = put(tmp_path, "case.nii.gz", zipped(nifti(stored, own), 1))
    volume = read_volume(source)
    labels, place = landmark_of(volume)
    out = tmp_path / "out" / "case.nii.gz"

    write_label(out, labels, volume)

    expected = (volume.affine @ [*place, 1])[:3]
    assert np.allclose(millimetres_by_nibabel(out), expected, atol=1e-3)
    assert np.allclose(millimetres_by_simpleitk(out), expected, atol=1e-2)
    written, original = nibabel.load(out), nibabel.load(source)
    assert written.shape == original.shape
    assert written.get_data_dtype() == np.uint8
    for name in GEOMETRY:
        assert written.header[name].tobytes() == original.header[name].tobytes(), name
    assert written.header["pixdim"][:4].tobytes() == original.header["pixdim"][:4].tobytes()
    again = read_label(out)
    assert (again.voxels[0] == labels).all()
    assert np.array_equal(again.affine, volume.affine)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("forms", [(1, 0), (0, 1), (4, 2), (0, 0)])
def test_geometry_fields_are_the_bytes_of_the_source(tmp_path, version, byte_order, forms):
    sform, qform = forms
    raw = nifti(scan(), version=version, order=byte_order, sform=sform, qform=qform)
    volume = quietly(put(tmp_path, "case.nii", raw))

    write_label(tmp_path / "label.nii", np.full(volume.shape, 300), volume)

    written = (tmp_path / "label.nii").read_bytes()
    places = (
        [(76, 92), (123, 124), (252, 328)] if version == 1 else [(104, 136), (344, 496), (500, 504)]
    )
    for start, stop in places:
        assert written[start:stop] == raw[start:stop]
    assert (np.asarray(nibabel.load(tmp_path / "label.nii").dataobj) == 300).all()


@pytest.mark.parametrize("source", ["nrrd", "mha", "dicom", "channels first"])
@pytest.mark.parametrize("order", ["LPS", "IAR", "PSL"])
def test_other_formats_get_forms_that_every_program_reads_alike(tmp_path, source, order):
    if source == "dicom":
        dicom_folder(tmp_path / "case")
        path = tmp_path / "case"
    else:
        stored, affine = reoriented(scan(), AFFINE, order)
        lps = np.diag([-1, -1, 1, 1]) @ affine
        columns = lps[:3, :3].T
        text = " ".join("({:g},{:g},{:g})".format(*column) for column in columns)
        origin = "({:g},{:g},{:g})".format(*lps[:3, 3])
        if source == "mha":
            spacing = np.abs(columns).max(axis=1)
            raw = meta(
                stored,
                TransformMatrix=" ".join(f"{v:g}" for v in (columns / spacing[:, None]).ravel()),
                Offset=origin.strip("()").replace(",", " "),
                ElementSpacing=" ".join(f"{v:g}" for v in spacing),
            )
        elif source == "nrrd":
            raw = nrrd(stored, space_directions=text, space_origin=origin)
        else:
            both = np.stack([stored, stored])
            raw = nrrd(both, space_directions=f"none {text}", space_origin=origin)
        path = put(tmp_path, f"case.{'mha' if source == 'mha' else 'nrrd'}", raw)
    volume = read_volume(path)
    labels, place = landmark_of(volume) if source != "dicom" else landmark_of_small(volume)

    write_label(tmp_path / "out.nii.gz", labels, volume)

    expected = (volume.affine @ [*place, 1])[:3]
    assert np.allclose(millimetres_by_nibabel(tmp_path / "out.nii.gz"), expected, atol=1e-3)
    assert np.allclose(millimetres_by_simpleitk(tmp_path / "out.nii.gz"), expected, atol=1e-3)
    again = read_label(tmp_path / "out.nii.gz")
    assert (again.voxels[0] == labels).all()
    assert np.allclose(again.affine, volume.affine, atol=1e-4)
    assert again.origin.file_shape == volume.origin.file_shape


def landmark_of_small(volume):
    labels = np.zeros(volume.shape, np.int64)
    labels[2, 5, 3] = 7
    return labels, (2, 5, 3)


@pytest.mark.parametrize(("largest", "kind"), [(1, "u1"), (255, "u1"), (256, "u2"), (65535, "u2")])
def test_labels_take_the_smallest_type(tmp_path, largest, kind):
    volume = read_volume(put(tmp_path, "case.nii", nifti(scan())))
    labels = np.zeros(volume.shape, np.int32)
    labels[1, 2, 3] = largest

    write_label(tmp_path / "label.nii.gz", labels, volume)

    assert nibabel.load(tmp_path / "label.nii.gz").get_data_dtype() == np.dtype(kind)


def test_labels_that_are_none_are_a_programmers_error(tmp_path):
    volume = read_volume(put(tmp_path, "case.nii", nifti(scan())))
    zeros = np.zeros(volume.shape, np.int64)

    for wrong in (zeros - 1, zeros + 65536, zeros.astype(float)):
        with pytest.raises(ValueError, match="labels"):
            write_label(tmp_path / "x.nii", wrong, volume)
    for wrong in (zeros[1:], zeros[None]):
        with pytest.raises(ShapeError):
            write_label(tmp_path / "x.nii", wrong, volume)
    with pytest.raises(UserError, match="nii"):
        write_label(tmp_path / "x.nrrd", zeros, volume)
    assert not (tmp_path / "x.nii").exists()


@pytest.mark.parametrize("kind", ["f8", "f4", "f2", "i2", "u4", "?"])
def test_volumes_with_channels_are_written_in_four_axes(tmp_path, kind):
    stored, affine = reoriented(scan(), AFFINE, "PIR")
    volume = read_volume(put(tmp_path, "case.nii", nifti(stored, affine)))
    voxels = np.stack([abs(scan()), scan() % 7]).astype(kind)

    write_volume(tmp_path / "out.nii.gz", voxels, volume)

    again = read_volume(tmp_path / "out.nii.gz")
    assert (again.voxels == voxels).all()
    assert np.array_equal(again.affine, volume.affine)
    assert nibabel.load(tmp_path / "out.nii.gz").shape == (*stored.shape, 2)


def test_a_flat_source_gets_a_flat_prediction(tmp_path):
    source = put(tmp_path, "case.nii", nifti(scan((11, 13))))
    volume = read_volume(source)

    write_label(tmp_path / "label.nii", np.ones(volume.shape, np.uint8), volume)

    assert nibabel.load(tmp_path / "label.nii").shape == (11, 13)


def test_nothing_of_the_source_but_geometry_is_carried_over(tmp_path):
    def plant(header):
        header["descrip"] = header["aux_file"] = b"PLANTED^NAME"
        header["intent_name"] = b"PLANTED^NAME"
        header["db_name"] = b"PLANTED^NAME"

    raw = nifti(scan(), change=plant)
    volume = read_volume(put(tmp_path, "PLANTED.nii.gz", gzip.compress(raw)))

    write_label(tmp_path / "out.nii.gz", np.ones(volume.shape, np.uint8), volume)

    packed = (tmp_path / "out.nii.gz").read_bytes()
    assert b"PLANTED" not in packed
    assert b"PLANTED" not in gzip.decompress(packed)
    # No flag for a name and no time.
    assert packed[3:9] == bytes(6)


def test_equal_voxels_give_equal_bytes(tmp_path):
    volume = read_volume(put(tmp_path, "case.nii", nifti(scan())))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, scan(), volume)

    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_more_than_32767_voxels_along_an_axis_become_nifti2(tmp_path):
    raw = nrrd(np.zeros((40_000, 2, 2), "u1"), encoding="raw")
    volume = quietly(put(tmp_path, "case.nrrd", raw))

    write_label(tmp_path / "label.nii", np.ones(volume.shape, np.uint8), volume)

    assert nibabel.load(tmp_path / "label.nii").shape == (40_000, 2, 2)
    assert np.allclose(quietly(tmp_path / "label.nii").affine, volume.affine)


@pytest.mark.parametrize("name", ["out.nii", "out.nii.gz"])
def test_a_disk_that_lies_is_found_out_and_the_older_file_stays(tmp_path, monkeypatch, name):
    volume = read_volume(put(tmp_path, "case.nii", nifti(scan())))
    write_label(tmp_path / name, np.ones(volume.shape, np.uint8), volume)
    before = (tmp_path / name).read_bytes()
    reads_back = writing_module._reads_back

    def corrupted(path, *rest, **options):
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
        return reads_back(path, *rest, **options)

    monkeypatch.setattr(writing_module, "_reads_back", corrupted)
    with pytest.raises(ResourceError, match="does not read back"):
        write_label(tmp_path / name, scan() % 5, volume)

    assert (tmp_path / name).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["case.nii", name]


def test_a_full_disk_keeps_the_older_file(tmp_path):
    put(tmp_path, "case.nii", nifti(scan((48, 40, 36))))
    program = textwrap.dedent("""
        import resource, signal, sys
        import numpy as np
        sys.path.insert(0, sys.argv[1])
        from mim3d.data.files import read_volume, write_label
        from mim3d.foundation.errors import ResourceError
        volume = read_volume("case.nii")
        write_label("out.nii", np.zeros(volume.shape, np.uint8), volume)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            write_label("out.nii", np.ones(volume.shape, np.uint8), volume)
        except ResourceError as error:
            sys.exit(7 if "no room" in str(error) else 8)
    """)
    root = str(Path(mim3d.__file__).parents[1])

    done = subprocess.run([sys.executable, "-c", program, root], cwd=tmp_path, check=False)

    assert done.returncode == 7
    assert (np.asarray(nibabel.load(tmp_path / "out.nii").dataobj) == 0).all()


def test_a_header_is_352_bytes_with_the_voxels_right_behind(tmp_path):
    volume = read_volume(put(tmp_path, "case.nii", nifti(scan())))

    write_label(tmp_path / "label.nii", np.ones(volume.shape, np.uint8), volume)

    raw = (tmp_path / "label.nii").read_bytes()
    assert len(raw) == 352 + scan().size
    assert struct.unpack("<f", raw[108:112]) == (352,)
