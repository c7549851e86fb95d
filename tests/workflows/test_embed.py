"""From a run and volumes to a file of features."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch

from mim3d.config.data import DataConfig
from mim3d.config.embed import EmbedConfig, EmbeddingConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig, ProbesConfig
from mim3d.config.read import ReadConfig
from mim3d.config.training import TrainingConfig
from mim3d.config.verbs import PretrainConfig
from mim3d.data.phantom import PhantomRule, make_cohort
from mim3d.data.store import open_store
from mim3d.foundation.errors import ConfigError, ExitCode, UserError
from mim3d.foundation.reporting import Silent
from mim3d.tokens.patches import without_air
from mim3d.workflows.embed import embed
from mim3d.workflows.frozen import load_encoder
from mim3d.workflows.prepare import prepare
from mim3d.workflows.pretrain import pretrain
from mim3d.workflows.probing.trained import random_run
from mim3d.workflows.tasks.classification import stored_volume
from tests.data.files.making import dicom_slice

PATCH, FINE = (4, 5, 3), (2, 2, 3)
RULE = PhantomRule(shape=(14, 13, 9), spacing_mm=(1.5, 1.2, 3.0), organs=1, tumour=False)
CPU = {"device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("embed")
    make_cohort(folder / "cohort", seed=1, training=3, validation=1, rule=RULE)
    prepare(str(folder / "cohort"), out=str(folder / "store"), reporter=Silent())
    config = PretrainConfig(
        data=DataConfig(store=str(folder / "store"), crop_size=(14, 13, 9)),
        encoder=EncoderConfig(
            width=24, depth=2, heads=2, patch=PATCH, class_token=True, default_spacing_mm=None
        ),
        objective=PretextConfig(decoder_width=12, decoder_depth=1, decoder_heads=2),
        training=TrainingConfig(steps=2, batch_size=2, precision="fp32", device="cpu"),
        probes=ProbesConfig(every=0),
    )
    pretrain(config, out=str(folder / "run"), reporter=Silent())
    return {name: folder / name for name in ("cohort", "store", "run")}


def config_of(**fields) -> EmbedConfig:
    return EmbedConfig(embed=EmbeddingConfig(**fields), **CPU)


def test_features_are_those_of_the_encoder_on_what_training_saw(made, tmp_path):
    out = tmp_path / "f.h5"

    result = embed(str(made["run"]), [str(made["store"])], out=str(out), config=config_of(),
                   reporter=Silent())  # fmt: skip

    store = open_store(made["store"])
    network = load_encoder(made["run"], **CPU).network.eval()
    assert result.facts["cases"] == 4
    with h5py.File(out) as file:
        names = file["case_id"].asstr()[:].tolist()
        assert names == list(store.ids())
        assert file["list"].asstr()[:].tolist() == [store.part(name) for name in names]
        first = file["patches/first"][:]
        for place, name in enumerate(names):
            with store.open(name) as case:
                size = case.shape[1:]
                voxels = torch.from_numpy(case.read_normalised((0, 0, 0), size))[None]
                affine, spacing = case.affine, case.spacing_mm
            with torch.no_grad():
                states = network(voxels, spacing)
            own = slice(first[place], first[place + 1])
            np.testing.assert_allclose(
                file["patches/features"][own], states.tokens[0], atol=2e-5, rtol=1e-4
            )
            np.testing.assert_allclose(
                file["features"][place], states.tokens[0].mean(0), atol=2e-5, rtol=1e-4
            )
            np.testing.assert_allclose(
                file["class_token"][place], states.prefix[0, 0], atol=2e-5, rtol=1e-4
            )
            middle = affine @ [1.5, 2, 1, 1]  # of the first patch of 4 x 5 x 3 voxels
            np.testing.assert_allclose(file["patches/centres_mm"][first[place]], middle[:3])
        assert json.loads(file.attrs["encoder"])["width"] == 24
        assert file.attrs["step"] == 2


def test_an_encoder_that_never_saw_air_is_not_shown_any(made, tmp_path):
    objective = PretextConfig(
        decoder_width=12, decoder_depth=1, decoder_heads=2, drop_air=True, mask_ratio=0.5
    )
    encoder = EncoderConfig(width=24, depth=2, heads=2, patch=FINE, default_spacing_mm=None)
    data = DataConfig(store=str(made["store"]), crop_size=(14, 13, 9))
    training = TrainingConfig(steps=1, batch_size=2, precision="fp32", device="cpu")
    pretrain(
        PretrainConfig(data=data, encoder=encoder, objective=objective, training=training,
                       probes=ProbesConfig(every=0)),
        out=str(tmp_path / "run"), reporter=Silent(),
    )  # fmt: skip

    embed(str(tmp_path / "run"), [str(made["store"])], out=str(tmp_path / "f.h5"),
          config=config_of(part="validation", skip_air=False), reporter=Silent())  # fmt: skip

    network = load_encoder(tmp_path / "run", **CPU).network.eval()
    store = open_store(made["store"])
    (name,) = store.ids("validation")
    with store.open(name) as case:
        seen, spacing = stored_volume(case, wants_body=True), case.spacing_mm
    shown = without_air(None, torch.from_numpy(seen.body)[None], FINE)
    with torch.no_grad():
        states = network(seen.voxels[None], spacing, valid=shown)
    assert 0 < int(states.token_valid.sum()) < states.token_valid.numel()
    with h5py.File(tmp_path / "f.h5") as file:
        np.testing.assert_allclose(
            file["patches/features"][:], states.tokens[states.token_valid], atol=2e-5, rtol=1e-4
        )


def test_files_have_the_features_of_the_store_that_was_prepared_of_them(made, tmp_path):
    for name, source in (("store", made["store"]), ("files", made["cohort"])):
        embed(str(made["run"]), [str(source)], out=str(tmp_path / f"{name}.h5"),
              config=config_of(skip_air=False), reporter=Silent())  # fmt: skip

    with h5py.File(tmp_path / "store.h5") as one, h5py.File(tmp_path / "files.h5") as other:
        names = one["case_id"].asstr()[:].tolist()
        order = [other["case_id"].asstr()[:].tolist().index(name) for name in names]
        np.testing.assert_allclose(
            one["features"], other["features"][:][order], atol=1e-4, rtol=1e-3
        )


def test_a_csv_of_one_list_has_a_row_a_volume(made, tmp_path):
    out = tmp_path / "f.csv"

    embed(str(made["run"]), [str(made["store"])], out=str(out),
          config=config_of(part="validation"), reporter=Silent())  # fmt: skip

    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["list"] for row in rows] == ["validation"]
    assert {"case", "feature_23", "class_token_23"} <= set(rows[0])


def test_a_case_that_cannot_be_read_is_left_out_by_name_and_the_others_stay(made, tmp_path):
    good = next((made["cohort"] / "imagesTr").glob("*.nii.gz"))
    image = nib.load(good)
    flat = nib.Nifti1Image(np.zeros(image.shape, np.float32), image.affine)
    nib.save(flat, tmp_path / "flat.nii.gz")
    (tmp_path / "cut.nii.gz").write_bytes(good.read_bytes()[:90])
    inputs = [str(tmp_path / "cut.nii.gz"), str(good)]

    some = embed(str(made["run"]), inputs, out=str(tmp_path / "a.csv"), config=config_of(),
                 reporter=Silent())  # fmt: skip
    none = embed(str(made["run"]), inputs[:1], out=str(tmp_path / "b.csv"), config=config_of(),
                 reporter=Silent())  # fmt: skip

    assert (some.exit_code, some.facts["cases"]) == (ExitCode.PARTIAL, 1)
    assert some.facts["refused"][0].startswith("cut: left out")
    assert none.exit_code == ExitCode.INPUT
    assert not (tmp_path / "b.csv").exists()


def test_a_dry_run_and_a_file_that_is_there_write_nothing(made, tmp_path):
    out = tmp_path / "f.csv"
    said = embed(str(made["run"]), [str(made["store"])], out=str(out), config=config_of(),
                 reporter=Silent(), dry_run=True)  # fmt: skip
    assert "phantom_000" in said.text
    assert not out.exists()
    out.write_text("mine")

    with pytest.raises(ConfigError, match="is there already"):
        embed(str(made["run"]), [str(made["store"])], out=str(out), config=config_of(),
              reporter=Silent())  # fmt: skip
    assert out.read_text() == "mine"


def test_two_inputs_of_one_name_are_refused_before_anything_is_read(made, tmp_path):
    store = str(made["store"])

    with pytest.raises(ConfigError, match="both called `phantom_000`"):
        embed(str(made["run"]), [store, store], out=str(tmp_path / "f.h5"), reporter=Silent())


def test_of_a_folder_of_two_series_the_one_that_is_asked_for_is_encoded(made, tmp_path):
    random = np.random.default_rng(3)
    for number in (1, 2):
        for k in range(9):
            pixels = random.integers(-900, 900, (13, 14)).astype(np.int16)
            raw = dicom_slice(pixels, (0, 0, 2.5 * k), series=f"1.2.{number}")
            (tmp_path / "scans").mkdir(exist_ok=True)
            (tmp_path / f"scans/{number}-{k}.dcm").write_bytes(raw)

    rows = [
        embed(
            str(made["run"]),
            [str(tmp_path / "scans")],
            out=str(tmp_path / f"{series}.csv"),
            config=EmbedConfig(read=ReadConfig(series=series), **CPU),
            reporter=Silent(),
        ).facts["cases"]
        for series in (None, "1")
    ]

    assert rows == [2, 1]


def test_a_run_that_knows_no_preparation_reads_stores_but_no_files(made, tmp_path):
    encoder = load_encoder(made["run"], **CPU).encoder
    run = random_run(tmp_path / "random", encoder, DataConfig(crop_size=(14, 13, 9)), seed=3)

    embed(run, [str(made["store"])], out=str(tmp_path / "f.csv"), config=config_of(),
          reporter=Silent())  # fmt: skip
    with pytest.raises(UserError, match="does not say how its volumes were prepared"):
        embed(run, [str(made["cohort"])], out=str(tmp_path / "g.csv"), config=config_of(),
              reporter=Silent())  # fmt: skip


def test_a_store_of_other_channels_is_refused(made):
    with pytest.raises(UserError, match="has 1 channel"):
        load_encoder(made["run"], **CPU).for_channels(("t1", "t2"), "`store`")
