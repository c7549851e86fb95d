"""`mim3d doctor`: says what is true of a machine, and names what a run lacks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mim3d.foundation.errors import ExitCode, UserError
from mim3d.foundation.reporting import Silent
from mim3d.workflows.doctor import doctor

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN / "run_2", tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def found(path: Path, name: str) -> tuple[str, str, ExitCode]:
    result = doctor(str(path), reporter=Silent())
    state, text = result.facts[name]
    assert f"{state:<5}{name}" in result.text
    return state, text, result.exit_code


def test_a_sound_run_is_said_to_be_so_part_by_part(run: Path) -> None:
    result = doctor(str(run), reporter=Silent())

    assert result.exit_code == ExitCode.DONE
    assert {name: state for name, (state, _) in result.facts.items()} == {
        "last": "ok", "best": "ok", "preparation.json": "ok", "config.yaml": "ok",
    }  # fmt: skip


def test_a_link_that_is_gone_is_named(run: Path) -> None:
    (run / "checkpoints" / "last").unlink()

    state, text, code = found(run, "last")

    assert (state, code) == ("fail", ExitCode.INPUT)
    assert "restore the link" in text


def test_a_run_without_checkpoints_has_just_begun_or_lost_them(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    assert found(run, "last") == (
        "warn", "is missing: the run has no checkpoint yet", ExitCode.DONE,
    )  # fmt: skip

    (run / "results.json").write_text("{}")
    assert found(run, "last")[0] == "fail"


@pytest.mark.parametrize("text", ["encoder: [", "encoder:\n  widht: 8\n", "encoder: 3\n"])
def test_a_config_that_cannot_be_read_is_named(text: str, run: Path) -> None:
    (run / "config.yaml").write_text(text)

    assert found(run, "config.yaml")[0] == "fail"


@pytest.mark.parametrize(
    ("content", "state"),
    [
        ('{"encoder_digest": "' + "ab" * 32 + '"}', "ok"),
        ('{"encoder_digest": "ab"}', "fail"),
        ('{"encoder_digest": 3}', "fail"),
        ('{"init": ', "fail"),
        ("[]", "fail"),
    ],
)
def test_what_a_run_keeps_of_the_one_it_began_with_is_looked_at(
    content: str, state: str, run: Path
) -> None:
    (run / "init.json").write_text(content)

    assert found(run, "init.json")[0] == state


def test_a_record_of_the_encoder_that_is_gone_is_missed(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(f"init: ../other\n{text}")

    assert found(run, "init.json")[0] == "warn"


def test_a_flipped_bit_of_the_preparation_does_not_hide_the_rest(run: Path) -> None:
    record = json.loads((run / "preparation.json").read_text())
    (run / "preparation.json").write_text(json.dumps(record))

    assert found(run, "preparation.json")[0] == "fail"
    assert found(run, "last")[0] == "ok"


def test_a_folder_of_something_else_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a store, a run nor a hub folder"):
        doctor(str(tmp_path), reporter=Silent())


def test_what_was_not_checked_is_no_ok() -> None:
    state, text = doctor(reporter=Silent()).facts["network"]

    assert state == "note"
    assert "opens no connection" in text
