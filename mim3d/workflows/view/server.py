"""The server of the page: this machine alone, and only whoever knows the address.

A page of another site must not reach it: the address holds a token that cannot be guessed, and a
request must name the loopback as its host, so that a foreign name that was bound to 127.0.0.1 after
the fact (DNS rebinding) is refused. Nothing can be changed through it: GET and HEAD alone.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from hmac import compare_digest
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from mim3d.foundation.errors import ConfigError, UserError
from mim3d.pages.viewer.assets import POLICY
from mim3d.workflows.view.answers import Answer, Answers

LOOPBACK = "127.0.0.1"
HOST = re.compile(r"(?:127\.0\.0\.1|localhost)(?::\d{1,5})?", re.IGNORECASE)
"""Any port: `ssh -L 9000:127.0.0.1:8000` makes it another one on the other side."""
TOKEN_BYTES = 32
SILENT_SECONDS = 60.0
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
logger = logging.getLogger(__name__)


class Server(ThreadingHTTPServer):
    """The server, bound but not yet serving.

    Args:
        answers: what it answers.
        port: of the loopback address; 0 takes a free one.

    Raises:
        ConfigError: the port is taken or not allowed.
    """

    daemon_threads = True

    def __init__(self, answers: Answers, port: int = 0) -> None:
        self.answers = answers
        self.token = urlsafe_b64encode(os.urandom(TOKEN_BYTES)).rstrip(b"=").decode()
        try:
            super().__init__((LOOPBACK, port), Handler)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "beyond 0 to 65535"
            raise ConfigError(
                f"port {port} cannot be used ({reason})",
                remedy="leave `--view.port` out: any free port is taken",
                code="port-taken",
            ) from None

    @property
    def address(self) -> str:
        """What to open, token included."""
        return f"http://{LOOPBACK}:{self.server_port}/{self.token}/"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = SILENT_SECONDS
    server_version = "mim3d"
    sys_version = ""

    def do_GET(self) -> None:
        """Answers."""
        self._answer()

    def do_HEAD(self) -> None:
        """Answers without the body."""
        self._answer()

    def _refuse_method(self) -> None:
        self.close_connection = True
        self._fail(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are answered")

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _refuse_method

    def _answer(self) -> None:
        if not HOST.fullmatch(self.headers.get("Host", "")):
            self._fail(HTTPStatus.FORBIDDEN, "this host name is not the loopback's")
            return
        try:
            path = urlsplit(self.path).path
        except ValueError:  # `//[`: half an address of IPv6
            self._fail(HTTPStatus.BAD_REQUEST, "this is no address")
            return
        token, slash, question = path.removeprefix("/").partition("/")
        known = compare_digest(token.encode("utf-8", "replace"), self.server.token.encode())
        if not known or not slash:
            self._fail(HTTPStatus.FORBIDDEN, "open the whole address that `mim3d view` printed")
            return
        try:
            answer = self.server.answers.to(question)
        except UserError as error:
            outside = error.code == "outside"
            status = HTTPStatus.FORBIDDEN if outside else HTTPStatus.UNPROCESSABLE_ENTITY
            self._fail(status, str(error), error.remedy)
        except OSError as error:
            self._fail(HTTPStatus.UNPROCESSABLE_ENTITY, error.strerror or "it cannot be read")
        except Exception:
            logger.exception("a bug in mim3d, while the page asked for `%s`", question[:80])
            self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, "this is a bug; the terminal says more")
        else:
            if answer is None:
                self._fail(HTTPStatus.NOT_FOUND, "there is nothing of this name")
            else:
                self._send(HTTPStatus.OK, answer)

    def _fail(self, status: HTTPStatus, what: str, remedy: str | None = None) -> None:
        body = json.dumps({"what": what, "remedy": remedy}).encode()
        self._send(status, Answer(body, "application/json"))

    def _send(self, status: HTTPStatus, answer: Answer) -> None:
        self.send_response(status)
        fixed = {"Content-Type": answer.kind, "Content-Length": str(len(answer.body))}
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            fixed["Allow"] = "GET, HEAD"
        for name, value in {**HEADERS, **fixed, **dict(answer.facts)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing: each line would hold the token."""

    def handle(self) -> None:
        """Serves the connection; a page that was closed meanwhile is no error."""
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            self.close_connection = True


@contextmanager
def serving(server: Server) -> Iterator[str]:
    """Serves in a thread while the block runs; gives the address."""
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        yield server.address
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
