"""The page that asks, served to a browser on this machine alone.

It is bound to the loopback address, answers no request without the token that its address holds, and loads nothing from
elsewhere.
"""

from __future__ import annotations

import hmac
import re
import secrets
import sys
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from draft_core.errors import DraftError, first_line
from draft_core.reporting.rendering import template_environment
from draft_core.voting.ballot import Answer, Ballot
from draft_core.voting.pairs import Pair

HERE = "127.0.0.1"
LONGEST = 1_000  # bytes of a form
ANSWERS: dict[str, Answer] = {"left": "left", "right": "right", "tie": "tie"}
NUMBER = re.compile("[0-9]{1,9}")
HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}


class VoteServer(ThreadingHTTPServer):
    """Serves the page of a ballot at `address`, until `shutdown`.

    Arguments:
        ballot: what is asked.
        port: 0 takes a free one.

    Raises:
        DraftError: if the port cannot be had.
    """

    daemon_threads = True

    def __init__(self, ballot: Ballot, *, port: int = 0) -> None:
        self.ballot = ballot
        self.token = secrets.token_urlsafe(16)
        self.template = template_environment("draft_core.voting").get_template("vote.html.j2")
        try:
            super().__init__((HERE, port), _Handler)
        except OSError as error:
            raise DraftError(
                f"the port cannot be had ({first_line(error)})",
                where=f"--port {port}",
                next="leave it out, or give another",
            ) from error

    @property
    def address(self) -> str:
        """Where a browser finds the page."""
        return f"http://{HERE}:{self.server_address[1]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a browser that goes away while it is answered."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def page(self, nonce: str, problem: str = "") -> str:
        """The page as it is now.

        Arguments:
            nonce: that lets a browser take the page's own style and script, and no other.
            problem: why the last answer was not taken.
        """
        ballot = self.ballot
        number = ballot.current
        return self.template.render(
            nonce=nonce,
            problem=problem,
            number=number,
            pair=None if number is None else ballot.pairs[number],
            answered=ballot.answered,
            total=len(ballot.pairs),
            can_undo=ballot.can_undo,
            file=ballot.file.path,
        )


class _Handler(BaseHTTPRequestHandler):
    server: VoteServer

    def do_GET(self) -> None:
        match self._words():
            case [""]:
                self._send_page()
            case ["images", number, ("left" | "right") as side] if (pair := self._pair(number)) is not None:
                try:
                    self._send(HTTPStatus.OK, getattr(pair, side).read_bytes(), "image/png")
                except OSError:
                    self.send_error(HTTPStatus.NOT_FOUND)
            case _:
                self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        words, form = self._words(), self._form()
        if words == ["undo"]:
            self._take(self.server.ballot.undo)
        elif words == ["vote"] and form.get("answer") in ANSWERS and NUMBER.fullmatch(form.get("pair", "")):
            self._take(lambda: self.server.ballot.answer(int(form["pair"]), ANSWERS[form["answer"]]))
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: in a terminal full of requests nobody finds the address."""

    def _words(self) -> list[str]:
        """The parts of the path behind the token; none without it."""
        token, _, rest = urlsplit(self.path).path.removeprefix("/").partition("/")
        return rest.split("/") if hmac.compare_digest(token.encode(), self.server.token.encode()) else []

    def _form(self) -> dict[str, str]:
        length = self.headers.get("Content-Length", "")
        text = self.rfile.read(min(int(length), LONGEST)) if length.isdecimal() else b""
        return {name: values[-1] for name, values in parse_qs(text.decode("utf-8", errors="replace")).items()}

    def _pair(self, number: str) -> Pair | None:
        pairs = self.server.ballot.pairs
        return pairs[int(number)] if NUMBER.fullmatch(number) and int(number) < len(pairs) else None

    def _take(self, answer: Callable[[], None]) -> None:
        """Does what the form asks for and sends the browser to the page, so that loading it again repeats nothing."""
        try:
            answer()
        except OSError as error:
            self._send_page(HTTPStatus.INTERNAL_SERVER_ERROR, first_line(error))
            return
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Location", f"/{self.server.token}/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_page(self, status: HTTPStatus = HTTPStatus.OK, problem: str = "") -> None:
        nonce = secrets.token_urlsafe(16)
        own = f"style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; img-src 'self' data:; form-action 'self'"
        policy = f"default-src 'none'; {own}; base-uri 'none'; frame-ancestors 'none'"
        body = self.server.page(nonce, problem).encode()
        self._send(status, body, "text/html; charset=utf-8", {"Content-Security-Policy": policy})

    def _send(self, status: HTTPStatus, body: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        of_body = {"Content-Type": kind, "Content-Length": str(len(body))}
        for name, value in {**HEADERS, **of_body, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
