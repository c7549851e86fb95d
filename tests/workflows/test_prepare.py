"""`mim3d prepare` as a workflow: what it returns, and the sheet of a large cohort."""

from __future__ import annotations

import pytest
from archives import write_archive

from mim3d.config.verbs import PreparationConfig, PrepareConfig
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
