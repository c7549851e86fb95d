"""Words for channels, lists of splits, and ids."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mim3d.config.shipped import shipped_folder
from mim3d.data.cohort import Case, Cohort, apply_split, hash_ids
from mim3d.data.cohort.cases import modality_of, stem
from mim3d.foundation.errors import ConfigError, UserError


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
