"""Charts of a convergence benchmark: drawn, the same twice, refused when empty."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mim3d.foundation.errors import UserError
from mim3d.pictures import convergence
from mim3d.pictures.convergence import Band, Panel, draw_convergence, draw_label_efficiency

KINDS = ("scratch", "masked", "contrastive", "other")
ARMS = {f"arm_{place}": KINDS[place % 4] for place in range(12)}
STEPS = (0, 10, 31, 100, 316)


def band(place: int, at: tuple[float, ...] = STEPS) -> Band:
    mean = np.linspace(0.05, 0.7 + 0.01 * place, len(at))
    return Band(at, tuple(mean), tuple(mean - 0.02), tuple(mean + 0.02))


def panels(count: int = 4) -> list[Panel]:
    lines = {arm: band(place) for place, arm in enumerate(ARMS)}
    return [Panel(f"labels {place}", lines, 0.6, "target") for place in range(count)]


@pytest.mark.parametrize("count", [1, 3])
def test_curves_of_twelve_arms_are_drawn_the_same_twice(tmp_path: Path, count: int) -> None:
    one, two = (
        draw_convergence(tmp_path / name, panels(count), ARMS, title="Dice")
        for name in ("one.png", "two.png")
    )

    assert one.read_bytes() == two.read_bytes()


def test_labels_of_twelve_arms_are_drawn_the_same_twice(tmp_path: Path) -> None:
    names = {10.0: "0.05\n(10)", 195.0: "1.0\n(195)"}
    lines = {arm: band(place, (10, 195)) for place, arm in enumerate(ARMS)}

    one, two = (
        draw_label_efficiency(tmp_path / name, lines, ARMS, names=names)
        for name in ("one.png", "two.png")
    )

    assert one.read_bytes() == two.read_bytes()


def test_no_two_of_twelve_arms_look_alike() -> None:
    mixed = convergence._looks(ARMS)
    alike = convergence._looks({arm: "masked" for arm in ARMS})

    assert len(set(mixed.values())) == 12
    assert len(set(alike.values())) == 12


def test_the_kind_of_an_arm_is_seen() -> None:
    looks = convergence._looks({"none": "scratch", "mae": "masked", "simclr": "contrastive"})

    assert looks["none"].tone == convergence.INK
    assert [look.dashes for look in looks.values()] == ["-", "-", "--"]


def test_an_arm_keeps_its_look_when_another_is_missing(tmp_path: Path) -> None:
    both = draw_convergence(
        tmp_path / "a.png", [Panel("", {"b": band(0)})], {"a": "masked", "b": "masked"}
    )
    alone = draw_convergence(tmp_path / "b.png", [Panel("", {"b": band(0)})], {"b": "masked"})

    assert both.read_bytes() != alone.read_bytes()


@pytest.mark.parametrize("at", [(0,), (10,), (0, 10), (1, 100_000)])
def test_short_and_long_curves_are_drawn(tmp_path: Path, at: tuple[float, ...]) -> None:
    panel = Panel("", {"a": band(0, at)})

    assert draw_convergence(tmp_path / "c.png", [panel], {"a": "scratch"}).is_file()


def test_one_label_fraction_is_drawn(tmp_path: Path) -> None:
    lines = {"a": Band((10,), (0.5,), (0.4,), (0.6,))}

    path = draw_label_efficiency(tmp_path / "l.png", lines, {"a": "other"}, names={10.0: "10"})

    assert path.is_file()


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one arm"):
        draw_convergence(tmp_path / "c.png", [Panel("", {})], {"a": "masked"})
    with pytest.raises(UserError, match="at least one point"):
        draw_label_efficiency(tmp_path / "l.png", {}, {"a": "masked"}, names={})
