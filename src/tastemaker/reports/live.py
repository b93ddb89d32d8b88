"""A run's report over HTTP while it trains, for this machine alone: loopback, reading only, within limits."""

from __future__ import annotations

import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
PATIENCE = 10.0  # seconds that a client may be silent
AT_ONCE = 16  # requests; more are told to come back
LARGEST = 32 * 2**20  # bytes of a file of samples/
REST = 20  # a page that took a second to make is made again after so many at the earliest
FILES = ("config.yaml", "metrics.jsonl", "evaluations.jsonl", "samples.jsonl", "alarms.jsonl", "best.json")
SAMPLE = re.compile(r"/samples/\d{1,12}/(?:evaluation-)?\d{1,12}\.webp")


class Live(ThreadingHTTPServer):
    """Serves one run. `render` makes the page, of a state that the page asks for again and again."""

    daemon_threads = True
    request_queue_size = AT_ONCE

    def __init__(self, folder: Path, render: Callable[[str], str], port: int = 0) -> None:
        self.folder, self.render = folder.resolve(), render
        self.busy = threading.BoundedSemaphore(AT_ONCE)
        self.making = threading.Lock()
        self.page, self.state, self.rested, self.rest = b"", "", 0.0, float(REST)
        super().__init__((HOST, port), Answer)

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://{HOST}:{self.server_address[1]}/"

    def current(self) -> tuple[str, bytes]:
        """The state of the run and its page; made again where something is new and the last one is old enough."""
        with self.making:
            found = _state(self.folder)
            if found != self.state and time.monotonic() >= self.rested:
                start = time.monotonic()
                self.page = self.render(found).encode("utf-8", "replace")
                self.state, self.rested = found, time.monotonic() + self.rest * (time.monotonic() - start)
            return self.state, self.page

    def process_request(self, request: Any, client_address: Any) -> None:
        """Refuses what is too much at once, before a thread is made for it."""
        if self.busy.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.busy.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no news; anything else is told."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def _state(folder: Path) -> str:
    """Changes when one of the run's files does."""
    found = []
    for name in FILES:
        try:
            stat = (folder / name).stat()
        except OSError:
            continue
        found.append(f"{name}:{stat.st_size}:{stat.st_mtime_ns}")
    return " ".join(found)


class Answer(BaseHTTPRequestHandler):
    """One request: `/`, `/state`, or a picture of samples/."""

    server: Live
    timeout = PATIENCE
    server_version, sys_version = "tastemaker", ""

    def do_GET(self) -> None:
        """The page, the state, a picture; nothing else is there."""
        self.connection.settimeout(PATIENCE)
        if not self._meant_for_us():
            return self._send(HTTPStatus.FORBIDDEN, "text/plain", b"only by the address of this machine itself\n")
        path = self.path.partition("?")[0]
        if path in ("/", "/report.html", "/state"):
            return self._page(path == "/state")
        if SAMPLE.fullmatch(path):
            return self._sample(self.server.folder / path[1:])
        return self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there is only the report here\n")

    do_HEAD = do_GET

    def _page(self, state_alone: bool) -> None:
        try:
            state, page = self.server.current()
        except (ValueError, OSError) as error:  # the folder is gone, or somebody edited config.yaml
            return self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", f"{error}\n".encode())
        if state_alone:
            return self._send(HTTPStatus.OK, "text/plain; charset=utf-8", state.encode())
        return self._send(HTTPStatus.OK, "text/html; charset=utf-8", page)

    def _sample(self, file: Path) -> None:
        whole = file.resolve()
        inside = whole.is_relative_to(self.server.folder / "samples")
        if not inside or not whole.is_file() or whole.stat().st_size > LARGEST:
            return self._send(HTTPStatus.NOT_FOUND, "text/plain", b"no such picture\n")
        return self._send(HTTPStatus.OK, "image/webp", whole.read_bytes())

    def _meant_for_us(self) -> bool:
        """Whether the browser was sent to this machine by its own name; another name may be somebody else's page."""
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        return host in (HOST, "localhost")

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
            ("Connection", "close"),
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the terminal is the training's."""


def bound(folder: Path, render: Callable[[str], str], port: int) -> Live:
    """A server that listens. Errors: ValueError where the port is taken."""
    try:
        return Live(folder, render, port)
    except (OSError, OverflowError, socket.gaierror) as error:
        raise ValueError(
            f"--port {port} cannot be used: {error}. Name another, or none for any that is free."
        ) from error
