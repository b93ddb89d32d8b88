"""HTTP for this machine alone: what every server of a page shares. Loopback, silent, within limits."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

HOST = "127.0.0.1"
PATIENCE = 10.0  # seconds that a client may be silent
AT_ONCE = 16  # requests; more are told to come back
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",  # no page of another address shows our pictures
    "Connection": "close",
}
TEXT = "text/plain; charset=utf-8"


class Loopback(ThreadingHTTPServer):
    """Listens to this machine's own address; what its requests are is said by an `Answer`."""

    daemon_threads = True
    request_queue_size = AT_ONCE

    def __init__(self, answer: type[Answer], port: int = 0) -> None:
        self.busy = threading.BoundedSemaphore(AT_ONCE)
        super().__init__((HOST, port), answer)

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://{HOST}:{self.server_address[1]}/"

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


class Answer(BaseHTTPRequestHandler):
    """One request that reads. A server says in `get` what there is."""

    timeout = PATIENCE
    server_version, sys_version = "tastemaker", ""

    def do_GET(self) -> None:
        """What there is, for browsers that were sent here by our own name."""
        if self.meant_for_us():
            self.get(self.path.partition("?")[0])

    do_HEAD = do_GET

    def get(self, path: str) -> None:
        """Answers a path without its query."""
        raise NotImplementedError

    def meant_for_us(self) -> bool:
        """Whether the browser was sent to this machine by its own name; if not, that is answered.

        Another name may be somebody else's page, which points its own name here.
        """
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host in (HOST, "localhost"):
            return True
        self.refuse(HTTPStatus.FORBIDDEN, "only by the address of this machine itself")
        return False

    def refuse(self, status: HTTPStatus, sentence: str) -> None:
        """Says in a line of text why not."""
        self.send(status, TEXT, f"{sentence}\n".encode("utf-8", "replace"))

    def send(self, status: HTTPStatus, kind: str, body: bytes, more: Mapping[str, str] | None = None) -> None:
        """A whole answer; `more` headers beside those of every one."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in {**HEADERS, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the terminal is somebody else's."""


Server = TypeVar("Server", bound=Loopback)


def bound(make: Callable[[int], Server], port: int) -> Server:
    """A server that listens. Errors: ValueError where the port is taken."""
    try:
        return make(port)
    except (OSError, OverflowError, socket.gaierror) as error:
        raise ValueError(
            f"--port {port} cannot be used: {error}. Name another, or none for any that is free."
        ) from error


def port_of(text: str) -> int:
    """A port as it was typed. Errors: ValueError where it is none."""
    if not (text.isdecimal() and int(text) < 2**16):
        raise ValueError(f"--port is {text!r}; it is a whole number below 65536.")
    return int(text)
