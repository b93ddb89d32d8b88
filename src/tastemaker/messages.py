"""What ranks say to each other before a collective, and what is wrong where they do not say the same."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple


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
    WHOLE = 9
    CALL = 10
    BACKWARD = 11


# Here a request to stop waits for the next place that listens.
DEAF = frozenset({Kind.END, Kind.TEXT, Kind.BARRIER, Kind.WHOLE, Kind.CALL, Kind.BACKWARD})


class Message(NamedTuple):
    """What one rank said before a collective."""

    kind: Kind
    n: int
    stop: bool


def awaited(said: Sequence[Message]) -> Message | None:
    """What all ranks do first, whatever they were about to do themselves: the same on every rank.

    A call of the network, the one of the smallest number where they differ; a backward pass where nobody calls.
    """
    calls = [message for message in said if message.kind is Kind.CALL]
    passes = [message for message in said if message.kind is Kind.BACKWARD]
    return min(calls or passes, key=lambda message: message.n, default=None)


def out_of_step(kinds: Sequence[Kind]) -> str:
    """Why ranks that are about to do different things cannot go on."""
    ended = [rank for rank, kind in enumerate(kinds) if kind is Kind.END]
    more = [rank for rank, kind in enumerate(kinds) if kind is Kind.UPDATE]
    if len(ended) + len(more) == len(kinds):
        return (
            f"only ranks {more} have one more update, ranks {ended} have none. An algorithm yields equally many "
            "updates on every rank; a rank without items yields an update of 0 items."
        )
    return f"ranks are out of step: {by_rank([kind.name.lower() for kind in kinds])}."


def by_rank(values: Sequence[object]) -> str:
    """One value a rank, in words."""
    return ", ".join(f"rank {rank}: {value}" for rank, value in enumerate(values))
