"""`remote`: asks servers that `tastemaker serve-reward` started, or that speak as they do (`tastemaker.rewards.wire`).

A call ends at its deadline, whatever servers do: what has no score then is NaN, with a note that says why, and so
leaves the batch. It is never a 0.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards import wire
from tastemaker.rewards.crew import together
from tastemaker.rewards.reward import ContractError, Scores
from tastemaker.rewards.transport import Courier, Patience, Refusal, Silence, Spoilt, addresses

TOKEN = "TASTEMAKER_REWARD_TOKEN"
CHANGES = ("stop", "warn")
_ROUNDS = 2  # how often a picture that an answer left out is asked for


@dataclass(frozen=True)
class Remote:
    """Scores of a reward that runs elsewhere: `tastemaker serve-reward NAME` there, `--reward.url ADDRESS` here.

    On the same tensor to the bit what the reward gives there, if `pixels` is float32. Several addresses share a call's
    pictures and stand in for each other. A picture without a score in time is NaN, with a note. The token, where the
    server asks for one, is TASTEMAKER_REWARD_TOKEN of the environment.
    """

    url: str = "http://127.0.0.1:8077"
    """Where the server is: http://HOST:PORT, several with commas."""
    pixels: str = "float32"
    """How pictures travel: float32, or uint8, rounded to 256 levels as in a file, a quarter as long."""
    rows: int = 0
    """Pictures of a request; 0 is all of a call, in equal shares where there are several addresses."""
    timeout: float = 60.0
    """Seconds that one try may take."""
    deadline: float = 180.0
    """Seconds that a call may take, with all its tries."""
    tries: int = 6
    """How often a request is made before it is given up."""
    startup_timeout: float = 60.0
    """Seconds to wait for the servers before a run begins."""
    on_change: str = "stop"
    """When a server's reward, version or weights are no longer what they were: stop scoring, or warn and go on."""

    name: ClassVar[str] = "remote"

    def __post_init__(self) -> None:
        _ = addresses(self.url), self._patience
        for key, value, known in (("pixels", self.pixels, wire.PIXELS), ("on_change", self.on_change, CHANGES)):
            if value not in known:
                raise ValueError(f"{key} is {value!r}; it is one of {', '.join(known)}.")
        if self.rows < 0:
            raise ValueError(f"rows is {self.rows}; it is 0 or more.")
        if not 0 < self.startup_timeout < float("inf"):
            raise ValueError(f"startup_timeout is {self.startup_timeout}; it is a number above 0.")

    @property
    def _patience(self) -> Patience:
        return Patience(self.timeout, self.deadline, self.tries)

    @cached_property
    def courier(self) -> Courier:
        """Who carries the requests."""
        return Courier(addresses(self.url), self._patience, secret=os.environ.get(TOKEN, "").strip())

    @cached_property
    def service(self) -> _Service:
        """What the servers say of themselves, asked when it is first needed.

        Errors: ContractError where one cannot be reached, says no, or judges by other things than the first.
        """
        until = self.courier.until(self.startup_timeout)
        found = [self._met(address, until) for address in self.courier.addresses]
        for address, one in zip(self.courier.addresses, found, strict=True):
            if one.identity != found[0].identity:
                raise ContractError(
                    f"reward `remote`: {address} serves {_said(one.identity)}, {self.courier.addresses[0]} serves "
                    f"{_said(found[0].identity)}: scores of two rewards are not compared. Start both with the same one."
                )
        rows, size = min(one.rows for one in found), min(one.bytes for one in found)
        return _Service(found[0].identity, rows, size)

    @property
    def network(self) -> None:
        """None here. Runs ask for it before they load a model, and so hear in time of a server that is not there."""
        _ = self.service

    def _met(self, address: str, until: float) -> _Service:
        try:
            return self.courier.ask("/health", _service, until=until, at=address, tries=float("inf"))
        except Silence as error:
            raise ContractError(
                f"reward `remote`: {error}. Is it running? There: `tastemaker serve-reward NAME --port PORT`, with "
                f"--host where that is another machine; here: --reward.url. Waited {self.startup_timeout:g} s for it "
                "(--reward.startup_timeout)."
            ) from error
        except Refusal as error:
            hint = f" Set {TOKEN} to the server's token." if " 401: " in str(error) else ""
            raise ContractError(f"reward `remote`: {error}.{hint}") from error

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """Scores [B] of pictures [B,3,H,W] in [0,1], on the CPU, without a gradient."""
        asked = prompts if isinstance(prompts, Prompts) else Prompts.of(prompts)
        call = _Call(self, images, asked, self.courier.until())
        whole, n, many = self.service.fitting(images, self.pixels), len(images), len(self.courier.addresses)
        size = max(1, min(self.rows or -(-n // many), whole))
        parts = [list(range(first, min(first + size, n))) for first in range(0, n, size)]
        if len(parts) == 1:
            call.ask(parts[0])
        else:
            together([partial(call.ask, part) for part in parts], many)
        return call.scores()


class _Service(NamedTuple):
    identity: wire.Identity
    rows: int
    bytes: int

    def fitting(self, images: Tensor, pixels: str) -> int:
        """How many of these pictures one request may bring; at least one, and the server says what is wrong with it."""
        each = images[0].numel() * (1 if pixels == "uint8" else 4) if len(images) else 1
        return max(1, min(self.rows, int(0.9 * self.bytes) // each))


def _service(body: bytes) -> _Service:
    said = _object(body)
    if said.get("protocol") != wire.PROTOCOL:
        raise Refusal(f"the server speaks protocol {str(said.get('protocol'))[:20]}, needed is {wire.PROTOCOL}")
    rows, size = said.get("rows"), said.get("bytes")
    if not (type(rows) is int and type(size) is int and rows > 0 and size > 0):
        raise Spoilt("its health names no limits")
    return _Service(wire.Identity(*(str(said.get(key, "")) for key in wire.Identity._fields)), rows, size)


def _object(body: bytes) -> dict[str, Any]:
    import json

    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Spoilt("the answer is no JSON") from error
    if not isinstance(found, dict):
        raise Spoilt("the answer is no JSON object")
    return found


def _said(one: wire.Identity) -> str:
    return f"`{one.name}` {one.version}, weights {one.weights[:12]}, settings ({one.settings})"


class _Call:
    """One call of the reward: its pictures, and what is known of their scores. Parts are asked for in threads."""

    def __init__(self, reward: Remote, images: Tensor, prompts: Prompts, until: float) -> None:
        self.reward, self.images, self.until = reward, images, until
        self.prompts = prompts
        if len(set(prompts.ids)) < len(prompts):  # answers go by id
            self.prompts = replace(prompts, ids=tuple(range(len(prompts))))
        self.found: dict[int, wire.Row] = {}
        self.why: dict[int, str] = {}
        self._lock = threading.Lock()

    def ask(self, rows: list[int]) -> None:
        """Asks for the scores of rows, again for those that an answer left out; says why there is none."""
        for _ in range(_ROUNDS):
            try:
                got = self._answered(rows)
            except (Silence, Refusal, ValueError) as error:
                self.why |= dict.fromkeys(rows, str(error))
                return
            with self._lock:
                self.found |= {row: got[self.prompts.ids[row]] for row in rows if self.prompts.ids[row] in got}
            rows = [row for row in rows if row not in self.found]
            if not rows:
                return
        self.why |= dict.fromkeys(rows, "the server left it out of its answers")

    def _answered(self, rows: list[int]) -> dict[int, wire.Row]:
        some, reward = self.prompts.take(rows), self.reward
        body = wire.packed(self.images[rows], some, reward.pixels)

        def read(answer: bytes) -> dict[int, wire.Row]:
            said = _object(answer)
            self._same(str(said.get("identity")))
            return wire.rows(said, some.ids)

        return reward.courier.ask("/v1/score", read, body=body, kind=wire.KIND, until=self.until)

    def _same(self, digest: str) -> None:
        """Errors: Refusal when the server judges by other things than at the start, where that is not to be passed."""
        reward = self.reward
        if digest == reward.service.identity.digest:
            return
        what = f"the server's reward, version or weights changed: it began as {_said(reward.service.identity)}"
        if reward.on_change == "stop":
            raise Refusal(f"{what}. Start it as it was, or begin a new run; --reward.on_change warn goes on")
        warnings.warn(f"reward `remote`: {what}.", RuntimeWarning, stacklevel=2)

    def scores(self) -> Scores:
        """What was found, in the pictures' order."""
        found = [self.found.get(row) for row in range(len(self.images))]
        kind = torch.float64 if any(row is not None and row.double for row in found) else torch.float32
        numbers = [torch.nan if row is None or row.score is None else row.score for row in found]
        names = list(dict.fromkeys(name for row in found if row is not None for name in row.parts))
        parts = {
            name: torch.tensor(
                [torch.nan if row is None else row.parts.get(name, torch.nan) for row in found], dtype=kind
            )
            for name in names
        }
        notes = tuple(
            f"no score: {self.why.get(k, 'nobody answered')}" if row is None else row.note
            for k, row in enumerate(found)
        )
        return Scores(torch.tensor(numbers, dtype=kind), parts, notes if any(notes) else ())
