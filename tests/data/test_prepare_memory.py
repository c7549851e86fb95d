"""How many cases are prepared at once, by what their headers declare."""

from __future__ import annotations

import numpy as np
import pytest

from mim3d.config.read import ReadConfig
from mim3d.config.verbs import PreparationConfig, PrepareConfig
from mim3d.data.cohort import Case
from mim3d.data.prepare import memory as memory_module
from mim3d.data.prepare import prepare_store
from mim3d.data.prepare.memory import LEAST_SPARE, PROCESS, fitting_processes, need_bytes
from mim3d.foundation.reporting import Silent
from tests.data.files.making import nifti, scan

GIB = 1 << 30


class Recorder(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.parametrize("seed", range(20))
def test_no_cases_that_meet_by_chance_need_more_than_is_free(seed):
    random = np.random.default_rng(seed)
    needs = random.integers(1, 3 * GIB, 12).tolist()
    free = int(random.integers(GIB, 20 * GIB))

    count, spare, told = fitting_processes(needs, 8, free)

    worst = sum(sorted(needs)[-count:]) + count * PROCESS
    assert count == 1 or worst <= free
    one_more = sum(sorted(needs)[-count - 1 :]) + (count + 1) * PROCESS
    assert count == 8 or one_more > free
    assert spare == max(free // count, max(needs) + LEAST_SPARE)
    assert (told is None) == (count == 8)


def test_a_system_that_says_nothing_is_not_guessed_at():
    assert fitting_processes([GIB], 8, None) == (8, None, None)


def test_a_case_that_does_not_fit_is_said_before_it_is_tried():
    count, _, told = fitting_processes([30 * GIB], 4, 8 * GIB)

    assert count == 1
    assert told is not None
    assert "will be refused" in told


def test_the_need_is_of_the_declared_voxels_and_of_the_new_grid(tmp_path):
    path, label = tmp_path / "a.nii", tmp_path / "label.nii"
    path.write_bytes(nifti(scan()))  # 11 x 13 x 7 of 0.8 x 1.2 x 2.5 mm, int16
    label.write_bytes(nifti(scan()))
    case = Case("a", "a", (path,))
    labelled = Case("a", "a", (path,), label)

    # 2 bytes read into 4, and 2 a voxel of masks; 16 for labels; 19 a voxel of the new grid
    assert need_bytes(case, None, ReadConfig()) == 1001 * 6
    assert need_bytes(labelled, None, ReadConfig()) == 1001 * 22
    finer = need_bytes(labelled, (0.4, 0.6, 1.25), ReadConfig())
    assert finer == 1001 * 3 + 22 * 26 * 14 * 19


def test_a_file_that_cannot_be_read_needs_nothing(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"no volume")

    assert need_bytes(Case("a", "a", (tmp_path / "a.nii",)), None, ReadConfig()) == 0


def test_prepare_uses_fewer_processes_where_memory_is_short_and_says_so(tmp_path, monkeypatch):
    for number in range(3):
        path = tmp_path / "in" / f"case_{number}.nii"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(nifti(scan((24, 21, 14), number)))
    monkeypatch.setattr(memory_module, "available_bytes", lambda: PROCESS + (1 << 20))
    recorder = Recorder()

    config = PrepareConfig(prepare=PreparationConfig(workers=3, modality="mr"))
    result = prepare_store(tmp_path / "in", tmp_path / "store", config, recorder)

    assert len(result.prepared) == 3
    assert any("1 process(es) instead of 3" in line for line in recorder.warnings)


def test_what_is_kept_is_not_asked_for_its_need(tmp_path, monkeypatch):
    for number in range(3):
        path = tmp_path / "in" / f"case_{number}.nii"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(nifti(scan((24, 21, 14), number)))
    config = PrepareConfig(prepare=PreparationConfig(workers=1, modality="mr"))
    prepare_store(tmp_path / "in", tmp_path / "store", config)
    path.write_bytes(nifti(scan((24, 21, 14), 9)))
    asked: list[str] = []

    def need(case: Case, *rest: object) -> int:
        asked.append(case.case_id)
        raise ZeroDivisionError

    monkeypatch.setattr(memory_module, "need_bytes", need)
    recorder = Recorder()
    result = prepare_store(tmp_path / "in", tmp_path / "store", config, recorder)

    assert result.prepared == ("case_2",)
    assert asked == ["case_2"]
    assert any("`case_2` needs cannot be told" in line for line in recorder.warnings)


def test_a_bug_in_reading_headers_is_not_taken_for_a_bad_file(tmp_path, monkeypatch):
    def broken(*anything: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("mim3d.data.prepare.memory.read_geometry", broken)

    with pytest.raises(ZeroDivisionError):
        need_bytes(Case("a", "a", (tmp_path / "a.nii",)), None, ReadConfig())
