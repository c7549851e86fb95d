"""Lines that stay, a line that rewrites itself, and silence."""

from __future__ import annotations

import io
import logging
import warnings

import pytest
from rich.console import Console

from mim3d.cli.display import Display, listening

LONG = "wrote /a/very/long/path/" + "x" * 200


def shown(terminal, act, *, every_seconds=1000.0, environment=None, **options):
    stream = io.StringIO()
    console = Console(
        file=stream,
        force_terminal=terminal,
        highlight=False,
        width=60,
        _environ={"TERM": "xterm", **(environment or {})},
    )
    display = Display(console=console, every_seconds=every_seconds, **options)
    act(display)
    display.close()
    return stream.getvalue()


def progress(display):
    for step in range(1, 6):
        display.progress(step, 5, f"step {step}/5  loss 0.412")


def test_lines_are_never_broken_and_never_read_as_markup():
    assert shown(False, lambda display: display.say(LONG)) == f"{LONG}\n"
    assert shown(False, lambda display: display.say("[bold] 1")) == "[bold] 1\n"


def test_a_warning_is_marked_also_without_colour_and_when_quiet():
    assert shown(False, lambda display: display.warn("w"), quiet=True) == "warning: w\n"
    assert shown(False, lambda display: display.say("s"), quiet=True) == ""


def test_without_a_terminal_progress_is_one_plain_line_in_a_while():
    assert shown(False, progress) == ""
    lines = shown(False, progress, every_seconds=0.0).splitlines()
    assert lines == [f"step {step}/5  loss 0.412" for step in range(1, 6)]


def test_on_a_terminal_the_line_rewrites_itself_and_goes_away():
    text = shown(True, progress)

    assert "step 4/5  loss 0.412" in text
    # Erase in line: what is drawn last is nothing.
    assert text.rstrip().endswith("\x1b[2K") or "\x1b[2K" in text.rsplit("step", 1)[-1]


def test_colour_only_on_a_terminal_that_wants_it():
    assert "\x1b[33m" in shown(True, lambda display: display.warn("w"))
    assert "\x1b[33m" not in shown(
        True, lambda display: display.warn("w"), environment={"NO_COLOR": "1"}
    )
    assert "\x1b" not in shown(False, lambda display: display.warn("w"))


@pytest.mark.parametrize("verbose", [False, True])
def test_log_records_become_lines_while_a_verb_runs_and_not_after(verbose):
    logger = logging.getLogger("mim3d.somewhere")
    before = logging.getLogger("mim3d").handlers[:]

    def act(display):
        with listening(display, verbose=verbose):
            logger.info("detail")
            logger.warning("look")

    expected = "detail\nwarning: look\n" if verbose else "warning: look\n"
    assert shown(False, act) == expected
    assert logging.getLogger("mim3d").handlers == before


def test_python_warnings_are_back_in_place_afterwards():
    before = warnings.showwarning

    with listening(Display(silent=True), verbose=False):
        assert warnings.showwarning is not before
    assert warnings.showwarning is before
