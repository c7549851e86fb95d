from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mim3d.config.shipped import shipped_folder
from mim3d.data.cohort import Case, Cohort, apply_split, hash_ids, read_cohort
from mim3d.data.cohort.cases import modality_of, stem
from mim3d.foundation.errors import ConfigError, UserError


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def _dicom(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(128) + b"DICM")


def _described(folder: Path, **content) -> Path:
    path = folder / "dataset.json"
    path.write_text(json.dumps(content))
    return path


def _rows(cohort: Cohort) -> list[tuple]:
    return [
        (c.case_id, [p.name for p in c.images], c.label and c.label.name, c.part)
        for c in cohort.cases
    ]


# MSD


def test_an_msd_dataset_keeps_its_lists_subjects_and_labels(tmp_path):
    path = _described(
        tmp_path,
        name="Hippocampus",
        modality={"0": "MRI"},
        labels={"0": "background", "2": "Posterior", "1": "Anterior"},
        training=[
            {"image": "./imagesTr/h_1.nii.gz", "label": "./labelsTr/h_1.nii.gz", "subject": "1"},
            {"image": "imagesTr/h_2.nii.gz"},
        ],
        validation=[{"image": "imagesTr/h_3.nii.gz", "label": "labelsTr/h_3.nii.gz"}],
        test=["./imagesTs/h_9.nii.gz"],
    )

    for source in (tmp_path, path):
        cohort = read_cohort(source)

        assert _rows(cohort) == [
            ("h_1", ["h_1.nii.gz"], "h_1.nii.gz", "training"),
            ("h_2", ["h_2.nii.gz"], None, "training"),
            ("h_3", ["h_3.nii.gz"], "h_3.nii.gz", "validation"),
            ("h_9", ["h_9.nii.gz"], None, "test"),
        ]
        assert [c.subject_id for c in cohort.cases] == ["1", "h_2", "h_3", "h_9"]
        assert cohort.classes.names == ("background", "Anterior", "Posterior")
        assert cohort.has_validation
        assert cohort.modality == "mr"
        assert cohort.name == "Hippocampus"


def test_an_image_list_becomes_channels(tmp_path):
    _described(
        tmp_path,
        modality={"1": "T1w", "0": "FLAIR"},
        training=[{"image": ["a_0000.nii.gz", "a_0001.nii.gz"], "label": "a.nii.gz", "fold": 3}],
    )

    cohort = read_cohort(tmp_path)

    assert _rows(cohort) == [("a", ["a_0000.nii.gz", "a_0001.nii.gz"], "a.nii.gz", "training")]
    assert cohort.channel_names == ("FLAIR", "T1w")
    assert not cohort.has_validation


def test_names_of_nnunet_1_find_their_channel_files(tmp_path):
    _touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz")
    _described(tmp_path, training=[{"image": "./imagesTr/a.nii.gz"}])

    assert _rows(read_cohort(tmp_path)) == [
        ("a", ["a_0000.nii.gz", "a_0001.nii.gz"], None, "training")
    ]


@pytest.mark.parametrize("image", ["../secret.nii.gz", "/etc/passwd", "link.nii.gz"])
def test_a_list_that_leads_out_of_the_source_is_refused(tmp_path, image):
    source = tmp_path / "source"
    source.mkdir()
    _touch(tmp_path, "secret.nii.gz")
    (source / "link.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    _described(source, training=[{"image": image}])

    with pytest.raises(UserError, match="leads out of the source"):
        read_cohort(source)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"training": [1]}', '{"training": [{"label": "a"}]}', "[" * 100_000, "{}"],
)
def test_a_damaged_dataset_json_is_one_sentence(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)

    with pytest.raises(UserError, match=r"`dataset\.json` is not an MSD or nnU-Net"):
        read_cohort(tmp_path)


def test_a_subject_that_trains_and_judges_is_told(tmp_path):
    _described(
        tmp_path,
        training=[{"image": "a.nii", "subject": "s"}],
        validation=[{"image": "b.nii", "subject": "s"}],
    )

    assert "`s`" in read_cohort(tmp_path).remarks[0]


def test_ids_that_occur_twice_are_refused(tmp_path):
    _described(tmp_path, training=[{"image": "x/a.nii.gz"}, {"image": "y/a.nii.gz"}])

    with pytest.raises(UserError, match="first `a`") as caught:
        read_cohort(tmp_path)
    assert caught.value.code == "duplicate-case"


# nnU-Net


def test_an_nnunet_raw_folder_joins_channels_by_suffix(tmp_path):
    _touch(tmp_path, *(f"imagesTr/p_{n}_{c:04d}.nii.gz" for n in (1, 2) for c in (0, 1)))
    _touch(tmp_path, "labelsTr/p_1.nii.gz", "labelsTr/p_2.nii.gz", "imagesTs/q_0000.nii.gz")
    _described(
        tmp_path,
        channel_names={"0": "CT", "1": "PET"},
        labels={"background": 0, "liver": 1, "ignore": 2},
        file_ending=".nii.gz",
        numTraining=2,
    )

    cohort = read_cohort(tmp_path)

    assert _rows(cohort) == [
        ("p_1", ["p_1_0000.nii.gz", "p_1_0001.nii.gz"], "p_1.nii.gz", "training"),
        ("p_2", ["p_2_0000.nii.gz", "p_2_0001.nii.gz"], "p_2.nii.gz", "training"),
        # The second channel is missing; it keeps its place and is found missing when read.
        ("q", ["q_0000.nii.gz", "q_0001.nii.gz"], None, "test"),
    ]
    assert cohort.modalities == ("ct", "other")
    assert cohort.modality is None
    assert cohort.classes.values == (0, 1)
    assert cohort.classes.ignore_value == 2


def test_regions_of_nnunet_name_the_values_that_are_written_for_them(tmp_path):
    _touch(tmp_path, "imagesTr/a_0000.nii.gz")
    _described(
        tmp_path,
        labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]},
        regions_class_order=[1, 2, 3],
    )

    classes = read_cohort(tmp_path).classes

    assert dict(zip(classes.values, classes.names, strict=True)) == {
        0: "background", 1: "whole", 2: "core", 3: "enhancing"
    }  # fmt: skip


def test_regions_without_an_order_are_refused(tmp_path):
    _touch(tmp_path, "imagesTr/a_0000.nii.gz")
    _described(tmp_path, labels={"background": 0, "whole": [1, 2]})

    with pytest.raises(UserError, match="regions_class_order"):
        read_cohort(tmp_path)


def test_the_environment_of_nnunet_finds_a_data_set_and_says_so(tmp_path, monkeypatch):
    _touch(tmp_path, "Dataset004_X/imagesTr/a_0000.nii.gz")
    _described(tmp_path / "Dataset004_X", labels={"background": 0})
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))

    cohort = read_cohort("Dataset004_X")

    assert len(cohort.cases) == 1
    assert "nnUNet_raw" in cohort.remarks[0]


# Folders


def test_a_folder_of_images_is_a_cohort_without_labels(tmp_path):
    _touch(tmp_path, "b.nii.gz", "a.mha", "deep/c.nrrd", "d.hdr", "d.img", ".hidden.nii", "x.txt")

    assert _rows(read_cohort(tmp_path)) == [
        ("a", ["a.mha"], None, "training"),
        ("b", ["b.nii.gz"], None, "training"),
        ("d", ["d.hdr"], None, "training"),
        ("c", ["c.nrrd"], None, "training"),
    ]


def test_folders_of_images_and_labels_are_paired(tmp_path):
    """BTCV as it is downloaded (img, label), and LiTS's volume and segmentation."""
    _touch(tmp_path, "imagesTr/img0001.nii.gz", "imagesTr/img0002.nii.gz")
    _touch(tmp_path, "imagesTs/img0061.nii.gz")
    _touch(tmp_path, "labelsTr/label0001.nii.gz", "labelsTr/label0002.nii.gz")

    cohort = read_cohort(tmp_path)

    assert _rows(cohort) == [
        ("img0001", ["img0001.nii.gz"], "label0001.nii.gz", "training"),
        ("img0002", ["img0002.nii.gz"], "label0002.nii.gz", "training"),
        ("img0061", ["img0061.nii.gz"], None, "test"),
    ]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("case1.nii.gz", "case1_seg.nii.gz"),
        ("case1.nii.gz", "case1-label.nrrd"),
        ("case1_img.nii.gz", "case1_mask.nii.gz"),
        ("volume-1.nii", "segmentation-1.nii"),
        ("breast1_image.nrrd", "breast1_label.nrrd"),
    ],
)
def test_a_label_map_beside_its_image_is_told_by_its_name(tmp_path, image, label):
    _touch(tmp_path, image, label, "other.nii.gz")

    rows = {tuple(images): label for _, images, label, _ in _rows(read_cohort(tmp_path))}

    assert rows == {(image,): label, ("other.nii.gz",): None}


def test_a_label_map_without_image_is_refused(tmp_path):
    _touch(tmp_path, "case_t1.nii.gz", "case_t2.nii.gz", "case_seg.nii.gz")

    with pytest.raises(UserError, match=r"`case_seg\.nii\.gz`") as caught:
        read_cohort(tmp_path)
    assert "CSV" in caught.value.remedy


def test_words_within_names_are_no_label_words(tmp_path):
    _touch(tmp_path, "segal_01.nii.gz", "masked.nii.gz", "Labelle.nii.gz", "03_unmask.nii.gz")

    assert all(case.label is None for case in read_cohort(tmp_path).cases)


def test_bids_subjects_are_taken_from_the_names_a_pattern_finds(tmp_path):
    _touch(
        tmp_path,
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
        "sub-02/anat/sub-02_T1w.nii.gz",
        "sub-02/anat/sub-02_T2w.nii.gz",
    )

    cohort = read_cohort(tmp_path, "sub-*/**/*_T1w.nii.gz")

    assert [(c.case_id, c.subject_id) for c in cohort.cases] == [
        ("sub-01_ses-1_T1w", "sub-01"),
        ("sub-01_ses-2_T1w", "sub-01"),
        ("sub-02_T1w", "sub-02"),
    ]
    with pytest.raises(UserError, match="no file matches"):
        read_cohort(tmp_path, "*.nope")
    with pytest.raises(UserError, match="is not a pattern"):
        read_cohort(tmp_path, "/abs/*")


def test_files_of_one_name_get_a_hash_and_no_name_of_their_folders(tmp_path):
    _touch(tmp_path, "PLANTED^NAME/ct.nii.gz", "OTHER^NAME/ct.nii.gz", "x/mr.nii.gz")

    cohort = read_cohort(tmp_path)

    ids = [case.case_id for case in cohort.cases]
    assert len(set(ids)) == 3
    assert sorted(i.split("-")[0] for i in ids) == ["ct", "ct", "mr"]
    assert "NAME" not in repr([(c.case_id, c.subject_id) for c in cohort.cases])
    assert "a hash of their folder" in cohort.remarks[0]


def test_dicom_folders_are_cases(tmp_path):
    _dicom(tmp_path / "scan", "1", "2", "3")
    _dicom(tmp_path / "tree/s1/a", "IM0", "IM1")
    _dicom(tmp_path / "tree/s2/b", "IM0")

    one = read_cohort(tmp_path / "scan")
    tree = read_cohort(tmp_path / "tree")

    assert _rows(one) == [("scan", ["scan"], None, "training")]
    assert _rows(tree) == [("a", ["a"], None, "training"), ("b", ["b"], None, "training")]
    assert tree.kind == "a tree of DICOM series"


def test_a_single_file_is_a_cohort(tmp_path):
    _touch(tmp_path, "scan.nii.gz")

    assert _rows(read_cohort(tmp_path / "scan.nii.gz")) == [
        ("scan", ["scan.nii.gz"], None, "training")
    ]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_links_out_of_a_folder_are_refused_and_within_it_followed(tmp_path, kind):
    source, outside = tmp_path / "source", tmp_path / "outside"
    _touch(source, "store/a.nii.gz")
    _touch(outside, "secret.nii.gz")
    (source / "b.nii.gz").symlink_to("store/a.nii.gz")
    assert {c.case_id for c in read_cohort(source).cases} == {"a", "b"}

    target = outside / "secret.nii.gz" if kind == "file" else outside
    (source / "link.nii.gz").symlink_to(target)

    with pytest.raises(UserError, match="leads out of the source"):
        read_cohort(source)


def test_nothing_there_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_cohort(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no volume lies in this folder"):
        read_cohort(tmp_path)
    (tmp_path / "imagesTr").mkdir()
    with pytest.raises(UserError, match="holds no case"):
        read_cohort(tmp_path)


# Tables


def _table(folder: Path, text: str, name: str = "cohort.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_names_contrasts_lists_subjects_and_targets(tmp_path):
    path = _table(
        tmp_path,
        "\ufeffcase,image_t1,image_flair,label,subject,list,target_age,site\n"
        'a,x/1.nii.gz,"x/1 f.nii.gz",l.nii.gz,s1,train,61.5,A\n'
        "b,/data/2.nii.gz,2f.nii.gz,,s2,Val,,B\n",
    )

    cohort = read_cohort(path)

    first, second = cohort.cases
    assert first == Case(
        "a", "s1", (tmp_path / "x/1.nii.gz", tmp_path / "x/1 f.nii.gz"), tmp_path / "l.nii.gz",
        "training", {"age": 61.5},
    )  # fmt: skip
    assert second.images[0] == Path("/data/2.nii.gz")
    assert second.label is None
    assert second.part == "validation"
    assert second.targets == {}
    assert cohort.channel_names == ("t1", "flair")
    assert cohort.modality == "mr"
    assert cohort.remarks == ("columns not used: `site`",)


def test_a_table_of_images_alone_takes_their_stems(tmp_path):
    cohort = read_cohort(_table(tmp_path, "image\tlist\na.nii.gz\ttest\n", "c.tsv"))

    assert _rows(cohort) == [("a", ["a.nii.gz"], None, "test")]
    assert cohort.channel_names is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("case,label\na,b\n", "needs the column `image`"),
        ("image,image_t1\na,b\n", "both"),
        ("image,label\na\n", "line 2 has another number of cells"),
        ("image,label\na,b,c\n", "line 2 has another number of cells"),
        ("image,list\na,tset\n", "line 2 has the list `tset`"),
        ("image,target_age\na,old\n", "line 2 has `old` as `target_age`"),
        ("image,target_age\na,nan\n", "no number"),
        ("image,image\na,b\n", "no column twice"),
        ("case,image\nx,\n", "line 2 has no `image`"),
        ('image\n"a\n', "no table"),
        ("image\n", "holds no case"),
    ],
)
def test_a_table_that_cannot_be_understood_names_line_and_reason(tmp_path, text, reason):
    with pytest.raises(UserError, match=reason):
        read_cohort(_table(tmp_path, text))


# Words and lists


@pytest.mark.parametrize(
    ("word", "modality"),
    [
        ("CT", "ct"), ("ct", "ct"), ("MRI", "mr"), ("MR", "mr"), ("T1w", "mr"), ("t1ce", "mr"),
        ("T1Gd", "mr"), ("FLAIR", "mr"), ("ADC", "mr"), ("PET", "other"), ("noNorm", None),
        ("CTA", "ct"), ("contrast", None), ("T2", "mr"),
    ],
)  # fmt: skip
def test_words_for_channels_are_modalities(word, modality):
    assert modality_of(word) == modality


def test_stems_lose_the_endings_of_volumes_and_nothing_else():
    names = ["a.nii.gz", "b.v2.nii", "c.mha", "d.dcm", "e", ".nii.gz", "F.NII.GZ"]

    assert [stem(Path(name)) for name in names] == [
        "a", "b.v2", "c", "d.dcm", "e", ".nii.gz", "F"
    ]  # fmt: skip


def _cohort(ids: list[str], labelled: bool = True) -> Cohort:
    label = Path("l.nii.gz") if labelled else None
    return Cohort("c", tuple(Case(i, i, (Path(f"{i}.nii.gz"),), label) for i in ids), "test")


def test_a_shipped_split_fits_names_that_end_in_its_numbers():
    ids = [f"img{n:04d}" for n in (*range(1, 11), *range(21, 41), *range(61, 81))]

    cohort = apply_split(_cohort(ids), "btcv_24_6")

    parts = {part: [c.case_id for c in cohort.cases if c.part == part]
             for part in ("training", "validation")}  # fmt: skip
    assert parts["validation"] == [f"img{n:04d}" for n in range(35, 41)]
    assert len(parts["training"]) == 24
    assert len(cohort.cases) == 30
    assert cohort.has_validation
    assert any("20 case(s) are in no list" in remark for remark in cohort.remarks)


# First 12 digits of the SHA-256 of the sorted ids joined by line ends, as published.
@pytest.mark.parametrize(
    ("name", "count", "digest"),
    [("msd_brats_fold0", 97, "826ff3ef7767"), ("brats21_fold0", 251, "1c65c3316ecb")],
)
def test_shipped_lists_are_the_published_ones(name, count, digest):
    split = json.loads((shipped_folder() / "splits" / f"{name}.json").read_text())

    ids = sorted(split["validation"])

    assert len(ids) == count
    assert hashlib.sha256("\n".join(ids).encode()).hexdigest()[:12] == digest
    assert split["training"] == "rest"


def test_the_btcv_lists_have_their_published_sizes_and_overlap_crosswise():
    lists = {}
    for name in ("btcv_24_6", "btcv_18_12"):
        split = json.loads((shipped_folder() / "splits" / f"{name}.json").read_text())
        lists[name] = (set(split["training"]), set(split["validation"]))
        assert len(set.union(*lists[name])) == 30

    assert [len(part) for part in lists["btcv_24_6"]] == [24, 6]
    assert [len(part) for part in lists["btcv_18_12"]] == [18, 12]
    assert lists["btcv_24_6"][1] & lists["btcv_18_12"][1] == {"0035", "0036", "0038"}
    assert len(lists["btcv_24_6"][0] & lists["btcv_18_12"][1]) == 9


def test_the_rest_of_a_split_is_what_has_labels():
    ids = [f"BRATS_{n:03d}" for n in range(1, 485)]
    cohort = apply_split(_cohort(ids), "msd_brats_fold0")

    counts = {p: sum(c.part == p for c in cohort.cases) for p in ("training", "validation")}
    assert counts == {"training": 387, "validation": 97}
    with pytest.raises(UserError, match="not in the cohort"):
        apply_split(_cohort(ids[:100]), "msd_brats_fold0")


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"training": 3}', '{"training": "rest", "validation": "rest"}',
             '{"training": ["a"], "validation": ["a"]}', '{"validation": [1]}'],
)  # fmt: skip
def test_what_is_no_split_is_refused(tmp_path, text):
    path = tmp_path / "split.json"
    path.write_text(text)

    with pytest.raises(ConfigError, match="split"):
        apply_split(_cohort(["a"]), path)
    with pytest.raises(ConfigError) as caught:
        apply_split(_cohort(["a"]), "btcv")
    assert "btcv_24_6" in caught.value.remedy


def test_hashed_ids_tell_nothing_and_keep_subjects_together():
    cases = (Case("Smith_1", "Smith", (Path("a"),)), Case("Smith_2", "Smith", (Path("b"),)))

    hashed = hash_ids(Cohort("c", cases, "test"))

    assert "Smith" not in repr([(c.case_id, c.subject_id) for c in hashed.cases])
    assert len({c.case_id for c in hashed.cases}) == 2
    assert len({c.subject_id for c in hashed.cases}) == 1
