"""Servers of rewards that fail: bounded patience, honest notes, never a 0 and no secret (D.4, 30-39).

What our own server refuses (37): tests/rewards/test_remote.py. What judges say (39): tests/rewards/test_vlm.py.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
import torch

from reward_servers import IDENTITY, SECRET, Clock, health, pictures, prompts, remote, scored, scripted, serving
from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards import named, transport, wire
from tastemaker.rewards.remote import TOKEN, Remote
from tastemaker.rewards.reward import load_networks
from tastemaker.rewards.scoring import Scoring
from tastemaker.rewards.vlm import Vlm

IMAGES, ASKED = pictures(8), prompts(8)
GOOD = IMAGES.mean((1, 2, 3))


def free() -> str:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        return f"http://127.0.0.1:{door.getsockname()[1]}"


def busy(status: int, **headers: str) -> httpx2.Response:
    return httpx2.Response(status, json={"error": f"not now, {SECRET}"}, headers=headers)


# ---- 30: down at the start


def test_a_server_that_is_down_at_the_start_is_waited_for_and_named() -> None:
    clock, reward = Clock(), named({"name": "remote", "url": free(), "startup_timeout": "40"})
    reward.function.courier._sleep, reward.function.courier._now = clock.sleep, clock
    with pytest.raises(ValueError) as no:
        load_networks([reward])
    said = str(no.value)
    assert reward.function.url in said and "tastemaker serve-reward NAME" in said and "Waited 40 s for it" in said
    assert 20 < sum(clock.slept) <= 40 and len(clock.slept) > 3


def test_a_server_that_comes_up_in_time_is_found() -> None:
    clock, tries = Clock(), list[str]()

    def answer(request: httpx2.Request) -> httpx2.Response:
        tries.append(request.url.path)
        if len(tries) < 4:
            raise httpx2.ConnectError("refused")
        return health()

    reward = Remote("http://there:1", startup_timeout=30)
    scripted(reward, answer, clock)
    assert reward.service.identity == IDENTITY and tries == ["/health"] * 4


# ---- 31: hangs


def test_a_server_that_hangs_costs_the_deadline_and_the_pictures_alone() -> None:
    clock = Clock()

    def hang(request: httpx2.Request) -> httpx2.Response:
        clock.now += request.extensions["timeout"]["read"]
        raise httpx2.ReadTimeout("nothing came")

    reward, asked = remote([hang], clock, timeout=10, deadline=35, tries=100)
    _ = reward.service
    began = clock.now
    found = reward(IMAGES, ASKED)
    assert found.value.isnan().all() and clock.now - began <= 35 and len(asked) == 4  # the last is cut short
    assert all("http://there:1: ReadTimeout: nothing came" in str(note) for note in found.notes)


def test_the_calls_after_a_dead_one_do_not_all_wait_and_somebody_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """The first call has its full patience; then nobody is asked for half a minute, then once, until one answers."""
    clock = Clock()
    reward, asked = remote([*[httpx2.ConnectError("refused")] * 5, scored], clock, tries=4)
    assert reward(IMAGES, ASKED).value.isnan().all() and len(asked) == 4
    assert caplog.messages == ["asked again: http://there:1: ConnectError: refused"]  # at once, and once
    for _ in range(3):
        found = reward(IMAGES, ASKED)
        assert len(asked) == 4 and "did not answer a moment ago" in str(found.notes[0])
    clock.now += transport.DOWN + 1
    assert reward(IMAGES, ASKED).value.isnan().all() and len(asked) == 5
    clock.now += transport.DOWN + 1
    assert torch.equal(reward(IMAGES, ASKED).value, GOOD) and len(asked) == 6
    assert caplog.messages[1:] == ["http://there:1 answers again"]
    assert torch.equal(reward(IMAGES, ASKED).value, GOOD)


def test_an_answer_that_trickles_is_cut_at_the_clock() -> None:
    clock = Clock()

    class Trickle(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            while True:
                clock.now += 1
                yield b" "

    reward, asked = remote([lambda request: httpx2.Response(200, stream=Trickle())], clock, timeout=10, tries=2)
    found = reward(IMAGES, ASKED)
    assert found.value.isnan().all() and "takes too long" in str(found.notes[0]) and len(asked) == 2


def test_who_waits_for_a_hanging_server_still_polls() -> None:
    """The scoring thread hangs; the process that would answer other ranks does not."""
    gate, polled = threading.Event(), list[int]()

    def hang(request: httpx2.Request) -> httpx2.Response:
        gate.wait(10)
        raise httpx2.ReadTimeout("nothing came")

    def poll() -> None:
        polled.append(1)
        gate.set()

    reward, _ = remote([hang, scored], Clock())
    with Scoring(reward, poll=poll) as scoring:
        scoring.submit(ASKED, IMAGES)
        assert [scoring.results()[k][0] for k in range(8)] == GOOD.tolist()
    assert polled


def test_a_head_that_trickles_is_left_at_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets give up on a piece that does not come, not on one that comes letter by letter."""
    monkeypatch.setattr(transport, "GRACE", 0.2)
    over = threading.Event()

    def trickle(door: socket.socket) -> None:
        made, _ = door.accept()
        with made:
            while not over.wait(0.05):
                made.sendall(b"H")

    with socket.create_server(("127.0.0.1", 0)) as door:
        thread = threading.Thread(target=trickle, args=(door,), daemon=True)
        thread.start()
        courier = transport.Courier(
            (f"http://127.0.0.1:{door.getsockname()[1]}",), transport.Patience(0.3, 0.4, 1), draw=lambda: 0.0
        )
        began = time.monotonic()
        with pytest.raises(transport.Silence, match="takes too long"):
            courier.ask("/health", bytes)
        assert time.monotonic() - began < 3
        over.set()
        thread.join(10)


# ---- 32: hiccups


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
def test_a_hiccup_is_waited_out_and_the_scores_are_the_same(status: int) -> None:
    clock = Clock()
    reward, asked = remote([busy(status), busy(status, **{"Retry-After": "7"}), scored], clock)
    assert torch.equal(reward(IMAGES, ASKED).value, GOOD) and len(asked) == 3
    assert clock.slept == [0.25, 7 + 0.5]  # half of at most 0.5 s, then what was asked for and half of 1 s
    assert asked[0].content == asked[2].content


def test_tries_and_deadline_bound_the_patience() -> None:
    clock = Clock()
    reward, asked = remote([busy(503)], clock, tries=4)
    assert reward(IMAGES, ASKED).value.isnan().all() and len(asked) == 4
    reward, asked = remote([busy(503, **{"Retry-After": "600"})], clock := Clock(), deadline=60)
    found = reward(IMAGES, ASKED)
    assert len(asked) == 1 and clock.slept == [] and "503: not now" in str(found.notes[0])
    date = "Fri, 01 Jan 2100 00:00:00 GMT"
    assert transport._seconds(date) > 1e9 and transport._seconds("soon") == transport._seconds("-3") == 0


def test_no_server_is_given_up_for_good_because_it_asked_for_a_long_rest() -> None:
    clock = Clock()
    reward, asked = remote([busy(503, **{"Retry-After": "999999999"}), scored], clock, deadline=60)
    assert reward(IMAGES, ASKED).value.isnan().all() and len(asked) == 1
    clock.now += 61
    assert torch.equal(reward(IMAGES, ASKED).value, GOOD)


def test_the_call_that_finds_nobody_keeps_its_own_patience() -> None:
    """A judge asks for one picture at a time: all of them belong to the same call."""
    clock = Clock()
    reward, asked = remote([*[httpx2.ConnectError("refused")] * 2, scored], clock, tries=2)
    _ = reward.service
    until = reward.courier.until()
    with pytest.raises(transport.Silence):
        reward.courier.ask("/v1/score", bytes, body=b"", until=until)
    body = wire.packed(IMAGES, ASKED, "float32")
    assert reward.courier.ask("/v1/score", bytes, body=body, kind=wire.KIND, until=until)


def test_a_busy_server_is_not_a_dead_one() -> None:
    clock = Clock()
    reward, asked = remote([*[busy(429)] * 3, scored], clock, tries=3)
    assert reward(IMAGES, ASKED).value.isnan().all() and len(asked) == 3
    assert torch.equal(reward(IMAGES, ASKED).value, GOOD)  # asked again at once


def test_another_address_is_asked_while_one_rests() -> None:
    clock, asked = Clock(), list[str]()

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/health":
            return health()
        asked.append(request.url.host)
        return busy(503, **{"Retry-After": "100"}) if request.url.host == "one" else scored(request)

    reward = Remote("http://one:1,http://two:1", rows=8)
    scripted(reward, answer, clock)
    for _ in range(3):
        assert torch.equal(reward(IMAGES, ASKED).value, GOOD)
    assert asked.count("one") == 1 and asked.count("two") == 3 and clock.slept == []


# ---- 33: refusals


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 413, 422])
def test_a_refusal_is_not_asked_again_and_names_its_cause(status: int) -> None:
    clock = Clock()
    no = httpx2.Response(
        status, json={"error": f"no: you sent {SECRET}"}, headers={"Location": "http://169.254.169.254/"}
    )
    reward, asked = remote([no], clock, secret=SECRET)
    found = reward(IMAGES, ASKED)
    assert len(asked) == 1 and clock.slept == [] and found.value.isnan().all()
    assert f"http://there:1/v1/score answered {status}: no: you sent ***" in str(found.notes[0])
    assert asked[0].headers["Authorization"] == f"Bearer {SECRET}" and SECRET not in str(found.notes)


# ---- 34: half an answer


def row(**changes: Any) -> Any:
    return lambda request: scored(request, **changes)


def test_what_an_answer_leaves_out_is_asked_again_and_then_has_no_score() -> None:
    three = {"ids": [0, 1, 2], "scores": GOOD[:3].tolist(), "valid": [True] * 3}
    reward, asked = remote([row(**three), scored], Clock())
    assert torch.equal(reward(IMAGES, ASKED).value, GOOD)
    assert [len(wire.unpacked(bytearray(one.content), wire.Limits())[1]) for one in asked] == [8, 5]
    reward, asked = remote([row(**three)], Clock())
    found = reward(IMAGES, ASKED)
    assert torch.equal(found.value[:3], GOOD[:3]) and found.value[3:].isnan().all() and len(asked) == 2
    assert found.notes[:4] == (None,) * 3 + ("no score: the server left it out of its answers",)


ODD = {
    "null": {"scores": [None] * 8, "valid": [True] * 8},
    "not a number": {"scores": [float("nan")] * 8},
    "infinite": {"scores": [float("inf")] * 8},
    "beyond every float": {"scores": [10**400] * 8},
    "texts": {"scores": ["0.5"] * 8},
    "true": {"scores": [True] * 8},
    "other ids": {"ids": list(range(80, 88))},
    "one id for all": {"ids": [3] * 8},
    "ids as texts": {"ids": [str(k) for k in range(8)]},
    "fewer scores than ids": {"scores": [1.0]},
    "no lists": {"ids": 3, "scores": {"0": 1}},
}


@pytest.mark.parametrize("what", ODD)
def test_a_row_that_is_no_score_is_none(what: str) -> None:
    reward, asked = remote([row(**ODD[what])], Clock())
    found = reward(IMAGES, ASKED)
    assert found.value.isnan().all() and len(asked) == 2 and all(found.notes)


def test_scores_go_by_id_and_a_picture_without_one_is_not_asked_for_again() -> None:
    backwards = {"ids": list(range(8))[::-1], "scores": GOOD.tolist()[::-1]}
    reward, asked = remote([row(**backwards)], Clock())
    assert torch.equal(reward(IMAGES, ASKED).value, GOOD) and len(asked) == 1
    none = {"scores": [None, *GOOD.tolist()[1:]], "valid": [False] + [True] * 7, "notes": ["too dark"] + [None] * 7}
    reward, asked = remote([row(**none)], Clock())
    found = reward(IMAGES, ASKED)
    assert len(asked) == 1 and found.value[0].isnan() and torch.equal(found.value[1:], GOOD[1:])
    assert found.notes[0] == "too dark"


# ---- 35: what is no answer


@contextmanager
def raw(*answers: bytes) -> Iterator[str]:
    """A socket that reads a request and answers with these bytes, one connection each, whatever it was asked."""
    door = socket.create_server(("127.0.0.1", 0))
    door.settimeout(10)

    def work() -> None:
        for answer in answers:
            made, _ = door.accept()
            with made:
                head, _, body = made.recv(65536).partition(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                while len(body) < length:
                    body += made.recv(65536)
                try:
                    made.sendall(answer)
                except OSError:  # the other side has heard enough
                    pass

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{door.getsockname()[1]}"
    finally:
        thread.join(10)
        door.close()


def http(body: bytes, length: int | None = None, *more: bytes) -> bytes:
    head = [b"HTTP/1.1 200 OK", b"Connection: close", b"Content-Length: %d" % (len(body) if length is None else length)]
    return b"\r\n".join([*head, *more, b"", body])


def test_what_is_no_answer_is_asked_again_and_a_long_one_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "ANSWER", 2**16)
    good = scored(httpx2.Request("POST", "http://a", content=wire.packed(IMAGES, ASKED, "float32"))).content
    bad = {
        "without sending complete message body": http(good[:40], len(good)),
        "Server disconnected": b"",
        "no JSON": http(b"<html>busy</html>"),
        "no JSON object": http(b"[1, 2]"),
        "longer than 65536 bytes": http(b" " * 2**20),
        "is packed": http(b"\x1f\x8b", None, b"Content-Encoding: gzip"),
        "RemoteProtocolError: ": b"SSH-2.0-OpenSSH\r\n\r\n",
    }
    for said, answer in bad.items():
        clock = Clock()
        with raw(http(health().content), answer) as url:
            reward = Remote(url, tries=1)
            reward.courier._sleep = clock.sleep
            found = reward(IMAGES, ASKED)
        assert found.value.isnan().all() and said in str(found.notes[0]), found.notes[0]
    with raw(http(health().content), *bad.values(), http(good)) as url:
        reward = Remote(url, tries=8)
        reward.courier._sleep = clock.sleep
        reward.courier._now = clock
        assert torch.equal(reward(IMAGES, ASKED).value, GOOD)


# ---- 36: another server


@pytest.mark.parametrize("field", ["name", "version", "weights", "settings"])
def test_another_reward_behind_the_address_is_found(field: str) -> None:
    other = IDENTITY._replace(**{field: "other"})
    reward, asked = remote([scored, lambda request: scored(request, other)], Clock())
    assert torch.equal(reward(IMAGES, ASKED).value, GOOD)
    found = reward(IMAGES, ASKED)
    assert found.value.isnan().all() and "reward, version or weights changed" in str(found.notes[0]) and len(asked) == 2
    reward, _ = remote([lambda request: scored(request, other)], Clock(), on_change="warn")
    with pytest.warns(RuntimeWarning, match="reward, version or weights changed: it began as `brightness` 1.0"):
        assert torch.equal(reward(IMAGES, ASKED).value, GOOD)


def test_another_protocol_is_told_of_at_the_start() -> None:
    reward = Remote("http://there:1")
    scripted(reward, lambda request: health(protocol=2), clock := Clock())
    with pytest.raises(ValueError, match="the server speaks protocol 2, needed is 1"):
        _ = reward.network
    assert clock.slept == []


# ---- 38: addresses in what is judged


def test_addresses_in_prompts_and_metadata_are_never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    real, opened = socket.socket.connect, list[Any]()

    def connect(self: socket.socket, address: Any) -> None:
        opened.append(address)
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    bait = ("http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "data:text/html,<script>", "//evil/x.png")
    with serving(lambda images, prompts: images.mean((1, 2, 3))) as url:
        asked = Prompts.of(bait, [{"image_url": one, "url": one, "path": "/etc/passwd"} for one in bait])
        found = Remote(url)(IMAGES[:4], asked)
    assert torch.equal(found.value, GOOD[:4])
    assert {address[1] for address in opened if isinstance(address, tuple)} == {int(url.rpartition(":")[2])}


def test_a_judge_is_shown_no_address_but_the_picture_itself() -> None:
    bait, asked = "http://169.254.169.254/a.png", list[httpx2.Request]()

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return httpx2.Response(200, json={"choices": [{"message": {"content": bait}}], "data": [{"id": "seer"}]})

    reward = Vlm(mode="questions")
    scripted(reward, answer, Clock())
    said = {"questions": [bait], "answers": [bait], "image_url": bait}
    assert reward(IMAGES[:1], Prompts.of([bait], [said])).value.tolist() == [1]
    assert {request.url.host for request in asked} == {"127.0.0.1"} and len(asked) == 2
    urls = re.findall(r'"url": "([^"]{,20})', asked[1].content.decode())
    assert urls == ["data:image/png;base6"] and f'"text": "{bait} Answer briefly."' in asked[1].content.decode()


def test_a_token_that_a_server_repeats_is_in_no_score() -> None:
    notes = {"notes": [f"you sent {SECRET}"] * 8}
    reward, _ = remote([row(**notes)], Clock(), secret=SECRET)
    found = reward(IMAGES, ASKED)
    assert torch.equal(found.value, GOOD) and found.notes[0] == "you sent ***"


def test_a_token_is_in_no_message_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, SECRET)
    reward = Remote(free(), startup_timeout=1)
    reward.courier._sleep, reward.courier._now = (clock := Clock()).sleep, clock
    with pytest.raises(ValueError) as no:
        _ = reward.network
    assert SECRET not in str(no.value) + repr(reward) + json.dumps(reward.courier.patience.__dict__)
