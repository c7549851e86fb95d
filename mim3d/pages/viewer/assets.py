"""The files that the viewer's page is made of."""

from __future__ import annotations

from importlib.resources import files

NIIVUE = "niivue-0.69.0.js"
"""NiiVue as its npm package holds it (`dist/niivue.umd.js`); licence in `niivue-LICENSE.txt`."""
KINDS = {
    "index.html": "text/html; charset=utf-8",
    "viewer.css": "text/css; charset=utf-8",
    "viewer.js": "text/javascript; charset=utf-8",
    "drawing.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    NIIVUE: "text/javascript; charset=utf-8",
    "niivue-LICENSE.txt": "text/plain; charset=utf-8",
}
"""Content type of each file; others are not served."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self' data:",  # data: NiiVue's own letters
        "img-src 'self' data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""What the page may load: only what this server gives, and no inline script or style."""


def asset(name: str) -> tuple[bytes, str]:
    """A file of the page and its content type.

    Args:
        name: one of `KINDS`.

    Raises:
        KeyError: the page has no such file.
    """
    kind = KINDS[name]
    return files("mim3d.pages.viewer").joinpath(name).read_bytes(), kind
