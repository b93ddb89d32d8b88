"""`remote` and its server: the same bits as here, many askers at once, limits, tokens, hostile requests."""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import signal
import socket
import struct
import threading
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

import runs
from reward_servers import SECRET, pictures, prompts, serving
from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards import named, server, wire
from tastemaker.rewards.batching import Batcher
from tastemaker.rewards.crew import together
from tastemaker.rewards.remote import TOKEN, Remote
from tastemaker.rewards.reward import ContractError, Scores, adapt, check
from tastemaker.rewards.server import Service, identity
from tastemaker.rewards.wire import Limits

ROOT = Path(__file__).resolve().parents[2]


def judged(images: Tensor, prompts: Sequence[str], metadata: Sequence[Any]) -> Scores:
    """A little of everything: parts, a note, a picture without a score, what prompts carry."""
    value = (
        images.mean((1, 2, 3)) + torch.tensor([len(text) + (said or {}).get("plus", 0) for text, said in rows])
        if (rows := list(zip(prompts, metadata, strict=True)))
        else images.mean((1, 2, 3))
    )
    value[[text == "none" for text in prompts]] = torch.nan
    notes = tuple("I cannot say" if text == "none" else f"seen: {text}" for text in prompts)
    return Scores(value, {"red": images[:, 0].mean((1, 2))}, notes)


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images.mean((1, 2, 3))


def exact(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images.double().mean((1, 2, 3)) / 3


# ---- the same as here


@pytest.mark.parametrize("rows", [0, 3])
def test_remote_is_local_to_the_bit(rows: int) -> None:
    images, local = pictures(8, 33), adapt(judged)
    asked = Prompts(tuple("abcdefg") + ("none",), tuple(range(90, 98)), (1,) * 8, ({"plus": 2},) * 4 + (None,) * 4)
    with serving(judged) as url:
        far, near = adapt(Remote(url, rows=rows))(images, asked), local(images, asked)
    assert torch.equal(far.value[:7], near.value[:7]) and far.value[7].isnan() and near.value[7].isnan()
    assert torch.equal(far.parts["red"][:7], near.parts["red"][:7]) and far.notes == near.notes


def test_a_network_and_double_precision_come_back_to_the_bit() -> None:
    images, asked = pictures(5, 64), prompts(5)
    for reward in (named({"name": "clip_score", "model": "shapes"}), adapt(exact)):
        with serving(reward) as url:
            far, near = Remote(url)(images, asked).value, reward(images, asked).value
        assert far.dtype is near.dtype and torch.equal(far, near.detach())


def test_uint8_is_what_a_file_would_hold() -> None:
    images, asked = pictures(4), prompts(4)
    with serving(brightness) as url:
        rounded = Remote(url, pixels="uint8")(images, asked).value
        assert torch.equal(rounded, brightness((255 * images).round() / 255, asked))
        check(named({"name": "remote", "url": url}), images, asked)


def test_a_blob_is_plain_safetensors_and_one_of_theirs_is_read() -> None:
    images, asked = pictures(2), prompts(2)
    assert torch.equal(load(wire.packed(images, asked, "float32"))["images"], images)
    assert load(wire.packed(images, asked, "uint8"))["images"].shape == (2, 8, 8, 3)
    own = save({"images": images}, metadata={"request": json.dumps({"protocol": 1, "prompts": ["a", "b"]})})
    found, said = wire.unpacked(bytearray(own), Limits())
    assert torch.equal(found, images) and (said.texts, said.ids) == (("a", "b"), (0, 1))


def test_what_json_cannot_say_is_not_sent() -> None:
    with serving(brightness) as url:
        found = Remote(url)(pictures(1), Prompts.of(["a"], [object()]))
    assert found.value.isnan().all() and "metadata JSON cannot say" in str(found.notes[0])


def test_what_a_server_judges_by_is_its_tensors_its_file_and_its_settings() -> None:
    clip = [
        identity(named({"name": "clip_score", "model": "shapes", "dtype": kind})) for kind in ("float32", "bfloat16")
    ]
    assert clip[0].weights != clip[1].weights and "model='shapes'" in clip[0].settings
    assert identity(adapt(brightness)) != identity(named("brightness"))
    assert identity(adapt(brightness)) == identity(adapt(brightness)) and len(identity(adapt(brightness)).digest) == 16


def test_a_sum_is_known_by_its_terms_and_one_that_compares_pictures_is_not_served() -> None:
    one, again, other = (named(f"{a}:0.3,brightness:1") for a in ("smoothness", "smoothness", "colour"))
    assert identity(one) == identity(again) and " at 0x" not in identity(one).settings
    assert identity(one).weights != identity(other).weights
    compared = named({"sum": "smoothness:0.3,brightness:1", "standardise": "iteration"})
    with pytest.raises(ContractError, match="a server sees some of them"):
        identity(compared)


# ---- many at once


def test_a_thousand_requests_at_once_are_answered_each_with_its_own_and_in_little_room() -> None:
    """12 askers, 1000 requests of 1 to 3 pictures; the reward sees up to 16 pictures of several requests at a time."""
    calls, held, wrong, done, full = list[int](), list[int](), list[Any](), list[int](), list[int]()
    desks: list[Any] = []
    body = len(wire.packed(pictures(3), prompts(3), "float32")) + 100
    service = Service(Limits(bytes=body), room=4 * body, batch=16)  # too little for all of them

    def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
        calls.append(len(images))
        held.append(desks[0].held)
        return images[:, 0, 0, 0] + torch.tensor([float(text) for text in prompts])

    def asker(url: str, first: int) -> None:
        line = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        with closing(line):
            for k in range(first, 1000, 12):
                ids = range(10 * k, 10 * k + 1 + k % 3)
                images = torch.full((len(ids), 3, 8, 8), k / 1024)
                asked = Prompts(tuple(map(str, ids)), tuple(ids), (0,) * len(ids), (None,) * len(ids))
                status = 429
                while status == 429:
                    try:
                        line.request("POST", "/v1/score", wire.packed(images, asked, "float32"))
                        got = line.getresponse()
                        said, status = json.loads(got.read()), got.status
                    except OSError:  # refused before the body was there: the answer may be lost with the connection
                        line.close()
                    full.append(status == 429)
                if got.status != 200 or said["scores"] != [k / 1024 + name for name in ids]:
                    wrong.append((k, said))
                done.append(k)

    with serving(reward, service, desks=desks) as url:
        crew = [threading.Thread(target=asker, args=(url, first)) for first in range(12)]
        for one in crew:
            one.start()
        for one in crew:
            one.join()
    assert wrong == [] and sorted(done) == list(range(1000))
    assert sum(calls) == sum(1 + k % 3 for k in range(1000)) and 3 < max(calls) <= 16
    assert 0 < max(held) <= service.room and sum(full) > 0


def test_one_asker_may_be_shared_by_threads() -> None:
    with serving(lambda images, prompts: images[:, 0, 0, 0] + torch.tensor([float(text) for text in prompts])) as url:
        shared, found = Remote(url), dict[int, Tensor]()

        def ask(k: int) -> None:
            found[k] = shared(torch.full((2, 3, 4, 4), k / 64), [str(k), str(k + 1)]).value

        together([partial(ask, k) for k in range(60)], 12)
    assert all(found[k].tolist() == [k + k / 64, k + 1 + k / 64] for k in range(60))


def test_a_full_server_asks_to_come_back_and_takes_the_next() -> None:
    gate = threading.Event()

    def slow(images: Tensor, prompts: Sequence[str]) -> Tensor:
        gate.wait(10)
        return images.mean((1, 2, 3))

    sent = wire.packed(pictures(1), prompts(1), "uint8")
    desks: list[Any] = []
    with serving(slow, Service(Limits(bytes=len(sent)), room=len(sent)), desks=desks) as url:
        first = threading.Thread(
            target=httpx2.post, args=(f"{url}/v1/score",), kwargs={"content": sent, "trust_env": False}
        )
        first.start()
        while not desks[0].held:
            threading.Event().wait(0.001)
        full = httpx2.post(f"{url}/v1/score", content=sent, trust_env=False)
        assert (full.status_code, full.headers["Retry-After"]) == (429, "1")
        gate.set()
        first.join()
        assert httpx2.post(f"{url}/v1/score", content=sent, trust_env=False).status_code == 200


def test_what_breaks_outside_the_reward_leaves_the_scoring_thread_alive() -> None:
    def odd(images: Tensor, prompts: Sequence[str]) -> Scores:
        if "end" in prompts:
            raise SystemExit
        return Scores(images.mean((1, 2, 3)), notes=tuple(range(len(images))))  # type: ignore[arg-type]

    batcher = Batcher(adapt(odd), rows=8)
    asked = [batcher.submit(pictures(1), Prompts.of([text])) for text in ("a", "b", "c", "end")]
    ends = [one.exception(10) for one in asked]
    assert isinstance(ends[3], RuntimeError) and "SystemExit" in str(ends[3])
    batcher.submit(pictures(1), Prompts.of(["a"])).exception(10)  # somebody is still there
    batcher.close()


def test_a_request_whose_client_is_gone_is_not_scored() -> None:
    gate, seen, desks = threading.Event(), list[int](), list[Any]()

    def slow(images: Tensor, prompts: Sequence[str]) -> Tensor:
        seen.append(len(images))
        gate.wait(20)
        return images.mean((1, 2, 3))

    with serving(slow, desks=desks) as url:
        for rows in (1, 2):  # the second waits behind the first
            with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as line:
                body = wire.packed(pictures(rows), prompts(rows), "uint8")
                line.sendall(b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                while not seen:
                    threading.Event().wait(0.01)
                threading.Event().wait(0.1)
        while desks[0].held:
            threading.Event().wait(0.01)
        gate.set()
        assert Remote(url)(pictures(3), prompts(3)).value.isfinite().all()
    assert seen == [1, 3]


def test_one_bad_request_of_a_shared_call_costs_the_others_nothing() -> None:
    gate = threading.Event()

    def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
        gate.wait(10)
        if "bad" in prompts:
            raise RuntimeError("bad luck")
        return images.mean((1, 2, 3))

    batcher = Batcher(adapt(reward), rows=8)
    asked = [batcher.submit(pictures(1, seed=k), Prompts.of([text])) for k, text in enumerate(("a", "b", "bad", "c"))]
    dropped = batcher.submit(pictures(1), Prompts.of(["d"]))
    batcher.withdraw(dropped)
    gate.set()
    found = [one.result(10) for one in asked]
    batcher.close()
    assert [float(one.value) for k, one in enumerate(found) if k != 2] == [
        float(pictures(1, seed=k).mean()) for k in (0, 1, 3)
    ]
    assert found[2].value.isnan().all() and found[2].notes == ("RuntimeError: bad luck",) and not dropped.done()
    with pytest.raises(RuntimeError, match="ending"):
        batcher.submit(pictures(1), Prompts.of(["a"]))


# ---- who may ask, and how much


def test_the_token_is_asked_for_and_stands_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    said = []
    with serving(brightness, token=SECRET) as url:
        for found in ("", "wrong" + SECRET):
            monkeypatch.setenv(TOKEN, found)
            with pytest.raises(
                ValueError, match=rf"/health answered 401: this server asks for a token. Set {TOKEN}"
            ) as no:
                _ = named({"name": "remote", "url": url}).network
            said.append(str(no.value))
        body = wire.packed(pictures(1), prompts(1), "uint8")
        assert httpx2.post(f"{url}/v1/score", content=body, trust_env=False).status_code == 401
        monkeypatch.setenv(TOKEN, SECRET)
        reward = Remote(url)
        assert reward(pictures(2), prompts(2)).value.isfinite().all()
        said += [repr(reward), repr(reward.courier.__dict__.get("client")), str(reward.service)]
    out = capfd.readouterr()
    assert SECRET not in "".join([*said, caplog.text, out.out, out.err])


def blob(shape: list[int], kind: str = "U8", size: int = 12, **request: Any) -> bytes:
    text = json.dumps({"protocol": 1, "prompts": ["a"], **request})
    header = {"images": {"dtype": kind, "shape": shape, "data_offsets": [0, size]}, "__metadata__": {"request": text}}
    said = json.dumps(header).encode()
    return struct.pack("<Q", len(said)) + said + bytes(size)


HOSTILE = {
    "a body of 200 MB": (bytes(200 * 2**20), 413),
    "50,000 x 50,000": (blob([1, 50_000, 50_000, 3]), 413),
    "50,000 x 50,000 of floats": (blob([1, 3, 50_000, 50_000], "F32"), 413),
    "a shape of huge numbers": (blob([10**30, 10**30, 10**30, 3]), 413),
    "more than the body": (blob([1, 20, 20, 3]), 400),
    "too many rows": (blob([300, 1, 1, 3], size=900), 413),
    "no rows": (blob([0, 2, 2, 3], size=0), 400),
    "a negative side": (blob([1, -2, -2, 3]), 400),
    "true for a number": (blob([True, 2, 2, 3]), 400),
    "another type": (blob([1, 2, 2, 3], "I64"), 400),
    "nothing": (b"", 400),
    "three bytes": (b"abc", 400),
    "a header longer than the body": (struct.pack("<Q", 2**63) + b"{}", 400),
    "a header that is no JSON": (struct.pack("<Q", 4) + b"\xff\xfe{]", 400),
    "deep JSON": (struct.pack("<Q", 200_000) + b"[" * 200_000, 400),
    "a long number": (blob([1, 2, 2, 3], size=12).replace(b"[0, 12]", b"[0, " + b"9" * 5000 + b"]"), 400),
    "pickle": (b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.", 400),
    "a picture in PNG": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xc3\x50\0\0\xc3\x50\x08\x02\0\0\0", 400),
    "another protocol": (blob([1, 2, 2, 3], protocol=99), 400),
    "two prompts": (blob([1, 2, 2, 3], prompts=["a", "b"]), 400),
    "a number for a prompt": (blob([1, 2, 2, 3], prompts=[3]), 400),
    "texts for ids": (blob([1, 2, 2, 3], ids=["../../etc/passwd"]), 400),
    "one id twice": (blob([2, 1, 2, 3], prompts=["a", "b"], ids=[1, 1]), 400),
}


def declared(url: str, length: int) -> tuple[int, list[str]]:
    """Status and keys of the answer to a request that says how long its body is."""
    with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)) as line:
        line.putrequest("POST", "/v1/score")
        line.putheader("Content-Length", str(length))
        line.endheaders()
        got = line.getresponse()
        return got.status, list(json.loads(got.read()))


def test_hostile_requests_are_refused_and_the_server_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(brightness) as url, httpx2.Client(trust_env=False) as client:
        for what, (body, status) in HOSTILE.items():
            if len(body) > 2**26:  # said, and not sent: a refusal may be lost while such a body is on its way
                assert declared(url, len(body)) == (status, ["error"]), what
                continue
            got = client.post(f"{url}/v1/score", content=body)
            assert (got.status_code, list(got.json())) == (status, ["error"]), what
        assert client.post(f"{url}/v1/score", content=iter([b"a", b"b"])).status_code == 411
        assert client.get(f"{url}/v1/score").status_code == 405 and client.get(f"{url}/docs").status_code == 404
        good = client.post(f"{url}/v1/score", content=blob([1, 2, 2, 3]))
        assert good.json()["scores"] == [0] and Remote(url)(pictures(2), prompts(2)).value.isfinite().all()
    assert capfd.readouterr().err == ""


def test_a_body_that_does_not_come_and_a_reward_that_does_not_end_are_told_off() -> None:
    gate = threading.Event()

    def slow(images: Tensor, prompts: Sequence[str]) -> Tensor:
        gate.wait(10)
        return images.mean((1, 2, 3))

    with serving(slow, Service(reading=0.05, scoring=0.05)) as url:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as wire_:
            wire_.sendall(b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc")
            assert wire_.recv(100).startswith(b"HTTP/1.1 408 ")
        sent = wire.packed(pictures(1), prompts(1), "uint8")
        for _ in range(3):  # the first is under way, the others wait behind it
            got = httpx2.post(f"{url}/v1/score", content=sent, trust_env=False)
            assert got.status_code == 504 and "longer than 0.05 s" in got.json()["error"]
        gate.set()


def test_no_room_is_no_error() -> None:
    body = len(wire.packed(pictures(1), prompts(1), "float32"))
    with pytest.raises(ValueError, match="less room"):
        Service(Limits(bytes=100), room=99)
    with serving(brightness, Service(Limits(bytes=body), room=body)) as url:
        found = Remote(url)(pictures(3), prompts(3)).value  # the server's limit cuts the call
    assert torch.equal(found, brightness(pictures(3), []))


def test_nothing_here_speaks_pickle() -> None:
    for path in sorted((ROOT / "src").rglob("*.py")):
        assert not re.search(
            r"^\s*(import|from) (pickle|dill|cloudpickle|marshal|shelve)\b|\.loads?\(.*pickle", path.read_text(), re.M
        )


# ---- several servers


def test_several_addresses_share_the_pictures_and_stand_in_for_each_other() -> None:
    seen: list[list[int]] = [[], []]

    def of(k: int) -> Any:
        def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
            seen[k].append(len(images))
            return images.mean((1, 2, 3))

        return brightness

    images, asked = pictures(8), prompts(8)
    with serving(of(0)) as one:
        with serving(of(1)) as two:
            reward = Remote(f"{one},{two}")
            assert torch.equal(reward(images, asked).value, brightness(images, asked))
            assert seen == [[4], [4]]
        assert torch.equal(reward(images, asked).value, brightness(images, asked))
        assert sum(seen[0]) == 12
    with serving(brightness) as one, serving(exact) as two:
        with pytest.raises(ValueError, match="scores of two rewards are not compared"):
            _ = named({"name": "remote", "url": f"{one},{two}"}).network


# ---- the command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "serve-reward takes one reward, and then flags; found none."),
        (["brightness", "--token", SECRET], "--token: a token is never a flag"),
        (["brightness", "--host", "0.0.0.0"], "--host 0.0.0.0 lets others in: set TASTEMAKER_REWARD_TOKEN"),
        (["brightness", "--port", "99999"], "--port is '99999'; it is a whole number from 0 to 65535."),
        (["brightness", "--rows", "0"], "--rows is '0'; it is a whole number from 1"),
        (["brightness", "--prot", "1"], "Did you mean `--port`?"),
        (["brightnes"], "--reward: `brightnes` is not the name of a reward. Did you mean `brightness`?"),
        (["--reward", "brightness"], "serve-reward takes one reward"),
        (["brightness", "--token_file", "nowhere"], "--token_file nowhere does not exist."),
    ],
)
def test_a_wrong_line_is_refused(words: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    done = runs.call("serve-reward", *words)
    assert done.code == 2 and said in done.err and done.out == "" and SECRET not in done.err


def test_the_command_serves_until_it_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In this process: a thread asks, and then sends it SIGTERM."""
    (tmp_path / "token").write_text(f"{SECRET}\n")
    found, real = list[Any](), server.runner

    def runner(app: Any) -> Any:
        running = real(app)
        run = running.run

        def ask(port: int) -> None:
            reward = named({"name": "remote", "url": f"http://127.0.0.1:{port}"})
            found.append(reward(pictures(2), prompts(2)).value)
            os.kill(os.getpid(), signal.SIGTERM)

        def both(sockets: list[socket.socket]) -> None:
            asker = threading.Thread(target=ask, args=(sockets[0].getsockname()[1],))
            asker.start()
            run(sockets=sockets)
            asker.join(10)

        running.run = both
        return running

    monkeypatch.setattr(server, "runner", runner)
    monkeypatch.setenv(TOKEN, SECRET)  # the client's
    words = ("--port", "0", "--token_file", str(tmp_path / "token"), "--device", "cpu", "--reward.match", "part")
    done = runs.call("serve-reward", "brightness", *words[:-2])
    assert (done.code, done.err) == (0, "") and SECRET not in done.out
    assert re.fullmatch(r"brightness \S+, \w{12}, at http://127\.0\.0\.1:\d+  \(Ctrl-C ends it\)\nended\n", done.out)
    assert torch.equal(found[0], named("brightness")(pictures(2), prompts(2)).value)
    done = runs.call("serve-reward", "brightness", *words)
    assert done.code == 2 and "--reward.match is not a setting of brightness" in done.err


def test_without_the_extra_the_message_has_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = runs.call("serve-reward", "brightness")
    assert done.code == 2 and done.err.endswith("not installed here: pip install 'tastemaker[serve]'\n")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "there:80"}, "--reward.url is 'there:80'; it is http://HOST:PORT"),
        ({"url": f"http://me:{SECRET}@there"}, "--reward.url holds a name, a password or a query"),
        ({"url": f"http://there?key={SECRET}"}, "--reward.url holds a name, a password or a query"),
        ({"url": " , "}, "--reward.url is empty"),
        ({"pixels": "png"}, "--reward.pixels is 'png'; it is one of float32, uint8."),
        ({"deadline": "0"}, "--reward.deadline is 0.0; it is a number above 0."),
        ({"on_change": "ask"}, "--reward.on_change is 'ask'; it is one of stop, warn."),
        ({"rows": "-1"}, "--reward.rows is -1; it is 0 or more."),
    ],
)
def test_wrong_settings_are_told_of_in_the_users_words(settings: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError) as no:
        named({"name": "remote", **settings}, key="--reward")
    assert said in str(no.value) and SECRET not in str(no.value)
