"""What the votes say: how many, whether a side was favoured, and which of two folders is preferred."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median
from typing import NamedTuple

from tastemaker.evaluation.statistics import FEW, Interval, bootstrap
from tastemaker.voting.places import titles
from tastemaker.voting.session import Session, Vote


class Summary(NamedTuple):
    """Shares are NaN where nothing tells them."""

    votes: int
    ties: int
    left: float  # share of left ones among choices, ties apart: near a half where sides do not matter
    seconds: float  # the median vote's


def summary(votes: Sequence[Vote]) -> Summary:
    """Of all votes of a session."""
    ties = sum(one.vote == "tie" for one in votes)
    left = sum(one.vote == "left" for one in votes)
    seconds = [one.seconds for one in votes if math.isfinite(one.seconds)]
    choices = len(votes) - ties
    return Summary(len(votes), ties, left / choices if choices else math.nan, median(seconds) if seconds else math.nan)


def second(session: Session) -> Interval:
    """Share of votes that prefer the second folder, a tie half of one, with its 95 % bootstrap interval over prompts.

    Errors: ValueError where one folder alone was voted on.
    """
    if len(session.folders) != 2:
        raise ValueError("one folder alone was voted on: name two to compare them.")
    wins = [
        0.5 if one.vote == "tie" else float(one.pair.places[("left", "right").index(one.vote)]) for one in session.votes
    ]
    return bootstrap(wins, [one.pair.prompt for one in session.votes], key=("votes", session.seed))


def told(session: Session) -> Iterator[str]:
    """The summary in lines for the terminal."""
    found = summary(session.votes)
    if not found.votes:
        yield "no votes"
        return
    sides = "" if math.isnan(found.left) else f"; {found.left:.0%} of the choices were on the left".replace("%", " %")
    time = "" if math.isnan(found.seconds) else f"; {found.seconds:.1f} seconds each (median)"
    yield f"{many(found.votes, 'vote')}, {many(found.ties, 'tie')}{sides}{time}"
    if len(session.folders) == 2:
        a, b = titles(session.folders)
        share = second(session)
        prompts = len({one.pair.prompt for one in session.votes})
        few = f"; with {many(prompts, 'prompt')} the interval is too narrow" if 1 < prompts < FEW else ""
        reach = "" if math.isnan(share.low) else f" [{_share(share.low)}, {_share(share.high)}]"
        yield (
            f"{b} is preferred to {a} in {_share(share.mean)}{reach} of {many(found.votes, 'vote')} "
            f"(ties count half{few})"
        )


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def many(count: int, what: str) -> str:
    """1 vote, 2 votes."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
