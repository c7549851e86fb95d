"""What a fine-tuning writes down of its judged cases."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mim3d.config.verbs import FinetuneConfig
from mim3d.foundation.randomness import RandomStream
from mim3d.objectives.base import Moment
from mim3d.workflows.tasks import segmentation
from mim3d.workflows.tasks.curve import Curve, read_curve
from mim3d.workflows.tasks.segmentation import Scores


class Folder:
    """As much of a run as a curve needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write_json(self, name: str, content: Any) -> None:
        (self.folder / name).write_text(json.dumps(content))


def curve_in(folder: Path) -> Curve:
    return Curve(Folder(folder), {"a": "one", "b": "two"})  # type: ignore[arg-type]


def test_a_curve_holds_the_zeroed_dice_of_each_case(tmp_path: Path) -> None:
    curve = curve_in(tmp_path)

    curve.note(10, {"a": 0.1, "b": 0.2})
    curve.note(20, {"a": 0.5, "b": 0.6}, {"a": 0.3, "b": 0.4})

    assert read_curve(tmp_path) == {
        "subjects": {"a": "one", "b": "two"},
        "dice": {"10": {"a": 0.1, "b": 0.2}, "20": {"a": 0.5, "b": 0.6}},
        "zeroed": {"a": 0.3, "b": 0.4},
    }


def test_work_that_is_done_again_has_no_audit_yet(tmp_path: Path) -> None:
    curve = curve_in(tmp_path)
    curve.note(20, {"a": 0.5, "b": 0.6}, {"a": 0.3, "b": 0.4})

    curve.note(10, {"a": 0.1, "b": 0.2})

    assert "zeroed" not in read_curve(tmp_path)
    assert list(read_curve(tmp_path)["dice"]) == ["10"]


def test_the_audit_looks_at_the_same_cases_with_the_encoder_zeroed_at_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = SimpleNamespace(blind=False)

    @contextlib.contextmanager
    def blind(network: object) -> Iterator[None]:
        state.blind = True
        yield
        state.blind = False

    def look(task: object, cases: Sequence[str]) -> Scores:
        return (
            Scores(0.2, {"a": 0.1, "b": 0.3}) if state.blind else Scores(0.7, {"a": 0.6, "b": 0.8})
        )

    monkeypatch.setattr(segmentation, "blind", blind)
    monkeypatch.setattr(segmentation, "network_in", lambda task: None)
    curve = curve_in(tmp_path)
    (validator,) = segmentation._validators(
        FinetuneConfig(),
        look,
        ["a", "b"],
        [],
        curve,  # type: ignore[arg-type]
    )

    early = validator.function(None, Moment(5, 10, RandomStream(0, 5)))  # type: ignore[arg-type]
    before = read_curve(tmp_path)
    last = validator.function(None, Moment(10, 10, RandomStream(0, 10)))  # type: ignore[arg-type]

    assert early == {"dice": 0.7}
    assert "zeroed" not in before
    assert last == {"dice": 0.7, "dice_encoder_zeroed": 0.2}
    assert read_curve(tmp_path)["zeroed"] == {"a": 0.1, "b": 0.3}
    assert read_curve(tmp_path)["dice"] == {"5": {"a": 0.6, "b": 0.8}, "10": {"a": 0.6, "b": 0.8}}
