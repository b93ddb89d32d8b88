"""A reward as a service: `POST /v1/score` and `GET /health`. What passes: `tastemaker.rewards.wire`.

A request is measured before it is read: who asks, how long the body is, whether there is room for it. It opens no file
and no address, whatever stands in it. Nothing is logged of what is asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from tastemaker.rewards.batching import Batcher
from tastemaker.rewards.reward import ContractError, NamedReward
from tastemaker.rewards.weights import digest
from tastemaker.rewards.wire import PROTOCOL, Identity, Limits, Malformed, TooLarge, answer, unpacked

SCORE, HEALTH = "/v1/score", "/health"
POLL = 0.5  # seconds between two looks whether the client is still there
ASKERS = 512  # connections at a time
GOODBYE = 30  # seconds in which what waits is answered once the server is ended
_MISSING = "serving a reward needs starlette and uvicorn, which are not installed here: pip install 'tastemaker[serve]'"


@dataclass(frozen=True)
class Service:
    """How a server serves. Errors: ValueError for numbers that are none of that."""

    limits: Limits = Limits()
    room: int = 512 * 2**20  # bytes of all bodies that are held at a time
    reading: float = 30.0  # seconds that a body may take to arrive
    scoring: float = 120.0  # seconds that a request may take from then on
    batch: int = 0  # pictures of several requests in one call; 0: a request is a call of its own
    version: str = ""  # of the package, as clients are told

    def __post_init__(self) -> None:
        if self.room < self.limits.bytes:
            raise ValueError("there is less room for all requests together than one of them may take.")


def extra() -> Any:
    """The modules (starlette, uvicorn). Errors: ContractError with the line that installs them."""
    try:
        import starlette
        import uvicorn
    except ImportError as error:
        raise ContractError(_MISSING) from error
    return starlette, uvicorn


# ---- what is served


def identity(judge: NamedReward, version: str = "") -> Identity:
    """What a reward judges by: its tensors, or without a network the file it is written in; and its settings.

    Of a sum, what its terms judge by. Errors: ContractError for one that weighs pictures against each other.
    """
    if judge.comparison is not None:
        raise ContractError(
            f"reward `{judge.name}`: `standardise` and `floor` weigh the pictures of a whole iteration against each "
            "other, and a server sees some of them: serve the terms, and write the sum where the training is."
        )
    found = inspect.unwrap(getattr(judge.function, "func", judge.function))
    given = dict(getattr(judge.function, "keywords", {}))
    if is_dataclass(found) and not isinstance(found, type):
        given = {one.name: getattr(found, one.name) for one in fields(found) if one.init and one.repr}
    terms: tuple[NamedReward, ...] = getattr(found, "terms", ())
    network, mark = judge.network, hashlib.sha256()
    if terms:
        mark.update("".join(identity(one).digest for one in terms).encode())
    elif network is not None:
        mark = digest(network)
    else:
        mark.update(_source(found))
    settings = ", ".join(f"{key}={value!r}" for key, value in sorted(given.items()) if key != "device")
    return Identity(judge.name, version, mark.hexdigest()[:32], settings)


def _source(found: Any) -> bytes:
    kind = found if inspect.isroutine(found) else type(found)
    try:
        return Path(inspect.getsourcefile(kind) or "").read_bytes()
    except (OSError, TypeError):  # written in C, or typed in
        return f"{kind.__module__}.{kind.__qualname__}".encode()


# ---- the application


class Desk:
    """Takes requests in: who may ask, how much, and what they are told."""

    def __init__(self, judge: NamedReward, service: Service, *, token: str, device: str) -> None:
        self.judge, self.service, self.device = judge, service, device
        self.identity = identity(judge, service.version)
        self.held = 0  # bytes of bodies
        self._token = hashlib.sha256(token.encode()).digest() if token else b""
        self.batcher: Batcher | None = None

    @asynccontextmanager
    async def open(self, app: Any) -> AsyncIterator[None]:
        """From the first request to the last."""
        self.batcher = Batcher(self.judge, self.device, self.service.batch)
        try:
            yield
        finally:
            await asyncio.to_thread(self.batcher.close)

    async def health(self, request: Any) -> Any:
        """Who judges here, and how much is taken at a time."""
        if (no := self._stranger(request)) is not None:
            return no
        limits = self.service.limits
        said = {"protocol": PROTOCOL, "identity": self.identity.digest, **self.identity._asdict()}
        return _json(said | {"rows": limits.rows, "pixels": limits.pixels, "bytes": limits.bytes})

    async def score(self, request: Any) -> Any:
        """The scores of one request."""
        if (no := self._stranger(request)) is not None:
            return no
        length = request.headers.get("content-length", "")
        if not length.isdecimal():
            return _no(411, "say how long the body is, with Content-Length")
        size = int(length[:20])
        if size > self.service.limits.bytes:
            return _no(413, f"a body has at most {self.service.limits.bytes} bytes, this one {size}")
        if self.held + size > self.service.room:
            return _no(429, "no room for another request now", {"Retry-After": "1"})
        self.held += size
        try:
            return await self._scored(request, size)
        finally:
            self.held -= size

    async def _scored(self, request: Any, size: int) -> Any:
        from starlette.requests import ClientDisconnect

        try:
            async with asyncio.timeout(self.service.reading):
                body = await _body(request, size)
            images, prompts = unpacked(body, self.service.limits)
        except TimeoutError:
            return _no(408, f"the body took longer than {self.service.reading:g} s to arrive")
        except TooLarge as error:
            return _no(413, str(error))
        except (Malformed, ClientDisconnect) as error:
            return _no(400, str(error) or "the body is shorter than was said")
        assert self.batcher is not None
        try:
            waiting = self.batcher.submit(images, prompts)
        except RuntimeError as error:
            return _no(503, str(error), {"Retry-After": "1"})
        try:
            async with asyncio.timeout(self.service.scoring):
                done = asyncio.wrap_future(waiting)
                while not done.done():
                    await asyncio.wait([done], timeout=POLL)
                    if not done.done() and await request.is_disconnected():
                        self.batcher.withdraw(waiting)  # nobody waits for it
                        return _no(408, "nobody waits for the answer")
                scores = done.result()
        except TimeoutError:
            self.batcher.withdraw(waiting)
            return _no(504, f"scoring took longer than {self.service.scoring:g} s")
        return _json(answer(scores, prompts.ids, self.identity))

    def _stranger(self, request: Any) -> Any:
        """The answer to somebody without the token; None where all is well."""
        if not self._token:
            return None
        kind, _, said = request.headers.get("authorization", "").partition(" ")
        known = hmac.compare_digest(hashlib.sha256(said.strip().encode()).digest(), self._token)
        if known and kind.lower() == "bearer":
            return None
        return _no(401, "this server asks for a token", {"WWW-Authenticate": "Bearer"})


async def _body(request: Any, size: int) -> bytearray:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > size:
            raise Malformed("the body is longer than was said")
    if len(body) != size:
        raise Malformed("the body is shorter than was said")
    return body


def _json(said: Any, status: int = 200, headers: dict[str, str] | None = None) -> Any:
    from starlette.responses import JSONResponse

    return JSONResponse(said, status, headers)


def _no(status: int, why: str, headers: dict[str, str] | None = None) -> Any:
    """A refusal. The connection ends with it, for what is left of the body is not read."""
    return _json({"error": why}, status, {"Connection": "close", **(headers or {})})


def app(judge: NamedReward, service: Service | None = None, *, token: str = "", device: str = "cpu") -> Any:
    """The application, to be run by uvicorn or any other server of ASGI. Errors: ContractError without the extra."""
    extra()
    from starlette.applications import Starlette
    from starlette.routing import Route

    desk = Desk(judge, service or Service(), token=token, device=device)
    routes = [Route(HEALTH, desk.health, methods=["GET"]), Route(SCORE, desk.score, methods=["POST"])]
    made = Starlette(routes=routes, lifespan=desk.open)
    made.state.desk = desk
    return made


def runner(made: Any) -> Any:
    """uvicorn over an application: `run(sockets=[...])`, and `should_exit = True` ends it when all is answered."""
    _, uvicorn = extra()
    return uvicorn.Server(
        uvicorn.Config(
            made,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GOODBYE,
            limit_concurrency=ASKERS,
        )
    )
