"""`Courier`: carries requests to servers that judge pictures, with a patience that ends.

Several addresses are asked in turn. One that fails rests, longer each time and by a random share of it, or as long as
its Retry-After says; meanwhile the others are asked. Whatever servers do, a call ends at its deadline.
"""

from __future__ import annotations

import email.utils
import json
import logging
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from tastemaker.rewards.crew import within
from tastemaker.rewards.reward import ContractError

T = TypeVar("T")

AGAIN = (408, 425, 429)  # of the answers 4xx those that may be others the next time
BASE, CAP = 0.5, 15.0  # seconds: the first rest, and the longest that nobody asked for
DOWN = 30.0  # seconds that nobody is asked after all of them failed a call
GRACE = 1.0  # seconds above its own clock after which a try is left to itself
ANSWER = 16 * 2**20  # bytes of an answer that are read
_LOG = logging.getLogger("tastemaker.rewards")
_SHOWN = 300  # letters of a server's words in a message


class Refusal(ContractError):
    """A server understood and said no: asking again changes nothing."""


class Silence(RuntimeError):
    """No answer that can be used came within the patience."""


class Spoilt(Exception):
    """An answer that cannot be used: whoever reads it raises this, and the request is made again."""


class _Failed(Exception):
    """One try failed and another may not; `wait` is how many seconds the server asks for."""

    def __init__(self, message: str, wait: float = 0.0, mute: bool = False) -> None:
        super().__init__(message)
        self.wait, self.mute = wait, mute  # mute: nobody spoke


@dataclass(frozen=True)
class Patience:
    """How long to wait, and how often to ask."""

    timeout: float = 60.0  # seconds for one try
    deadline: float = 180.0  # seconds for all tries of a call together
    tries: int = 6

    def __post_init__(self) -> None:
        for key, value in (("timeout", self.timeout), ("deadline", self.deadline), ("tries", self.tries)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{key} is {value}; it is a number above 0.")


def addresses(text: str) -> tuple[str, ...]:
    """The servers that a setting `url` names, with commas. Errors: ValueError; what may be a secret is not repeated."""
    from urllib.parse import urlsplit

    found = tuple(one.strip().rstrip("/") for one in text.split(",") if one.strip())
    for one in found:
        parts = urlsplit(one)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                "url holds a name, a password or a query: an address is http://HOST:PORT, and tokens come from the "
                "environment."
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url is {one!r}; it is http://HOST:PORT or https://HOST, several with commas.")
    if not found:
        raise ValueError("url is empty; it is http://HOST:PORT or https://HOST, several with commas.")
    return found


class Courier:
    """Asks servers, one `ask` a request; safe to use from several threads.

    secret: sent as a bearer token, and taken out of everything that servers say. Proxies and passwords of the
    environment are not used, redirects not followed, answers not unpacked and read up to a limit.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        patience: Patience,
        *,
        secret: str = "",
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        draw: Callable[[], float] = random.random,
        wire: Any = None,
    ) -> None:
        self.addresses, self.patience = tuple(addresses), patience
        self._secret, self._now, self._sleep, self._draw, self._wire = secret, now, sleep, draw, wire
        self._lock = threading.Lock()
        self._failures = dict.fromkeys(self.addresses, 0)  # in a row
        self._rests = dict.fromkeys(self.addresses, -float("inf"))  # until when
        self._down = -float("inf")  # until when nobody is asked
        self._turn = int(draw() * len(self.addresses))  # processes begin with different ones

    @cached_property
    def client(self) -> Any:
        """The connections, opened when they are first needed."""
        import httpx2

        headers = {"Accept-Encoding": "identity", "User-Agent": "tastemaker"}
        if self._secret:
            headers["Authorization"] = f"Bearer {self._secret}"
        made = httpx2.Client(headers=headers, trust_env=False, follow_redirects=False, transport=self._wire)
        weakref.finalize(self, made.close)
        return made

    def until(self, seconds: float | None = None) -> float:
        """The moment at which a call that begins now ends."""
        return self._now() + (self.patience.deadline if seconds is None else seconds)

    def ask(
        self,
        path: str,
        read: Callable[[bytes], T],
        *,
        body: bytes | None = None,
        kind: str = "application/json",
        until: float | None = None,
        at: str = "",
        tries: float = 0,
    ) -> T:
        """What `read` makes of the answer to a POST of the body, or to a GET without one.

        until: when to give up (default: after the patience's deadline); at: the one address to ask.
        Errors: Refusal where a server says no, Silence where none gives an answer of use in time.
        """
        until, asked, last = self.until() if until is None else until, 0, "nobody was asked, all of them rest"
        mute = False  # whether the last failure was of the connection, not of what was said
        most = tries or self._tries(at, until)
        while asked < most and (address := self._next(until, at)) is not None:
            asked += 1
            try:
                answer = read(self._try(address + path, body, kind, until))
            except Refusal:
                self._noted(address, None)
                raise
            except (_Failed, Spoilt) as error:
                last, mute = f"{address}: {self.redacted(str(error))}", isinstance(error, _Failed) and error.mute
                self._noted(address, error.wait if isinstance(error, _Failed) else 0.0, last)
            else:
                self._noted(address, None)
                return answer
        if mute and not at and all(self._failures.values()):
            self._down = self._now() + DOWN
        times = "1 try" if asked == 1 else f"{asked} tries"
        raise Silence(f"no answer from {at or ', '.join(self.addresses)} in {times}; the last: {last}")

    def redacted(self, text: str) -> str:
        """A text on one line, without the secret."""
        return " ".join((text.replace(self._secret, "***") if self._secret else text).split())[:_SHOWN]

    def _next(self, until: float, at: str) -> str | None:
        """Whom to ask, after waiting for it; None where that is past the deadline."""
        with self._lock:
            now, n = self._now(), len(self.addresses)
            turn, self._turn = self._turn, self._turn + 1
            order = [self.addresses[(turn + k) % n] for k in range(n)]
            address = at or min(order, key=lambda one: max(self._rests[one], now))
            rest = max(self._rests[address] - now, 0.0)
        if now + rest >= until:
            return None
        if rest:
            self._sleep(rest)
        return address

    def _tries(self, at: str, until: float) -> int:
        """How often to ask: after nobody answered, for a while not at all, then once each until somebody does.

        The other calls of an iteration need not all wait for a dead server; the one that found it dead may.
        Errors: Silence for not at all.
        """
        began = until - self.patience.deadline
        if at or self._down - DOWN > began:
            return self.patience.tries
        if self._down == -float("inf"):
            return self.patience.tries
        if (left := self._down - self._now()) > 0:
            raise Silence(f"{', '.join(self.addresses)} did not answer a moment ago: asked again in {left:.0f} s")
        return len(self.addresses)

    def _noted(self, address: str, wait: float | None, said: str = "") -> None:
        """An address answered (None), or failed and asks for so many seconds; the first failure is told of at once."""
        with self._lock:
            if (wait is None) == bool(self._failures[address]):
                _LOG.warning(f"{address} answers again" if wait is None else f"asked again: {said}")
            if wait is None:
                self._failures[address], self._rests[address], self._down = 0, -float("inf"), -float("inf")
                return
            longest = min(CAP, BASE * 2.0 ** min(self._failures[address], 16))
            if self._now() >= self._rests[address] - 1e-3:  # those that were under way with it are the same failure
                self._failures[address] += 1
            wait = min(wait, self.patience.deadline)  # whatever a server asks for, a later call asks it again
            self._rests[address] = max(self._rests[address], self._now() + wait + self._draw() * longest)

    def _try(self, url: str, body: bytes | None, kind: str, until: float) -> bytes:
        import httpx2

        end = min(self._now() + self.patience.timeout, until)
        headers = {} if body is None else {"Content-Type": kind}
        seconds = max(end - self._now(), 1e-3)
        method, timeout, client = "GET" if body is None else "POST", httpx2.Timeout(seconds), self.client

        def talk() -> tuple[bytes, int, float]:
            with client.stream(method, url, content=body, headers=headers, timeout=timeout) as answer:
                wait = _seconds(answer.headers.get("Retry-After", ""))
                return self._held(answer, end), answer.status_code, wait

        try:
            held, status, wait = within(seconds + GRACE, talk)
        except TimeoutError as error:
            raise _Failed("the answer takes too long", mute=True) from error
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise _Failed(f"{type(error).__name__}: {error}", mute=True) from error
        if status == 200:
            return held.replace(self._secret.encode(), b"***") if self._secret else held
        said = f"{status}: {self.redacted(_words(held))}"
        if status in AGAIN or status >= 500:
            raise _Failed(said, wait)
        raise Refusal(f"{url} answered {said}")

    def _held(self, answer: Any, end: float) -> bytes:
        """The answer's bytes. A timeout of the sockets' is one of each piece, so the clock is looked at too."""
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise _Failed("the answer is packed, which was not asked for")
        held = bytearray()
        for piece in answer.iter_raw():
            held += piece
            if len(held) > ANSWER:
                raise _Failed(f"the answer is longer than {ANSWER} bytes")
            if self._now() > end:
                raise _Failed("the answer takes too long")
        return bytes(held)


def _seconds(text: str) -> float:
    """What a Retry-After asks for: seconds, or a date; 0 for anything else."""
    if text.strip().isdecimal():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _words(body: bytes) -> str:
    """What an answer says went wrong: the `error` of its JSON, or its beginning."""
    text = body[:4096].decode("utf-8", "replace")
    try:
        found = json.loads(text)["error"]
        return str(found["message"] if isinstance(found, dict) else found)
    except (ValueError, KeyError, TypeError, RecursionError):
        return text
