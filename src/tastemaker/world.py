"""The other processes of a run: how they stay in step, and what they add up.

Ranks move in lockstep. Before each collective every rank sends one small message [kind, n, stop] over gloo, so that a
rank that has run ahead is named instead of hanging the others, and a request to stop reaches all of them at once.
What follows from a round of messages is a function of the messages alone, so every rank comes to the same conclusion.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from datetime import timedelta
from enum import IntEnum
from typing import NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tastemaker import groups

BUCKET = 2**25  # elements a sum of gradients moves at once: 128 MiB of fp32 beside the gradients themselves.
LOOK = 0.5  # seconds between two looks for another rank's stop request while nothing else is exchanged.


class Stop(Exception):
    """This run was asked to stop. Every rank raises it, each at the next place where it listens."""


class Kind(IntEnum):
    """What a rank is about to do."""

    STOP = 0
    UPDATE = 1
    END = 2
    SUM = 3
    MAXIMUM = 4
    GATHER = 5
    GRADIENTS = 6
    TEXT = 7
    BARRIER = 8


DEAF = frozenset({Kind.END, Kind.TEXT, Kind.BARRIER})  # here a request to stop waits for the next place that listens


class Message(NamedTuple):
    """What one rank said before a collective."""

    kind: Kind
    n: int
    stop: bool


class Noticeboard(Protocol):
    """The store all ranks reach, as far as it is used here."""

    def set(self, key: str, value: str) -> None: ...

    def check(self, keys: list[str]) -> bool: ...


class HasBatch(Protocol):
    """An update, as far as ranks need to know it."""

    @property
    def batch(self) -> Sized: ...


U = TypeVar("U", bound=HasBatch)


class World:
    """All processes of this run; `World()` is one alone and `World.here()` joins the others.

    Every method but `request_stop` and `poll` is a collective: all ranks call it, in the same order.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        *,
        control: dist.ProcessGroup | None = None,
        store: Noticeboard | None = None,
    ) -> None:
        self.rank, self.size = rank, size
        self._control, self._store = control, store
        self._asked = False  # written by a signal handler
        self._held = 0
        self._stops = 0  # names the request that all ranks look for: one more after each Stop
        self._looked = 0.0

    @classmethod
    def here(cls, device: str = "cpu", *, timeout: timedelta = timedelta(minutes=30)) -> World:
        """The world that torchrun or `accelerate launch` described in the environment; alone where there is none.

        device: the one this process computes on, as `devices.pick` gives it. With CUDA its tensors are summed by NCCL;
        messages and everything else go over gloo.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        control, store = groups.begin(device, timeout)
        world = cls(dist.get_rank(), dist.get_world_size(), control=control, store=store)
        atexit.register(world.close)
        return world

    def close(self) -> None:
        """Ends the group that messages go over; called at the end of the process at the latest."""
        control, self._control = self._control, None
        if control is not None:
            groups.end(control)

    def sum(self, n: int) -> int:
        """The sum of every rank's n."""
        return sum(message.n for message in self._say(Kind.SUM, n))

    def maximum(self, n: int) -> int:
        """The largest of every rank's n."""
        return max(message.n for message in self._say(Kind.MAXIMUM, n))

    def barrier(self) -> None:
        """Returns once every rank is here. Never raises Stop for a request that is still waiting."""
        self._say(Kind.BARRIER, 0)

    def broadcast_text(self, text: str | None) -> str:
        """Rank 0's text, on every rank; what the others pass is ignored. Never raises Stop for a waiting request."""
        self._say(Kind.TEXT, 0)
        box = [text]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, group=self._control)
        if box[0] is None:
            raise ValueError("broadcast_text needs a text on rank 0, but got None.")
        return box[0]

    def over_all(self, fn: Callable[..., Tensor], *values: Tensor, ids: Sequence[int]) -> Tensor:
        """fn of everyone's rows, and of its result the own rows in the own order.

        values are [n, ...], n differing from rank to rank (0 too); row k belongs to the sample ids[k], and no id occurs
        twice. fn gets the [N, ...] tensors of all ranks on the CPU, in the order of the ids and in their own dtypes,
        and returns [N, ...]. So the result depends neither on which rank had which sample nor on how many there are.
        """
        own = [int(sample) for sample in ids]
        assert values, "over_all needs at least one value"
        assert all(len(value) == len(own) for value in values), "every value needs one row for each id"
        self._say(Kind.GATHER, len(own))
        parts: list[tuple[list[int], list[Tensor]]] = [(own, [value.detach().cpu().clone() for value in values])]
        if self.size > 1:
            everyone: list[tuple[list[int], list[Tensor]]] = parts * self.size
            dist.all_gather_object(everyone, parts[0], group=self._control)
            parts = everyone
        filled = [part for part in parts if part[0]] or parts[:1]  # a rank without rows need not know their shape
        found = [sample for part in filled for sample in part[0]]
        order = sorted(range(len(found)), key=found.__getitem__)
        place = {found[row]: k for k, row in enumerate(order)}
        assert len(place) == len(found), "two rows have the same id"
        result = fn(*(torch.cat(column)[order] for column in zip(*(part[1] for part in filled), strict=True)))
        if len(result) != len(found):
            raise ValueError(f"over_all needs one result a row, {len(found)}, but the function gave {len(result)}.")
        return result[[place[sample] for sample in own]].to(values[0].device)

    def everyone(self, value: Tensor, *, ids: Sequence[int]) -> Tensor:
        """All ranks' rows [N, ...] in the order of the ids, on the CPU."""
        whole: list[Tensor] = []

        def see(rows: Tensor) -> Tensor:
            whole.append(rows)
            return rows

        self.over_all(see, value, ids=ids)
        return whole[0]

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Every gradient becomes the sum over the ranks; one that is missing counts as zero and becomes zeros.

        Ranks pass the same parameters in the same order. They end with the same bits.
        """
        parameters = list(parameters)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        sizes = [message.n for message in self._say(Kind.GRADIENTS, sum(p.numel() for p in parameters))]
        if len(set(sizes)) > 1:
            raise RuntimeError(f"ranks train different weights: {_by_rank(sizes)} numbers of them.")
        if self.size > 1:
            for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
                self._add(bucket)

    def _add(self, bucket: list[Tensor]) -> None:
        """Sums the tensors of a bucket over the ranks, in place."""
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        if flat.device.type == "cuda":
            dist.all_reduce(flat)
        else:
            flat = flat.cpu()
            dist.all_reduce(flat, group=self._control)
        start = 0
        for gradient in bucket:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()

    def lockstep(self, updates: Iterator[U]) -> Iterator[U]:
        """The updates, each once every rank has its own.

        Raises Stop before an update when any rank was asked to stop, but not once the updates have ended: the request
        then waits for the next iteration. RuntimeError names the ranks if only some have one more update.
        """
        while True:
            update = next(updates, None)
            if update is None:
                self._say(Kind.END, 0)
                return
            self._say(Kind.UPDATE, len(update.batch))
            yield update

    def request_stop(self) -> None:
        """Asks for a stop; all a signal handler does. The next `poll` or collective raises Stop on every rank."""
        self._asked = True

    def poll(self) -> None:
        """Raises Stop if this rank was asked to stop or another one was; called between two network calls.

        Costs nothing to speak of and is no collective: it talks to the other ranks only to tell them of a stop.
        """
        if not self._held and (self._asked or self._others_ask()):
            if self._store is not None:
                self._store.set(self._request(), "asked")
            self._say(Kind.STOP, 0)

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Inside, no Stop is raised; a request waits. For saving and reporting, on all ranks alike."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    def _request(self) -> str:
        return f"tastemaker/stop/{self._stops}"

    def _others_ask(self) -> bool:
        now = time.monotonic()
        if self._store is None or now - self._looked < LOOK:
            return False
        self._looked = now
        return self._store.check([self._request()])

    def _say(self, kind: Kind, n: int) -> list[Message]:
        """Tells every rank what this one is about to do, and returns what each said; raises if they cannot go on.

        A rank that says STOP has left its place already, so all follow it, wherever they are.
        """
        stop = self._asked and kind not in DEAF and not self._held
        mine = torch.tensor([kind, n, stop], dtype=torch.int64, device="cpu")
        rows = [mine]
        if self.size > 1:
            rows = [torch.empty_like(mine) for _ in range(self.size)]
            dist.all_gather(rows, mine, group=self._control)
        said = [Message(Kind(row[0]), row[1], bool(row[2])) for row in torch.stack(rows).tolist()]
        kinds = [message.kind for message in said]
        if Kind.STOP not in kinds and len(set(kinds)) > 1:
            raise RuntimeError(_out_of_step(kinds))
        if Kind.STOP in kinds or any(message.stop for message in said):
            self._asked, self._stops = False, self._stops + 1
            raise Stop("the run was asked to stop.")
        return said


def _out_of_step(kinds: Sequence[Kind]) -> str:
    ended = [rank for rank, kind in enumerate(kinds) if kind is Kind.END]
    more = [rank for rank, kind in enumerate(kinds) if kind is Kind.UPDATE]
    if len(ended) + len(more) == len(kinds):
        return (
            f"only ranks {more} have one more update, ranks {ended} have none. An algorithm yields equally many "
            "updates on every rank; a rank without items yields an update of 0 items."
        )
    return f"ranks are out of step: {_by_rank([kind.name.lower() for kind in kinds])}."


def _by_rank(values: Sequence[object]) -> str:
    return ", ".join(f"rank {rank}: {value}" for rank, value in enumerate(values))


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The gradients in their order, together as long as they are of one dtype and device and up to BUCKET elements."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for gradient in gradients:
        bucket = kinds.setdefault((gradient.dtype, gradient.device), [])
        if bucket and sum(other.numel() for other in bucket) + gradient.numel() > BUCKET:
            yield bucket
            bucket = kinds[gradient.dtype, gradient.device] = []
        bucket.append(gradient)
    yield from kinds.values()
