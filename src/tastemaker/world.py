"""The other processes of a run: how they stay in step, and what they add up.

Ranks move in lockstep. Before each collective every rank sends one small message [kind, n, stop] over gloo, so that a
rank that has run ahead is named instead of hanging the others, and a request to stop reaches all of them at once.
What follows from a round of messages is a function of the messages alone, so every rank comes to the same conclusion.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tastemaker import groups, shards, summing
from tastemaker.messages import DEAF, Kind, Message, awaited, by_rank, out_of_step

LOOK = 0.5  # seconds between two looks for another rank's stop request while nothing else is exchanged.


class Stop(Exception):
    """This run was asked to stop. Every rank raises it, each at the next place where it listens."""


class Noticeboard(Protocol):
    """The store all ranks reach, as far as it is used here."""

    def set(self, key: str, value: str) -> None: ...

    def check(self, keys: list[str]) -> bool: ...


class HasBatch(Protocol):
    """An update, as far as ranks need to know it."""

    @property
    def batch(self) -> Sized: ...


class Filler(Protocol):
    """What a rank does for others where every call of a network takes all ranks, for its weights are cut over them."""

    @property
    def made(self) -> int:
        """Calls with a graph that wait for their backward pass."""

    def fill(self, call: int) -> None:
        """One call of that number, whose answer nobody asks for."""

    def nothing(self) -> Tensor:
        """Zero, with the graph of all those calls: its gradient is zeros."""

    def join(self) -> None:
        """The backward pass of `nothing`."""

    def drop(self) -> None: ...


U = TypeVar("U", bound=HasBatch)


class World:
    """All processes of this run; `World()` is one alone and `World.here()` joins the others.

    Every method but `request_stop` and `poll` is a collective, if it does not say otherwise: all ranks call it, in the
    same order.
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
        self._filler: Filler | None = None

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

        Sharded ones are the sum already, which the backward pass makes. Ranks pass the same parameters in the same
        order. They end with the same bits.
        """
        parameters = list(parameters)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        sizes = [message.n for message in self._say(Kind.GRADIENTS, sum(p.numel() for p in parameters))]
        if len(set(sizes)) > 1:
            raise RuntimeError(f"ranks train different weights: {by_rank(sizes)} numbers of them.")
        if self.size > 1 and not self.sharded:
            summing.add([p.grad for p in parameters if p.grad is not None], self._control)

    @property
    def sharded(self) -> bool:
        """Whether the weights are cut over the ranks. No collective."""
        return self._filler is not None

    def share(self, filler: Filler) -> None:
        """From now on the calls of this network are made by all ranks together. No collective."""
        self._filler = filler

    def call(self, number: int) -> None:
        """Said before each call of a sharded network; ranks that are elsewhere, and make fewer, fill in."""
        self._say(Kind.CALL, number)

    def joined(self, loss: Tensor) -> Tensor:
        """The loss, said before its backward pass: with the calls of a sharded network that were made for others."""
        if self._filler is None:
            return loss
        self._say(Kind.BACKWARD, self._filler.made)
        return loss + self._filler.nothing()

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors as they are; sharded ones whole, on rank 0's CPU, one after the other, and nowhere else."""
        found, cut = dict(tensors), [name for name, tensor in tensors.items() if shards.is_sharded(tensor)]
        if cut:
            self._say(Kind.WHOLE, len(cut))
        for name in cut:
            whole = shards.whole(found.pop(name))
            if self.rank == 0:
                found[name] = whole.cpu()
        return found

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

        A rank that says STOP has left its place already, so all follow it, wherever they are. Where others are about to
        call a sharded network, or to go back through it, this one joins in and says its own again.
        """
        said = self._round(kind, n)
        while (first := awaited(said)) is not None and (first.kind, first.n) != (kind, n):
            assert self._filler is not None, "a call of all ranks, and this one has no sharded network"
            if first.kind is Kind.CALL:
                self._filler.fill(first.n)
            else:
                self._filler.join()
            if kind is Kind.BACKWARD:  # which takes back what was filled in meanwhile too
                n = self._filler.made
            said = self._round(kind, n)
        kinds = [message.kind for message in said]
        if first is None and len(set(kinds)) > 1:
            raise RuntimeError(out_of_step(kinds))
        return said

    def _round(self, kind: Kind, n: int) -> list[Message]:
        """What each rank says. Errors: Stop where one asks for it."""
        stop = self._asked and kind not in DEAF and not self._held
        mine = torch.tensor([kind, n, stop], dtype=torch.int64, device="cpu")
        rows = [mine]
        if self.size > 1:
            rows = [torch.empty_like(mine) for _ in range(self.size)]
            dist.all_gather(rows, mine, group=self._control)
        said = [Message(Kind(row[0]), row[1], bool(row[2])) for row in torch.stack(rows).tolist()]
        if any(message.stop or message.kind is Kind.STOP for message in said):
            self._asked, self._stops = False, self._stops + 1
            if self._filler is not None:
                self._filler.drop()
            raise Stop("the run was asked to stop.")
        return said
