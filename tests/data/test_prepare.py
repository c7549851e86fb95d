"""From files to a store: what is kept of them."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from preparing import RULE, Recorder, config_with, voxel_files, write_nifti

from mim3d.data.cohort import read_cohort
from mim3d.data.files import read_volume
from mim3d.data.intensity import Normalisation
from mim3d.data.phantom import PhantomRule, make_cohort, make_volume
from mim3d.data.prepare import VolumeRule, prepare_store, prepare_volume
from mim3d.data.store import Store
from mim3d.data.volume import Origin, Volume

# What a store holds


def test_a_store_holds_the_files_voxels_labels_lists_and_classes(cohort, tmp_path):
    result = prepare_store(cohort, tmp_path / "store", config_with(crop_to_body=False))

    store = Store(tmp_path / "store")
    assert len(result.prepared) == 5
    assert result.exit_code == 0
    assert store.ids("training") == ("phantom_000", "phantom_001", "phantom_002", "phantom_003")
    assert store.ids("validation") == ("phantom_004",)
    assert store.classes.names == ("background", "organ 1", "organ 2", "tumour")
    assert store.modality == "mr"
    assert store.median_spacing_mm == pytest.approx(RULE.spacing_mm)
    for number, case_id in enumerate(store.cases):
        voxels, labels = make_volume(1, number, RULE)
        with store.open(case_id) as case:
            stored, indices = case.read((0, 0, 0), RULE.shape)
            assert (stored == voxels).all()
            assert (indices is None) == (number == 3)
            assert indices is None or (indices == labels).all()
            image = nib.load(next(cohort.glob(f"images*/{case_id}.nii.gz")))
            assert case.affine == pytest.approx(image.affine)


def test_the_fingerprint_counts_what_is_in_the_store(cohort, tmp_path):
    recorder = Recorder()

    prepare_store(cohort, tmp_path / "store", config_with(), recorder)

    fingerprint = Store(tmp_path / "store").fingerprint
    assert fingerprint["cases"] == 5
    assert fingerprint["labelled"] == 4
    assert fingerprint["thick_axes"] == {"z": 5}
    assert fingerprint["original"]["shape"]["median"] == list(RULE.shape)
    assert fingerprint["channels"][0]["quantisation_error"] == 0
    labels = [make_volume(1, n, RULE)[1] for n in (0, 1, 2, 4)]
    row = fingerprint["classes"][3]
    ml = [(label == 3).sum() * 1.5 * 1.2 * 3 / 1000 for label in labels]
    assert row["name"] == "tumour"
    assert row["ml"]["median"] == pytest.approx(np.median(ml))
    assert any("tumour" in line for line in recorder.lines)
    assert any("4 training (4 subjects), 1 validation" in line for line in recorder.lines)


@pytest.mark.parametrize("margin", [0.0, 5.0])
def test_the_crop_keeps_every_labelled_voxel_and_lies_where_it_did(tmp_path, margin):
    """A label in the corner of the air: the crop grows to hold it."""
    voxels, labels = make_volume(1, 0, RULE)
    voxels = np.pad(voxels, ((0, 0), (9, 10), (11, 9), (8, 10)))
    labels = np.pad(labels, ((9, 10), (11, 9), (8, 10)))
    labels[0, 1, 2] = 2
    affine = np.array([[0, -1.2, 0, 9], [1.5, 0, 0, -4], [0, 0, 3, 2], [0, 0, 0, 1.0]])
    origin = Origin(labels.shape, (0, 1, 2), (False,) * 3, affine, labels.shape)
    volume = Volume(voxels, affine, origin=origin)
    rule = VolumeRule(("mr",), body_margin_mm=margin)

    case = prepare_volume(volume, rule, labels, (0, 1, 2, 3))
    tight = prepare_volume(volume, rule)

    assert np.prod(tight.voxels.shape) < np.prod(case.voxels.shape)
    assert (np.bincount(case.labels.ravel())[1:] == np.bincount(labels.ravel())[1:]).all()
    start = np.linalg.solve(affine, case.affine)[:3, 3].round().astype(int)
    box = tuple(slice(s, s + n) for s, n in zip(start, case.labels.shape, strict=True))
    assert (case.voxels[0] == voxels[(0, *box)]).all()
    assert (case.labels == labels[box]).all()
    # The statistics are those of the whole volume, whatever the crop.
    assert case.normalisation == tight.normalisation
    (note,) = (note for note in case.notes if note.code == "labels-outside-body")
    assert note.text.startswith("1 labelled voxel(s)")


def test_training_and_prediction_see_the_same_numbers_to_the_last_bit(tmp_path):
    """The store's crop against `prepare_volume` of the file, for resampled float voxels."""
    voxels = make_volume(1, 0, RULE)[0][0] * np.float32(0.137)
    write_nifti(tmp_path / "in/a.nii.gz", voxels)
    config = config_with(spacing_mm=(1.1, 1.3, 2.0), interpolation="cubic")
    prepare_store(tmp_path / "in", tmp_path / "store", config)
    store = Store(tmp_path / "store")

    again = prepare_volume(
        read_volume(tmp_path / "in/a.nii.gz"), VolumeRule.from_json(store.preparation)
    )

    with store.open("a") as case:
        assert case.shape == again.voxels.shape
        assert (case.read_normalised((0, 0, 0), case.shape[1:]) == again.normalised).all()
        assert (case.affine == again.affine).all()


def test_every_storage_order_of_a_volume_gives_the_same_case(tmp_path):
    voxels, labels = make_volume(1, 0, RULE)
    affine = np.diag([1.5, 1.2, 3.0, 1.0])
    ras = nib.Nifti1Image(voxels[0], affine), nib.Nifti1Image(labels, affine)
    for order in ("RAS", "LPS", "SRA", "AIL", "PLI"):
        turn = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(order)
        )
        for folder, image in zip(("imagesTr", "labelsTr"), ras, strict=True):
            path = tmp_path / "in" / folder / f"{order}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(image.as_reoriented(turn), path)

    prepare_store(tmp_path / "in", tmp_path / "store", config_with(spacing_mm=(1.1, 1.3, 2.0)))

    store = Store(tmp_path / "store")
    cases = []
    for case_id in store.cases:
        with store.open(case_id) as case:
            whole = case.read((0, 0, 0), case.shape[1:])
            cases.append((*whole, case.affine, case.normalisation))
    assert len(cases) == 5
    for case in cases[1:]:
        assert (case[0] == cases[0][0]).all()
        assert (case[1] == cases[0][1]).all()
        assert case[2] == pytest.approx(cases[0][2], abs=1e-5)  # float32 in headers
        assert case[3] == cases[0][3]


def test_ct_is_recognised_by_its_values_and_takes_the_window(tmp_path):
    make_cohort(tmp_path / "ct", 2, training=3, validation=0, rule=replace(RULE, modality="ct"))
    recorder = Recorder()

    prepare_store(
        tmp_path / "ct/imagesTr", tmp_path / "store", config_with(window_hu=(-175, 250)), recorder
    )

    store = Store(tmp_path / "store")
    assert store.modality == "ct"
    assert "modality by the values of 3 case(s): ct" in recorder.lines
    with store.open(store.cases[0]) as case:
        assert case.normalisation == (Normalisation("window", -175, 250, air=-500),)


def test_the_modality_asked_for_wins_over_the_sources_word_and_says_so(cohort, tmp_path):
    recorder = Recorder()

    prepare_store(cohort, tmp_path / "store", config_with(modality="ct"), recorder)

    assert Store(tmp_path / "store").modality == "ct"
    assert any("the source says mr" in warning for warning in recorder.warnings)


def test_without_a_validation_list_a_fifth_is_held_out_by_subject(tmp_path):
    names = [f"s{n // 2}" for n in range(20)]
    rule = PhantomRule(shape=(12, 11, 9), organs=1, tumour=False, spacing_mm=(4, 4, 6))
    make_cohort(tmp_path / "c", training=20, validation=0, rule=rule, subjects=names)

    prepare_store(tmp_path / "c", tmp_path / "store", config_with())

    store = Store(tmp_path / "store")
    parts = {store.subject(case): store.part(case) for case in store.cases}
    assert len(store.ids("validation")) == 2 * sum(p == "validation" for p in parts.values()) > 0
    assert all(store.part(case) == parts[store.subject(case)] for case in store.cases)
    # The fraction is no content: another one only writes other lists.
    before = voxel_files(tmp_path / "store")
    again = prepare_store(tmp_path / "c", tmp_path / "store", config_with(validation_fraction=0.0))
    assert len(again.kept) == 20
    assert Store(tmp_path / "store").ids("validation") == ()
    assert voxel_files(tmp_path / "store") == before


def test_a_split_file_replaces_the_sources_lists(cohort, tmp_path):
    split = tmp_path / "split.json"
    split.write_text('{"training": "rest", "validation": ["001", "phantom_002"]}')
    recorder = Recorder()

    prepare_store(cohort, tmp_path / "store", config_with(split=str(split)), recorder)

    store = Store(tmp_path / "store")
    assert store.ids("validation") == ("phantom_001", "phantom_002")
    assert store.ids("training") == ("phantom_000", "phantom_004")  # 003 has no labels
    assert any("by the split" in line for line in recorder.lines)


def test_several_contrasts_of_a_table_become_channels(tmp_path):
    voxels, labels = make_volume(1, 0, replace(RULE, channels=2))
    write_nifti(tmp_path / "t1.nii.gz", voxels[0])
    write_nifti(tmp_path / "flair.nii.gz", voxels[1])
    write_nifti(tmp_path / "seg.nii.gz", (labels * 2).astype(np.uint8))
    table = tmp_path / "c.csv"
    table.write_text(
        "case,image_t1,image_flair,label,target_age\nx,t1.nii.gz,flair.nii.gz,seg.nii.gz,7\n"
    )

    prepare_store(table, tmp_path / "store", config_with(crop_to_body=False))

    store = Store(tmp_path / "store")
    assert store.channel_names == ("t1", "flair")
    assert store.classes.values == (0, 2, 4, 6)
    assert store.entry("x").targets == {"age": 7.0}
    with store.open("x") as case:
        stored, indices = case.read((0, 0, 0), RULE.shape)
    assert (stored == voxels).all()
    assert (indices == labels).all()


def test_channels_on_another_grid_are_refused_or_aligned_as_asked(tmp_path):
    voxels, _ = make_volume(1, 0, RULE)
    write_nifti(tmp_path / "a.nii.gz", voxels[0])
    shifted = np.diag([1.5, 1.2, 3, 1])
    shifted[0, 3] = 1.5  # by one voxel
    write_nifti(tmp_path / "b.nii.gz", voxels[0], shifted)
    table = tmp_path / "c.csv"
    table.write_text("image_a,image_b\na.nii.gz,b.nii.gz\n")

    refused = prepare_store(table, tmp_path / "store", config_with())
    assert "align_channels" in refused.refused[0].remedy
    assert refused.exit_code == 3
    prepare_store(table, tmp_path / "store", config_with(align_channels=True, crop_to_body=False))

    with Store(tmp_path / "store").open("a") as case:
        first, second = case.read((0, 0, 0), RULE.shape)[0]
    assert np.abs(second[1:] - voxels[0][:-1].astype(int)).max() <= 1
    assert (first == voxels[0]).all()


def test_classes_found_in_files_are_the_union_over_cases(tmp_path):
    voxels, _ = make_volume(1, 0, RULE)
    for name, values in (("a", (0, 7)), ("b", (0, 3, 200))):
        labels = np.array(values, np.uint8)[np.arange(voxels[0].size) % len(values)]
        write_nifti(tmp_path / f"in/imagesTr/{name}.nii.gz", voxels[0])
        write_nifti(tmp_path / f"in/labelsTr/{name}.nii.gz", labels.reshape(voxels[0].shape))

    prepare_store(tmp_path / "in", tmp_path / "store", config_with())

    store = Store(tmp_path / "store")
    assert store.classes.values == (0, 3, 7, 200)
    with store.open("a") as a, store.open("b") as b:
        assert a.classes_present() == (0, 2)
        assert b.classes_present() == (0, 1, 3)


def test_a_spike_in_float_voxels_costs_the_tissue_no_precision(tmp_path):
    voxels = make_volume(1, 0, RULE)[0][0] * np.float32(0.137)
    voxels[5, 5, 5] = 1e8
    write_nifti(tmp_path / "a.nii.gz", voxels)

    prepare_store(tmp_path / "a.nii.gz", tmp_path / "store", config_with(crop_to_body=False))

    store = Store(tmp_path / "store")
    with store.open("a") as case:
        own = case.read_intensities((0, 0, 0), RULE.shape)[0]
    kept = voxels < 1e6
    assert np.abs(own - voxels)[kept].max() < 1e-3 * voxels[kept].std()
    assert store.fingerprint["notes"]["spikes"] == 1


def test_unusable_voxels_take_no_part_in_the_normalisation_of_any_channel(tmp_path):
    voxels = make_volume(1, 0, replace(RULE, channels=2))[0] + np.float32(1000)
    missing = np.random.default_rng(0).random(voxels.shape[1:]) < 0.3
    holes = np.where(missing, np.float32(np.inf), voxels[1])
    write_nifti(tmp_path / "t1.nii.gz", voxels[0])
    write_nifti(tmp_path / "flair.nii.gz", holes)
    (tmp_path / "c.csv").write_text("case,image_t1,image_flair\nx,t1.nii.gz,flair.nii.gz\n")

    prepare_store(tmp_path / "c.csv", tmp_path / "store", config_with(crop_to_body=False))

    with Store(tmp_path / "store").open("x") as case:
        found = case.normalisation[1]
    rest = voxels[1][~missing]
    low, high = np.percentile(rest, (0.5, 99.5))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.mean == pytest.approx(rest.clip(low, high).mean())
    assert found.deviation == pytest.approx(rest.clip(low, high).std())


# Real data


@pytest.mark.real_data
def test_both_kinds_of_hippocampus_files_give_comparable_volumes(shared, tmp_path):
    """uint8 to 255 and float32 to a million: after normalisation the tissue agrees."""
    cohort = read_cohort(shared / "data" / "hippocampus_msd")
    cohort = replace(cohort, cases=(*cohort.cases[:8], *cohort.cases[-4:]))

    result = prepare_store(cohort, tmp_path / "store", config_with())

    store = Store(tmp_path / "store")
    assert result.exit_code == 0
    assert len(store.ids("validation")) == 4
    medians = []
    for case_id in store.cases:
        with store.open(case_id) as case:
            size = case.shape[1:]
            volume = case.read_normalised((0, 0, 0), size)
            labels = case.read((0, 0, 0), size)[1]
        assert set(np.unique(labels)) == {0, 1, 2}
        medians.append(np.median(volume[0][labels > 0]))
    assert np.ptp(medians) < 1.0


@pytest.mark.real_data
def test_four_contrasts_of_a_glioma_share_one_crop(shared, tmp_path):
    folder = shared / "data/samples/brain_tumour"
    names = ("t1", "t1ce", "t2", "flair")
    cells = ",".join(str(folder / f"case_{name}.nii.gz") for name in names)
    table = tmp_path / "c.csv"
    table.write_text(f"case,{','.join(f'image_{n}' for n in names)},label\n"
                     f"glioma,{cells},{folder / 'case_seg.nii.gz'}\n")  # fmt: skip

    prepare_store(table, tmp_path / "store", config_with())

    store = Store(tmp_path / "store")
    assert store.classes.values == (0, 1, 2, 4)
    assert store.modality == "mr"
    with store.open("glioma") as case:
        # Skull-stripped, 120 x 120 x 77: the crop is the brain and a margin.
        assert np.prod(case.shape[1:]) < 0.5 * 120 * 120 * 77
        digest = hashlib.sha256(case.read((0, 0, 0), case.shape[1:])[1].tobytes()).hexdigest()
        total = sum(len(case.label_voxels(index)) > 0 for index in range(4))
    whole = np.asarray(nib.load(folder / "case_seg.nii.gz").dataobj)
    assert total == 4
    assert digest
    assert store.fingerprint["classes"][3]["ml"]["median"] == pytest.approx(
        (whole == 4).sum() * 8e-3
    )
