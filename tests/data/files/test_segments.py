"""Label maps with names and colours in their header, as 3D Slicer has them."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK

from mim3d.data.classes import ClassTable
from mim3d.data.files import ReadWarning, check_same_grid, read_label, read_volume, write_label
from mim3d.data.files.segments import Segment, read_segments, write_segmentation
from mim3d.foundation.errors import UserError, VolumeError

from .making import nifti, nrrd, put, scan

TURNED = np.array([[0.0, -1.2, 0, 5.5], [1.5, 0, 0, -3], [0, 0, -3, 7], [0, 0, 0, 1]])
CLASSES = ClassTable.from_values(
    [0, 2, 4, 300], {2: "left \\ lobe ü", 4: "cyst"}, colours={2: (1, 2, 3), 4: (250, 0, 9)}
)


def _image(folder, affine=TURNED):
    put(folder, "image.nii", nifti(scan((11, 13, 7)), affine=affine))
    return read_volume(folder / "image.nii")


def _labels(volume):
    values = np.array([0, 2, 4], np.uint16)
    return values[volume.voxels[0] % 3]


def test_labels_names_and_colours_come_back(tmp_path):
    volume = _image(tmp_path)
    labels = _labels(volume)

    write_segmentation(tmp_path / "a.seg.nrrd", labels, volume, CLASSES)

    found = read_label(tmp_path / "a.seg.nrrd")
    assert (found.voxels[0] == labels).all()
    check_same_grid(volume, found)
    assert read_segments(tmp_path / "a.seg.nrrd") == (
        Segment(2, "left \\ lobe ü", (1, 2, 3)),
        Segment(4, "cyst", (250, 0, 9)),
        Segment(300, "label 300", CLASSES.colours[3]),
    )


def test_simpleitk_reads_the_same_voxels_in_the_same_place_as_from_nifti(tmp_path):
    volume = _image(tmp_path)
    labels = _labels(volume)
    write_segmentation(tmp_path / "a.seg.nrrd", labels, volume, CLASSES)
    write_label(tmp_path / "a.nii.gz", labels, volume)

    mine = SimpleITK.ReadImage(str(tmp_path / "a.seg.nrrd"))
    other = SimpleITK.ReadImage(str(tmp_path / "a.nii.gz"))

    arrays = [SimpleITK.GetArrayFromImage(image) for image in (mine, other)]
    assert (arrays[0] == arrays[1]).all()
    assert mine.GetOrigin() == pytest.approx(other.GetOrigin())
    assert mine.GetSpacing() == pytest.approx(other.GetSpacing())
    assert mine.GetDirection() == pytest.approx(other.GetDirection())
    assert mine.GetMetaData("Segment0_LabelValue") == "2"
    assert mine.GetMetaData("Segment0_Color") == "0.003922 0.007843 0.011765"


def test_the_extent_of_a_segment_is_its_box_in_the_order_of_the_file(tmp_path):
    volume = _image(tmp_path)
    labels = np.zeros(volume.shape, np.uint8)
    labels[2:5, 1, 3] = 4

    write_segmentation(tmp_path / "a.seg.nrrd", labels, volume, CLASSES)

    image = SimpleITK.ReadImage(str(tmp_path / "a.seg.nrrd"))
    k, j, i = np.nonzero(SimpleITK.GetArrayFromImage(image))
    box = f"{i.min()} {i.max()} {j.min()} {j.max()} {k.min()} {k.max()}"
    assert image.GetMetaData("Segment1_Extent") == box
    assert image.GetMetaData("Segment0_Extent") == "0 -1 0 -1 0 -1"


def test_a_volume_without_orientation_gains_none(tmp_path):
    put(tmp_path, "image.nii", nifti(scan((11, 13, 7)), sform=0, qform=0))
    volume = read_volume_quietly(tmp_path / "image.nii")

    write_segmentation(tmp_path / "a.seg.nrrd", _labels(volume), volume, CLASSES)

    found = read_volume_quietly(tmp_path / "a.seg.nrrd")
    assert not found.origin.has_orientation
    check_same_grid(volume, found)


def read_volume_quietly(path):
    with pytest.warns(ReadWarning):
        return read_volume(path)


def test_values_that_are_no_class_and_other_endings_are_refused(tmp_path):
    volume = _image(tmp_path)
    labels = _labels(volume)

    with pytest.raises(UserError, match="no class"):
        write_segmentation(tmp_path / "a.seg.nrrd", labels + 1, volume, CLASSES)
    with pytest.raises(UserError, match="seg.nrrd"):
        write_segmentation(tmp_path / "a.nrrd", labels, volume, CLASSES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.nii"]


def test_a_plain_nrrd_has_no_segments(tmp_path):
    put(tmp_path, "a.nrrd", nrrd(scan((11, 13, 7))))

    assert read_segments(tmp_path / "a.nrrd") == ()


def test_overlapping_layers_are_refused_by_name(tmp_path):
    extra = "Segment0_LabelValue:=1\nSegment0_Layer:=0\nSegment1_LabelValue:=1\nSegment1_Layer:=1"
    put(tmp_path, "a.seg.nrrd", nrrd(scan((11, 13, 7)), extra=extra))

    with pytest.raises(VolumeError, match="several layers"):
        read_segments(tmp_path / "a.seg.nrrd")


@pytest.mark.parametrize("colour", ["", "1 2 3", "nan 0 0", "0.1 0.2", "a b c"])
def test_a_colour_that_is_none_is_left_out(tmp_path, colour):
    extra = f"Segment0_LabelValue:=7\nSegment0_Color:={colour}"
    put(tmp_path, "a.seg.nrrd", nrrd(scan((11, 13, 7)), extra=extra))

    assert read_segments(tmp_path / "a.seg.nrrd") == (Segment(7, "label 7", None),)
