"""Servers for tests of rewards that ask them: our own in a thread, scripted ones, and a clock that nobody waits for."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import torch
from torch import Tensor

from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards import server, wire
from tastemaker.rewards.remote import Remote
from tastemaker.rewards.reward import Scores, adapt
from tastemaker.rewards.transport import Courier, Patience, addresses

SECRET = "canary-5f2c9d81e7"


class Clock:
    """Time that passes when somebody sleeps, or when told."""

    def __init__(self) -> None:
        self.now, self.slept = 1000.0, list[float]()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def pictures(n: int, size: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def prompts(n: int) -> Prompts:
    return Prompts.of([f"picture {k}" for k in range(n)])


@contextmanager
def serving(
    reward: Any, service: server.Service | None = None, *, token: str = "", desks: list[Any] | None = None
) -> Iterator[str]:
    """The address of our own server, in a thread; ended gracefully. desks: where its insides are put."""
    made = server.app(adapt(reward), service, token=token)
    if desks is not None:
        desks.append(made.state.desk)
    running = server.runner(made)
    door = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [door]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{door.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(10)
        assert not thread.is_alive() and made.state.desk.held == 0


Answer = Callable[[httpx2.Request], httpx2.Response]


def unread(response: httpx2.Response) -> httpx2.Response:
    """A response as it comes from a wire, to be read once."""
    if not response.is_stream_consumed:
        return response
    stream = httpx2.ByteStream(response.content)
    return httpx2.Response(response.status_code, headers=response.headers, stream=stream)


def scripted(reward: Any, answer: Answer, clock: Clock, *, secret: str = "") -> Courier:
    """Makes `reward` speak with a function in the place of its servers, on a clock of its own."""
    courier = Courier(
        addresses(reward.url),
        Patience(reward.timeout, reward.deadline, reward.tries),
        secret=secret,
        now=clock,
        sleep=clock.sleep,
        draw=lambda: 0.5,
        wire=httpx2.MockTransport(lambda request: unread(answer(request))),
    )
    reward.__dict__["courier"] = courier
    return courier


IDENTITY = wire.Identity("brightness", "1.0", "0" * 32)


def health(identity: wire.Identity = IDENTITY, **changes: Any) -> httpx2.Response:
    said = {"protocol": wire.PROTOCOL, "identity": identity.digest, **identity._asdict(), "rows": 64, "bytes": 2**22}
    return httpx2.Response(200, json=said | changes)


def scored(request: httpx2.Request, identity: wire.Identity = IDENTITY, **changes: Any) -> httpx2.Response:
    """What a good server of brightness answers; `changes` to it."""
    images, asked = wire.unpacked(bytearray(request.content), wire.Limits())
    said = wire.answer(Scores(wire.floats(images).mean((1, 2, 3))), asked.ids, identity)
    return httpx2.Response(200, content=json.dumps(said | changes).encode())


def remote(answers: list[Any], clock: Clock, *, secret: str = "", **settings: Any) -> tuple[Remote, list[Any]]:
    """A `remote` whose server gives these answers to requests for scores: responses, functions, or errors to raise.

    With the requests that it made. The last answer stays.
    """
    made = Remote(**{"url": "http://there:1", **settings})
    asked: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == server.HEALTH:
            return health()
        asked.append(request)
        found = answers[min(len(asked), len(answers)) - 1]
        if isinstance(found, BaseException):
            raise found
        response: httpx2.Response = found(request) if callable(found) else found
        return response

    scripted(made, answer, clock, secret=secret)
    return made, asked
