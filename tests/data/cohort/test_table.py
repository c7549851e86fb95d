"""Cohorts by a table."""

from __future__ import annotations

from pathlib import Path

import pytest
from cohort_sources import rows

from mim3d.data.cohort import Case, read_cohort
from mim3d.foundation.errors import UserError


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

    assert rows(cohort) == [("a", ["a.nii.gz"], None, "test")]
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
