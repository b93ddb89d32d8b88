"""The report over HTTP: for this machine alone, reading only, within limits."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import report_runs
from tastemaker.reports import live


@pytest.fixture
def made() -> list[str]:
    """The states of which a page was made."""
    return []


@pytest.fixture
def server(tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[live.Live]:
    monkeypatch.setattr(live.Answer, "timeout", 0.3)
    folder = report_runs.make(tmp_path / "run", iterations=2, every=1)
    (tmp_path / "secret.webp").write_bytes(b"secret")

    def render(state: str) -> str:
        made.append(state)
        return f"<p>page {len(made)}"

    with live.bound(folder, render, 0) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(server: live.Live, path: str, method: str = "GET", host: str | None = None) -> tuple[int, bytes]:
    line = http.client.HTTPConnection(*server.server_address[:2], timeout=5)
    try:
        line.request(method, path, headers={"Host": host or f"127.0.0.1:{server.server_address[1]}"})
        answer = line.getresponse()
        return answer.status, answer.read()
    finally:
        line.close()


def test_the_page_is_made_again_only_when_something_is_new(server: live.Live, made: list[str]) -> None:
    assert ask(server, "/") == ask(server, "/?x=1") == (200, b"<p>page 1")
    state = ask(server, "/state")
    assert state == (200, made[0].encode())
    with (server.folder / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    server.rested = 0.0
    assert ask(server, "/") == (200, b"<p>page 2") and ask(server, "/state")[1] != state[1]


def test_a_page_that_is_dear_is_made_seldom(server: live.Live, made: list[str]) -> None:
    ask(server, "/")
    server.rested = time.monotonic() + 60
    (server.folder / "alarms.jsonl").write_text("{}\n")
    assert ask(server, "/")[1] == b"<p>page 1" and ask(server, "/state")[1] == made[0].encode()


def test_pictures_of_the_run_and_nothing_else(server: live.Live) -> None:
    status, picture = ask(server, "/samples/0/evaluation-0.webp")
    assert status == 200 and picture[8:12] == b"WEBP"
    outside = server.folder / "samples" / "0" / "7.webp"
    outside.symlink_to(server.folder.parent / "secret.webp")
    for path in ("/samples/0/7.webp", "/config.yaml", "/samples/../config.yaml", "/samples/0/../../../secret.webp",
                 "/samples/%2e%2e/secret.webp", "//etc/passwd", "/samples/9/9.webp"):  # fmt: skip
        assert ask(server, path)[0] == 404, path


def test_other_names_of_this_machine_are_refused(server: live.Live) -> None:
    """A page elsewhere that points its own name here does not read the run."""
    port = server.server_address[1]
    assert ask(server, "/", host=f"localhost:{port}")[0] == ask(server, "/", host="127.0.0.1")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example:80", "[::1]:80"):
        assert ask(server, "/", host=host)[0] == 403


def test_it_listens_to_this_machine_and_reads_only(server: live.Live) -> None:
    assert server.server_address[0] == "127.0.0.1"
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(server, "/", method)[0] == 501
    assert ask(server, "/", "HEAD") == (200, b"")
    assert ask(server, "/" + "x" * 70_000)[0] == 414


def test_a_silent_client_is_let_go_and_many_are_refused(server: live.Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "busy", threading.BoundedSemaphore(2))
    silent = [socket.create_connection(server.server_address[:2], timeout=5) for _ in range(2)]
    deadline = time.monotonic() + 5
    while server.busy._value and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(OSError):  # a third is let go at once
        ask(server, "/")
    for one in silent:
        assert one.recv(1) == b""  # after their time
        one.close()
    while not server.busy._value and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ask(server, "/")[0] == 200


def test_a_run_that_cannot_be_read_is_said(server: live.Live) -> None:
    def broken(state: str) -> str:
        raise ValueError("config.yaml is not YAML")

    server.render = broken
    status, text = ask(server, "/")
    assert status == 503 and b"not YAML" in text and ask(server, "/state")[0] == 503


def test_a_port_that_is_taken_is_an_error(server: live.Live, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"--port {server.server_address[1]} cannot be used"):
        live.bound(tmp_path, str, server.server_address[1])
