"""`mim3d prepare` as a workflow: what it returns, and the sheet of a large cohort."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
from archives import write_archive
from preparing import RULE, all_files, config_with

from mim3d.config.verbs import PreparationConfig, PrepareConfig
from mim3d.data.phantom import make_cohort
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.reporting import Silent
from mim3d.workflows import prepare as module
from mim3d.workflows.prepare import prepare


@pytest.mark.parametrize(
    ("most", "shown", "title"),
    [(144, 10, "mine"), (5, 5, "mine: 5 of 10 cases")],
)
def test_the_sheet_of_a_large_cohort_shows_some_of_its_cases(
    tmp_path, monkeypatch, most, shown, title
):
    """Ten rows of an archive: of all its lists, where not all are shown."""
    seen = []
    draw = module.draw_contact_sheet

    def recorded(path, entries, table, *, title):
        seen.append(([entry.case_id for entry in entries], title))
        return draw(path, entries, table, title=title)

    monkeypatch.setattr(module, "draw_contact_sheet", recorded)
    monkeypatch.setattr(module, "MOST_SHOWN", most)
    config = PrepareConfig(prepare=PreparationConfig(workers=0))

    result = prepare(str(write_archive(tmp_path / "mine.npz")), out=str(tmp_path / "store"),
                     config=config, reporter=Silent())  # fmt: skip

    ((names, said),) = seen
    assert len(set(names)) == shown
    assert {name.partition("_")[0] for name in names} == {"train", "val", "test"}
    assert said == title
    assert result.text == "10 cases prepared, 0 kept as they were, 0 refused"
    assert (tmp_path / "store/contact_sheet.png").is_file()


# --overwrite

overwriting = partial(prepare, config=config_with(), reporter=Silent(), overwrite=True)


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return make_cohort(tmp_path / "cohort", 1, training=2, validation=1, rule=RULE)


@pytest.fixture
def store(cohort: Path, tmp_path: Path) -> Path:
    prepare(str(cohort), out=str(tmp_path / "store"), config=config_with(), reporter=Silent())
    return tmp_path / "store"


def test_overwrite_replaces_a_store_of_another_cohort_whole(store, tmp_path):
    subjects = ["other a", "other b"]
    other = make_cohort(tmp_path / "other", 2, training=1, validation=1, rule=RULE,
                        subjects=subjects)  # fmt: skip
    (store / "cases/phantom_000.json").unlink()  # as of one that was killed in between
    (store / "cases/phantom_001.json").write_text("{")

    overwriting(str(other), out=str(store))

    prepare(str(other), out=str(tmp_path / "fresh"), config=config_with(), reporter=Silent())
    assert all_files(store) == all_files(tmp_path / "fresh")


@pytest.mark.parametrize("below", ["cases/a0.nii.gz", "cases/a0.h5", "cases/a0.json", "a0.txt"])
@pytest.mark.parametrize("beside", [True, False])
def test_overwrite_touches_no_folder_with_anything_that_is_not_ours(
    cohort, store, tmp_path, below, beside
):
    """Scans in a folder named `cases` were removed, also where another source was given."""
    folder = store if beside else tmp_path / "study"
    (folder / "cases").mkdir(parents=True, exist_ok=True)
    (folder / below).write_text("{}")
    before = all_files(folder)

    with pytest.raises(ConfigError, match="--overwrite does not remove it") as caught:
        overwriting(str(cohort), out=str(folder))

    assert caught.value.code == "out"
    assert all_files(folder) == before


@pytest.mark.parametrize("out", ["study", "study/scans", "."])
def test_overwrite_removes_no_folder_that_holds_the_source(cohort, tmp_path, monkeypatch, out):
    shutil.move(cohort, tmp_path / "study/scans")
    monkeypatch.chdir(tmp_path)
    (Path(out) / "cases").mkdir()
    before = all_files(tmp_path)

    with pytest.raises(ConfigError, match="--overwrite does not remove it"):
        overwriting("study/scans", out=out)

    assert all_files(tmp_path) == before


def test_a_source_within_a_store_is_not_lost_with_it(store, cohort):
    """Of a name that the store could have given."""
    inside = shutil.copytree(cohort, store / "cases/cohort.h5")
    before = all_files(store)

    with pytest.raises(ConfigError, match="--overwrite does not remove it"):
        overwriting(str(inside), out=str(store))

    assert all_files(store) == before


def test_a_store_is_kept_where_nothing_new_can_be_prepared(store, cohort, tmp_path):
    empty, gone = tmp_path / "empty", tmp_path / "gone.csv"
    empty.mkdir()
    gone.write_text("image\nnowhere.nii.gz\n")
    before = all_files(store)

    for source, config in (
        (tmp_path / "nonexist", config_with()),
        (empty, config_with()),
        (gone, config_with()),
        (cohort, config_with(spacing_mm=(0.0, 1.0, 1.0))),
        (cohort, config_with(split="no such split")),
    ):
        with pytest.raises(UserError):
            overwriting(str(source), out=str(store), config=config)

        assert all_files(store) == before
