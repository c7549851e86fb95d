from __future__ import annotations

import itertools

import numpy as np
import pytest
import SimpleITK

from mim3d.data.files import read_label, read_volume
from mim3d.foundation.errors import VolumeError

from .making import AFFINE, ORDERS, SHAPE, codes, nrrd, put, quietly, reoriented, scan, zipped


def directions(affine: np.ndarray) -> dict[str, str]:
    lps = np.diag([-1, -1, 1, 1]) @ affine
    columns = " ".join(f"({x:.9g},{y:.9g},{z:.9g})" for x, y, z in lps[:3, :3].T)
    x, y, z = lps[:3, 3]
    return {"space_directions": columns, "space_origin": f"({x:.9g},{y:.9g},{z:.9g})"}


@pytest.mark.parametrize("order", ORDERS[::3])
def test_storage_orders_agree_with_each_other_and_with_simpleitk(tmp_path, order):
    stored, affine = reoriented(scan(), AFFINE, order)
    path = put(tmp_path, "case.nrrd", nrrd(stored, **directions(affine)))

    volume = read_volume(path)

    assert (volume.voxels[0] == scan()).all()
    assert np.allclose(volume.affine, AFFINE, atol=1e-5)
    assert volume.notes == ()
    image = SimpleITK.ReadImage(str(path))
    index = (1, 2, 3)
    x, y, z = image.TransformIndexToPhysicalPoint(index)
    voxel = np.linalg.solve(volume.affine, [-x, -y, z, 1])[:3].round().astype(int)
    assert volume.voxels[0][tuple(voxel)] == image[index]


@pytest.mark.parametrize("encoding", ["raw", "gzip", "ascii", "txt"])
@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "f4"])
def test_every_encoding_holds_the_same_voxels(tmp_path, encoding, kind):
    voxels = abs(scan()).clip(0, 200).astype(kind)
    raw = nrrd(voxels, encoding="ascii" if encoding == "txt" else encoding)
    path = put(
        tmp_path, "case.nrrd", raw.replace(b"encoding: ascii", f"encoding: {encoding}".encode())
    )

    volume = read_volume(path)

    assert (volume.voxels[0] == voxels).all()
    assert volume.voxels.dtype == np.dtype(kind)


def test_big_endian_is_swapped(tmp_path):
    raw = nrrd(scan().astype(">i2"), encoding="raw", endian="big")

    assert (read_volume(put(tmp_path, "case.nrrd", raw)).voxels[0] == scan()).all()


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (-1, -1)),
        ("LPS", (-1, -1)),
        ("right-anterior-superior", (1, 1)),
        ("RAS", (1, 1)),
        ("left-anterior-superior", (-1, 1)),
        ("las", (-1, 1)),
    ],
)
def test_the_three_spaces_of_the_body_in_both_forms(tmp_path, space, signs):
    x, y = signs
    fields = {
        "space": space,
        "space_directions": f"({x * 0.8},0,0) (0,{y * 1.2},0) (0,0,2.5)",
        "space_origin": f"({x * -11},{y * 6.5},31.25)",
    }

    volume = read_volume(put(tmp_path, "case.nrrd", nrrd(scan(), **fields)))

    assert np.allclose(volume.affine, AFFINE)
    assert (volume.voxels[0] == scan()).all()


@pytest.mark.parametrize("place", [0, 1, 3])
def test_the_axis_without_a_direction_is_the_channel(tmp_path, place):
    voxels = np.moveaxis(scan((*SHAPE, 3)), -1, place)
    vectors = ["(-0.8,0,0)", "(0,-1.2,0)", "(0,0,2.5)"]
    vectors.insert(place, "none")

    volume = read_volume(
        put(tmp_path, "case.nrrd", nrrd(voxels, space_directions=" ".join(vectors)))
    )

    # LPS directions of (-0.8, -1.2): stored in RAS+ order already.
    assert (volume.voxels == np.moveaxis(scan((*SHAPE, 3)), -1, 0)).all()


@pytest.mark.parametrize(
    "fields",
    [
        {"space": "", "space_directions": "", "space_origin": "", "spacings": "0.8 1.2 2.5"},
        {"space": "3D-right-handed"},
        {"space": "", "space_dimension": "3"},
    ],
)
def test_a_space_that_is_not_the_body_is_unknown_orientation(tmp_path, fields):
    volume = quietly(put(tmp_path, "case.nrrd", nrrd(scan(), **fields)))

    assert codes(volume) == {"orientation-unknown"}
    assert np.allclose(volume.affine, np.diag([0.8, 1.2, 2.5, 1]))
    assert (volume.voxels[0] == scan()).all()


@pytest.mark.parametrize("skip", ["line", "byte", "both", "last"])
def test_detached_data_with_bytes_to_skip(tmp_path, skip):
    data = scan().tobytes(order="F")
    fields = {"data_file": "case.raw"}
    if skip in ("line", "both"):
        data, fields["line_skip"] = b"one\ntwo\n" + data, "2"
    if skip in ("byte", "both"):
        head = 8 if skip == "both" else 0
        data, fields["byte_skip"] = data[:head] + b"1234567" + data[head:], "7"
    if skip == "last":
        data, fields["byte_skip"] = b"whatever" + data, "-1"
    header = nrrd(scan(), encoding="raw", **fields).split(b"\n\n")[0] + b"\n"
    put(tmp_path, "case.raw", data)

    volume = read_volume(put(tmp_path, "case.nhdr", header))

    assert (volume.voxels[0] == scan()).all()


def test_comments_and_keys_are_passed_over_and_never_repeated(tmp_path):
    extra = "# PLANTED^NAME\nPatientName:=PLANTED^NAME\n"

    volume = read_volume(put(tmp_path, "case.nrrd", nrrd(scan(), extra=extra)))

    assert volume.notes == ()
    assert "PLANTED" not in repr(volume)


def test_a_flat_image_is_one_voxel_thick_along_its_normal(tmp_path):
    fields = {"space_directions": "(-0.8,0,0) (0,0,1.5)"}

    volume = quietly(put(tmp_path, "case.nrrd", nrrd(scan((11, 13)), **fields)))

    assert volume.shape == (11, 1, 13)
    assert volume.spacing_mm == pytest.approx((0.8, 1.0, 1.5))
    assert codes(volume) == {"thickness"}


REJECTED = {
    "sizes huge": {"sizes": "2000000000 2000000000 2000000000"},
    "sizes negative": {"sizes": "-11 13 7"},
    "sizes zero": {"sizes": "0 13 7"},
    "sizes two": {"sizes": "11 13"},
    "sizes of twenty digits": {"sizes": "99999999999999999999 13 7"},
    "sizes of a thousand digits": {"sizes": "9" * 1000 + " 13 7"},
    "dimension 20": {"dimension": "20"},
    "dimension 0": {"dimension": "0"},
    "type": {"type": "quux"},
    "block": {"type": "block"},
    "colours": {"kinds": "domain domain RGB-color"},
    "encoding": {"encoding": "rot13"},
    "hex": {"encoding": "hex"},
    "bzip2": {"encoding": "bzip2"},
    "no endian": {"endian": ""},
    "no type": {"type": ""},
    "directions zero": {"space_directions": "(0,0,0) (0,0,0) (0,0,0)"},
    "directions nan": {"space_directions": "(nan,0,0) (0,1,0) (0,0,1)"},
    "directions two": {"space_directions": "(1,0,0) (0,1,0)"},
    "directions short": {"space_directions": "(1,0,0) (0,1,0) (0,1)"},
    "directions of two": {"space_directions": "(1,0) (0,1) (0,1)"},
    "directions parallel": {"space_directions": "(1,0,0) (0,1,0) (0,1,0)"},
    "directions sheared": {"space_directions": "(1,0,0) (0.2,1,0) (0,0,1)"},
    "directions missing": {"space_directions": ""},
    "directions without space": {"space": ""},
    "space unknown": {"space": "left-posterior-inferior"},
    "origin nan": {"space_origin": "(nan,0,0)"},
    "byte skip huge": {"byte_skip": "1099511627776"},
    "byte skip negative": {"byte_skip": "-5"},
    "line skip huge": {"line_skip": "2147483647"},
    "unknown field": {"sample": "x"},
    "list": {"data_file": "LIST"},
    "pattern": {"data_file": "x%03d.raw 1 2147483647 1"},
    "outside": {"data_file": "../x.raw"},
    "absolute": {"data_file": "/etc/passwd"},
    "itself": {"data_file": "case.nrrd"},
    "absent": {"data_file": "absent.raw"},
}


@pytest.mark.parametrize("fault", REJECTED)
def test_a_header_that_breaks_a_rule_is_refused(tmp_path, fault):
    path = put(tmp_path, "case.nrrd", nrrd(scan(), **REJECTED[fault]))

    with pytest.raises(VolumeError) as caught:
        read_volume(path)

    assert "\n" not in caught.value.what


@pytest.mark.parametrize(
    "extra", ["type: short\n", "x" * 5000 + ": y\n", "no colon\n", "# " + "x" * 70_000 + "\n"]
)
def test_a_line_that_is_twice_there_unknown_or_endless_is_refused(tmp_path, extra):
    with pytest.raises(VolumeError):
        read_volume(put(tmp_path, "case.nrrd", nrrd(scan(), extra=extra)))


@pytest.mark.parametrize("fault", ["short", "long", "letters", "beyond", "underscore", "fraction"])
def test_numbers_as_text_must_be_as_many_and_of_the_type(tmp_path, fault):
    raw = nrrd(scan(), encoding="ascii")
    header, data = raw.split(b"\n\n")
    numbers = data.split()
    edits = {"letters": b"x", "beyond": b"40000", "underscore": b"1_0", "fraction": b"1.5"}
    if fault == "short":
        del numbers[-50:]
    elif fault == "long":
        numbers.append(b"0")
    else:
        numbers[7] = edits[fault]

    with pytest.raises(VolumeError):
        read_volume(put(tmp_path, "case.nrrd", header + b"\n\n" + b" ".join(numbers)))


def test_numbers_as_text_are_the_same_however_they_are_divided(tmp_path, monkeypatch):
    header, data = nrrd(scan(), encoding="ascii").split(b"\n\n")
    spaces = itertools.cycle([b" ", b"\n", b"\r\n", b"\t  "])
    mixed = b"".join(number + next(spaces) for number in data.split())
    for feed in (7, 64, 1 << 18):
        monkeypatch.setattr("mim3d.data.files.texts.FEED", feed)
        volume = read_volume(put(tmp_path, "case.nrrd", header + b"\n\n" + mixed))
        assert (volume.voxels[0] == scan()).all()


def test_labels_and_units(tmp_path):
    labels = (scan() % 5).astype("u1")
    fields = {
        "space_units": '"cm" "cm" "cm"',
        "space_directions": "(-0.08,0,0) (0,-0.12,0) (0,0,0.25)",
        "space_origin": "(1.1,-0.65,3.125)",
    }
    raw = nrrd(labels, **fields)

    with pytest.warns(UserWarning, match="cm"):
        volume = read_label(put(tmp_path, "case.nrrd", raw))

    assert (volume.voxels[0] == labels).all()
    assert np.allclose(volume.affine, AFFINE)


def test_gzip_around_the_whole_file_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(VolumeError, match="inside gzip") as caught:
        read_volume(put(tmp_path, "case.nrrd.gz", zipped(nrrd(scan()))))

    assert "unpack" in (caught.value.remedy or "")


@pytest.mark.parametrize("text", [" " * 60_000 + ")", "(" * 60_000, "( " * 30_000])
def test_brackets_and_spaces_without_end_are_refused_in_one_pass(tmp_path, text):
    """A backtracking pattern took hours over these: the suite's own time limit is the judge."""
    with pytest.raises(VolumeError, match="`space directions`"):
        read_volume(put(tmp_path, "case.nrrd", nrrd(scan(), space_directions=text)))


def test_directions_may_hold_spaces_within_and_none_between(tmp_path):
    spaced = "( -0.8, 0 ,0)(0,-1.2,0)   (0, 0, 2.5 )"

    volume = read_volume(put(tmp_path, "case.nrrd", nrrd(scan(), space_directions=spaced)))

    assert volume.spacing_mm == pytest.approx((0.8, 1.2, 2.5))


def test_text_beyond_a_floats_range_is_contained_without_a_warning(tmp_path):
    raw = nrrd(scan().astype("f4"), encoding="ascii").replace(b"\n7\n", b"\n1e300\n", 1)
    assert b"1e300" in raw

    volume = quietly(put(tmp_path, "case.nrrd", raw))

    assert "values-replaced" in codes(volume)
