"""A run's report over HTTP while it trains, for this machine alone: loopback, reading only, within limits."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

from tastemaker.reports import loopback
from tastemaker.reports.loopback import TEXT, Loopback

LARGEST = 32 * 2**20  # bytes of a file of samples/
REST = 20  # a page that took a second to make is made again after so many at the earliest
FILES = ("config.yaml", "metrics.jsonl", "evaluations.jsonl", "samples.jsonl", "alarms.jsonl", "best.json")
SAMPLE = re.compile(r"/samples/\d{1,12}/(?:evaluation-)?\d{1,12}\.webp")


class Live(Loopback):
    """Serves one run. `render` makes the page, of a state that the page asks for again and again."""

    def __init__(self, folder: Path, render: Callable[[str], str], port: int = 0) -> None:
        self.folder, self.render = folder.resolve(), render
        self.making = threading.Lock()
        self.page, self.state, self.rested, self.rest = b"", "", 0.0, float(REST)
        super().__init__(Answer, port)

    def current(self) -> tuple[str, bytes]:
        """The state of the run and its page; made again where something is new and the last one is old enough."""
        with self.making:
            found = _state(self.folder)
            if found != self.state and time.monotonic() >= self.rested:
                start = time.monotonic()
                self.page = self.render(found).encode("utf-8", "replace")
                self.state, self.rested = found, time.monotonic() + self.rest * (time.monotonic() - start)
            return self.state, self.page


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


class Answer(loopback.Answer):
    """One request: `/`, `/state`, or a picture of samples/."""

    server: Live

    def get(self, path: str) -> None:
        """The page, the state, a picture; nothing else is there."""
        if path in ("/", "/report.html", "/state"):
            return self._page(path == "/state")
        if SAMPLE.fullmatch(path):
            return self._sample(self.server.folder / path[1:])
        return self.refuse(HTTPStatus.NOT_FOUND, "there is only the report here")

    def _page(self, state_alone: bool) -> None:
        try:
            state, page = self.server.current()
        except (ValueError, OSError) as error:  # the folder is gone, or somebody edited config.yaml
            return self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        if state_alone:
            return self.send(HTTPStatus.OK, TEXT, state.encode())
        return self.send(HTTPStatus.OK, "text/html; charset=utf-8", page)

    def _sample(self, file: Path) -> None:
        whole = file.resolve()
        inside = whole.is_relative_to(self.server.folder / "samples")
        if not inside or not whole.is_file() or whole.stat().st_size > LARGEST:
            return self.refuse(HTTPStatus.NOT_FOUND, "no such picture")
        return self.send(HTTPStatus.OK, "image/webp", whole.read_bytes())


def bound(folder: Path, render: Callable[[str], str], port: int) -> Live:
    """A server that listens. Errors: ValueError where the port is taken."""
    return loopback.bound(lambda port: Live(folder, render, port), port)
