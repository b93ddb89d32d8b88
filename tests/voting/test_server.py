"""The page over HTTP: this machine alone, pictures by number, votes of our own page; what is wrong changes nothing."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tastemaker.reports import loopback
from tastemaker.voting import server as module
from tastemaker.voting.server import TOKEN, Voting, bound
from tastemaker.voting.session import Session
from votables import picture, sampled

TEXTS = ["<b>a cat</b></script>", "a dog"] * 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sampled(tmp_path / "s", TEXTS)


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Voting]:
    monkeypatch.setattr(loopback.Answer, "timeout", 0.5)
    with Session.open([folder]) as session, bound(session) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(
    server: Voting, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None, method: str = ""
) -> tuple[int, bytes, Mapping[str, str]]:
    line = http.client.HTTPConnection(*server.server_address[:2], timeout=5)
    try:
        host = {"Host": f"127.0.0.1:{server.server_address[1]}"}
        line.request(method or ("GET" if body is None else "POST"), path, body, {**host, **(headers or {})})
        answer = line.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())
    finally:
        line.close()


def post(server: Voting, path: str, told: Any, **headers: str) -> tuple[int, str]:
    """As the page does it."""
    body = told if isinstance(told, bytes) else json.dumps(told).encode()
    ours = {TOKEN: server.token, "Content-Type": "application/json"} | {
        k.replace("_", "-"): v for k, v in headers.items()
    }
    status, text, _ = ask(server, path, body, ours)
    return status, text.decode()


def lines(server: Voting) -> int:
    return server.session.output.read_bytes().count(b"\n")


VOTE = {"pair": 1, "vote": "right", "seconds": 1.25}


def test_a_vote_and_its_undoing(server: Voting) -> None:
    assert post(server, "/vote", VOTE) == (200, '{"votes": 1}') and lines(server) == 1
    state = json.loads(ask(server, "/state")[1])
    assert state["votes"] == [{"pair": 1, "vote": "right", "seconds": 1.25}]
    assert post(server, "/vote", VOTE)[0] == 409 and lines(server) == 1
    assert post(server, "/undo", {}) == (200, '{"pair": 1}') and lines(server) == 0
    assert post(server, "/undo", {}) == (409, "there is no vote to take back\n")


def test_the_state_tells_prompts_and_numbers_and_no_file(server: Voting) -> None:
    status, text, headers = ask(server, "/state")
    assert status == 200 and headers["Content-Type"] == "application/json"
    state = json.loads(text)
    assert sorted(one["prompt"] for one in state["pairs"]) == sorted(TEXTS[:2])
    assert set(state["pairs"][1]) == {"number", "prompt", "left", "right"} and b"png" not in text
    assert [(one["left"], one["right"]) for one in state["pairs"]] == [(0, 1), (2, 3)]


def test_nothing_that_is_sent_tells_the_place(tmp_path: Path) -> None:
    a, b = sampled(tmp_path / "alpha", TEXTS[:2]), sampled(tmp_path / "beta", TEXTS[:2], first=9)
    with Session.open([a, b]) as session, Voting(session) as running:
        sent = running.state() + running.page
        assert not any(word in sent for word in (b"alpha", b"beta", str(tmp_path).encode()))


def test_pictures_by_their_numbers(server: Voting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = server.session.pairs[1]
    for number, file in ((2, pair.left), (3, pair.right)):
        status, body, headers = ask(server, f"/picture/{number}")
        assert (status, headers["Content-Type"], body) == (200, "image/png", file.read_bytes())
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    for path in ("/picture/4", "/picture/-1", "/picture/", "/picture/x", "/picture/9999999999", "/picture/1/2",
                 "/picture/%31", "/picture/²", "/picture/../0", "/0.png", "/votes.jsonl", "//etc/passwd"):  # fmt: skip
        assert ask(server, path.replace("²", "%C2%B2"))[0] == 404, path
    pair.left.write_text("a text by now")
    assert ask(server, "/picture/2")[0] == 404
    pair.left.unlink()
    assert ask(server, "/picture/2")[0] == 404
    monkeypatch.setattr(module, "LARGEST", 10)
    assert ask(server, "/picture/3")[0] == 404


@pytest.mark.parametrize("ending", ["jpg", "webp", "gif", "bmp"])
def test_the_type_is_the_bytes_own(tmp_path: Path, ending: str) -> None:
    for k in range(2):
        picture(tmp_path / f"{k}.{ending}", 100 * k)
        (tmp_path / f"{k}.{ending}").rename(tmp_path / f"{k}.png")
    with Session.open([tmp_path], prompt="a cat") as session, Voting(session) as running:
        found = running.picture(0)
    assert found and found[0] == f"image/{ending.replace('jpg', 'jpeg')}"


def test_the_page_runs_its_own_script_alone(server: Voting) -> None:
    status, page, headers = ask(server, "/")
    assert status == 200 and server.token.encode() in page and b"<b>" not in page
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe" not in policy
    assert "script-src 'sha256-" in policy and "frame-ancestors 'none'" in policy
    assert headers["X-Frame-Options"] == "DENY" and headers["Cache-Control"] == "no-store"
    assert ask(server, "/", method="HEAD")[:2] == (200, b"")
    with bound(server.session) as other:
        assert server.token != other.token


REFUSED = [
    ("/vote", {**VOTE, "pair": 2}, 400, "there is no such pair"),
    ("/vote", {**VOTE, "pair": -1}, 400, "there is no such pair"),
    ("/vote", {**VOTE, "pair": True}, 400, "there is no such pair"),
    ("/vote", {**VOTE, "pair": "1"}, 400, "there is no such pair"),
    ("/vote", {**VOTE, "vote": "up"}, 400, "a vote is one of left, right, tie"),
    ("/vote", {**VOTE, "vote": ["left"]}, 400, "a vote is one of"),
    ("/vote", {"pair": 1, "vote": "left"}, 400, "seconds are a number"),
    ("/vote", {**VOTE, "seconds": -1}, 400, "seconds are a number"),
    ("/vote", {**VOTE, "seconds": True}, 400, "seconds are a number"),
    ("/vote", b'{"pair": 1, "vote": "left", "seconds": NaN}', 400, "seconds are a number"),
    ("/vote", b'{"pair": 1, "vote": "left", "seconds": 1e999}', 400, "seconds are a number"),
    ("/vote", b"{", 400, "that is not JSON"),
    ("/vote", b"\xff", 400, "that is not JSON"),
    ("/vote", b"[" * 4000, 400, "that is not JSON"),
    ("/vote", b"[]", 400, "a vote is an object"),
    ("/vote", b"", 400, "that is not JSON"),
    ("/vote", b" " * 4097, 413, "at most 4096 bytes"),
    ("/vote", b" " * 60_000, 413, "at most 4096 bytes"),
    ("/other", {}, 404, "only /vote and /undo"),
    ("/vote?x", VOTE, 404, "only /vote and /undo"),
]


@pytest.mark.parametrize(("path", "told", "status", "said"), REFUSED)
def test_what_is_wrong_changes_nothing(server: Voting, path: str, told: Any, status: int, said: str) -> None:
    found = post(server, path, told)
    assert found[0] == status and said in found[1] and lines(server) == 0


def test_only_our_own_page_votes(server: Voting) -> None:
    port = server.server_address[1]
    body = json.dumps(VOTE).encode()
    ours = {TOKEN: server.token, "Content-Type": "application/json"}
    for wrong, status in (
        ({TOKEN: ""}, 403),
        ({TOKEN: server.token[:-1]}, 403),
        ({TOKEN: "\xe9"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Host": "evil.example"}, 403),
        ({"Host": f"evil.example:{port}"}, 403),
    ):
        assert ask(server, "/vote", body, {**ours, **wrong})[0] == status, wrong
    assert ask(server, "/vote", body, {"Content-Type": "application/json"})[0] == 403
    for path in ("/", "/state", "/picture/0"):
        assert ask(server, path, headers={"Host": "evil.example"})[0] == 403
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH"):  # a page elsewhere asks by OPTIONS whether it may post
        assert ask(server, "/vote", body, ours, method)[0] == 501
    assert lines(server) == 0 and server.server_address[0] == "127.0.0.1"


def raw(server: Voting, head: str) -> bytes:
    with socket.create_connection(server.server_address[:2], timeout=5) as line:
        line.sendall(f"{head}\r\nHost: localhost\r\n{TOKEN}: {server.token}\r\n\r\n".encode())
        found = b""
        while data := line.recv(4096):
            found += data
    return found


def test_lengths_are_said_and_kept(server: Voting) -> None:
    for more in ("", "\r\nContent-Length: x", "\r\nContent-Length: -1", "\r\nTransfer-Encoding: chunked"):
        assert raw(server, f"POST /vote HTTP/1.1{more}").split()[1] == b"411", more
    assert raw(server, "POST /vote HTTP/1.1\r\nContent-Length: 50") == b""  # less came: let go after its time
    assert raw(server, f"POST /vote HTTP/1.1\r\nContent-Length: {10**30}") == b""
    assert lines(server) == 0 and post(server, "/vote", VOTE)[0] == 200


def test_a_vote_that_cannot_be_written_is_said(server: Voting, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(row: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(server.session._file, "add", full)
        assert post(server, "/vote", VOTE) == (507, "the file of votes cannot be written: No space left on device\n")
    assert post(server, "/vote", VOTE)[0] == 200


def test_after_the_end_nothing_is_taken(server: Voting) -> None:
    post(server, "/vote", VOTE)
    server.session.close()
    assert post(server, "/vote", {**VOTE, "pair": 0})[0] == post(server, "/undo", {})[0] == 409


def test_a_port_that_is_taken_is_an_error(server: Voting) -> None:
    with pytest.raises(ValueError, match=f"--port {server.server_address[1]} cannot be used"):
        bound(server.session, server.server_address[1])
