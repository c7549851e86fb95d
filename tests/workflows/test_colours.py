"""Names and colours of labels on their way: source, store, run, prediction."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK

from mim3d.config.verbs import PredictConfig
from mim3d.data.files.segments import read_segments
from mim3d.data.label_tables import read_label_table
from mim3d.data.store import open_store
from mim3d.evaluation.folders import evaluate_folder
from mim3d.foundation.reporting import Silent
from mim3d.workflows.predict import predict
from tests.reliability.workbench import NETWORK, SHORT, command, make_source

NAMES = ("background", "left \\ organ ü", "cyst")
COLOURS = ((0, 0, 0), (12, 34, 56), (250, 128, 1))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A source with names and colours, a store, and a run that knows nothing yet."""
    folder = tmp_path_factory.mktemp("colours")
    source = make_source(folder / "source", 3)
    path = source / "dataset.json"
    said = json.loads(path.read_text())
    values = sorted(map(int, said["labels"]))
    said["labels"] = {str(v): NAMES[v] if v < len(NAMES) else f"rest {v}" for v in values}
    said["colours"] = {NAMES[1]: list(COLOURS[1]), "2": "#fa8001"}
    path.write_text(json.dumps(said))
    command(["prepare", str(source), "--out", str(folder / "store"), "--workers", "0"])
    (folder / "finetune.yaml").write_text("data:\n  placement: label\n")
    command(["finetune", str(folder / "finetune.yaml"), "--data.store", str(folder / "store"),
             "--out", str(folder / "run"), *NETWORK, *SHORT])  # fmt: skip
    return folder


def _predict(made, out, label_format):
    images = sorted((made / "source" / "imagesTr").glob("*.nii.gz"))[:1]
    config = PredictConfig(pictures=False, device="cpu", label_format=label_format)
    return images[0], predict(
        str(made / "run"), [str(images[0])], out=str(out), config=config, reporter=Silent()
    )


def test_a_prediction_as_segments_bears_the_names_and_colours_of_the_source(made, tmp_path):
    image, result = _predict(made, tmp_path / "nrrd", "seg.nrrd")
    _predict(made, tmp_path / "nifti", "nii.gz")

    name = image.name.removesuffix(".nii.gz")
    path = tmp_path / "nrrd" / f"{name}.seg.nrrd"
    classes = open_store(made / "store").classes
    assert (classes.names[:3], classes.colours[:3]) == (NAMES, COLOURS)
    found = [(s.value, s.name, s.colour) for s in read_segments(path)]
    rows = zip(classes.values, classes.names, classes.colours, strict=True)
    assert found == list(rows)[1:]
    other = SimpleITK.ReadImage(str(tmp_path / "nifti" / image.name))
    mine = SimpleITK.ReadImage(str(path))
    assert np.array_equal(*map(SimpleITK.GetArrayFromImage, (mine, other)))
    assert mine.GetOrigin() == pytest.approx(other.GetOrigin())
    assert ".seg.nrrd" in result.text


@pytest.mark.parametrize("name", ["labels.json", "labels.ctbl", "labels.itksnap.txt"])
def test_the_tables_beside_predictions_bear_them_too(made, tmp_path, name):
    _predict(made, tmp_path, "nii.gz")

    table = read_label_table(tmp_path / name)

    assert tuple(table.names[value] for value in range(3)) == NAMES
    assert table.colours[1] == COLOURS[1]
    assert table.colours[2] == COLOURS[2]


def test_a_prediction_as_segments_is_kept_and_evaluated(made, tmp_path):
    _predict(made, tmp_path, "seg.nrrd")
    image, again = _predict(made, tmp_path, "seg.nrrd")

    label = made / "source" / "labelsTr" / image.name
    results = evaluate_folder(tmp_path, label)

    assert again.facts["windows"]["run"] == 0
    assert results.structures[0] == NAMES[1]
