"""`mim3d view`: volumes, label maps, predictions and pictures of runs in a browser."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import webbrowser
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path

from mim3d.config.view import ViewConfig
from mim3d.foundation.reporting import Reporter, Silent
from mim3d.workflows.result import Result
from mim3d.workflows.view.answers import Answers
from mim3d.workflows.view.catalogue import Catalogue
from mim3d.workflows.view.finding import find
from mim3d.workflows.view.roots import Roots
from mim3d.workflows.view.server import Server, serving

DEFAULT = ViewConfig()
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")


def view(
    paths: Sequence[str] | str,
    *,
    config: ViewConfig = DEFAULT,
    reporter: Reporter | None = None,
    dry_run: bool = False,
    until: threading.Event | None = None,
) -> Result:
    """Serves a page with everything that lies under the paths, until Ctrl-C.

    Args:
        paths: files and folders; nothing else is read, wherever links lead.
        config: port, browser, limits.
        reporter: told the address.
        dry_run: says what was found and serves nothing.
        until: ends the serving when it is set; for programs.

    Raises:
        UserError: a path does not exist, nothing can be shown, or the port is taken.
    """
    reporter = reporter or Silent()
    with opened(paths, config) as (server, catalogue):
        found = described(catalogue)
        facts = {"cases": len(catalogue.cases), "layers": len(catalogue.layers),
                 "panels": len(catalogue.panels), "notes": list(catalogue.notes)}  # fmt: skip
        for note in catalogue.notes:
            reporter.warn(note)
        if dry_run:
            return Result(text=f"would show {found}", facts=facts)
        with serving(server) as address:
            reporter.say(f"showing {found}")
            reporter.say(f"open {address} on this machine; Ctrl-C ends it")
            with _in_browser(address, config.view.browser):
                _wait(until or threading.Event())
        sent = server.answers.volumes_sent
    return Result(text=f"showed {found}; {sent} volume(s) were looked at",
                  facts={**facts, "volumes_sent": sent})  # fmt: skip


@contextmanager
def opened(
    paths: Sequence[str] | str, config: ViewConfig = DEFAULT
) -> Iterator[tuple[Server, Catalogue]]:
    """A bound server and what it will show; for notebooks, with `server.serving`."""
    roots = Roots.of((paths,) if isinstance(paths, str) else tuple(map(str, paths)))
    catalogue = find(roots, config.read)
    server = Server(Answers(catalogue, roots, config), config.view.port)
    try:
        yield server, catalogue
    finally:
        server.server_close()


def described(catalogue: Catalogue) -> str:
    """`12 cases (12 images, 12 labels, 4 predictions), 3 pictures`."""
    roles = Counter(layer.role for layer in catalogue.layers)
    layers = ", ".join(f"{count} {role}s" for role, count in roles.items())
    parts = [f"{len(catalogue.cases)} case(s) ({layers})"] if catalogue.cases else []
    scored = sum(bool(case.scores) for case in catalogue.cases.values())
    parts += [f"scores of {scored} case(s)"] if scored else []
    parts += [f"{len(catalogue.panels)} picture(s)"] if catalogue.panels else []
    return ", ".join(parts)


def _wait(until: threading.Event) -> None:
    try:
        while not until.wait(1.0):
            pass
    except KeyboardInterrupt:
        pass


@contextmanager
def _in_browser(address: str, asked: bool | None) -> Iterator[None]:
    """Opens the page where a person sits in front of this machine.

    The browser is given a file that only this person can read and that leads to the page: a command
    line with the address in it could be read by everyone on the machine.
    """
    has_display = sys.platform == "darwin" or any(os.environ.get(name) for name in DISPLAYS)
    if not (has_display if asked is None else asked):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="mim3d-view-") as folder:
        page = Path(folder) / "open.html"
        page.write_text(
            f'<!doctype html><meta http-equiv="refresh" content="0; url={escape(address)}">',
            encoding="utf-8",
        )
        webbrowser.open(page.as_uri())
        yield
