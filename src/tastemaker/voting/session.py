"""A session of votes: the pairs to show, the votes on them, and the file that holds both.

with Session.open(["samples"], count=50) as session:
    for pair in session.left():
        session.cast(pair, "left", seconds=1.0)
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Self

from tastemaker.prompts.entries import at
from tastemaker.prompts.pairs import check_content, content
from tastemaker.voting.pictures import Picture, pictures, settled
from tastemaker.voting.places import places as folders_of
from tastemaker.voting.plan import Duo, Shown, plan
from tastemaker.voting.votes import VOTES, Row, VotesFile, chosen

COUNT = 200
FILE = "votes.jsonl"


class Pair(NamedTuple):
    """Two pictures of one prompt, as they stand on the page. `places`: of which folder each is, 0 or 1."""

    number: int
    prompt: str
    left: Path
    right: Path
    places: tuple[int, int]


class Vote(NamedTuple):
    """What somebody said of a pair, and how long it took."""

    pair: Pair
    vote: str  # left, right or tie
    seconds: float


class Session:
    """Pairs of pictures and votes on them; safe to use from several threads.

    pairs: those that were voted on, then those that are planned. votes: oldest first. folders: one, or the two that
    are compared.
    """

    def __init__(self, folders: Sequence[Path], pairs: Sequence[Pair], votes: Sequence[Vote], *, file: VotesFile,
                 seed: int) -> None:  # fmt: skip
        self.folders, self.pairs, self.votes, self.seed = list(folders), list(pairs), list(votes), seed
        self._file, self._lock, self._closed = file, threading.Lock(), False

    @classmethod
    def open(
        cls,
        places: Sequence[str | Path],
        *,
        count: int = COUNT,
        seed: int = 0,
        output: str | Path | None = None,
        prompt: str | None = None,
    ) -> Self:
        """Pairs of one folder, or of two that are compared: at most `count`, with those that were voted on before.

        output: the file of votes (default: votes.jsonl in the first folder). prompt: of pictures that have none.
        Errors: ValueError where there is no pair to show, and what `pictures` and `VotesFile` say.
        """
        if count < 1:
            raise ValueError(f"--count is {count}; it is a whole number of 1 or more.")
        named = [Path(one).expanduser() for one in places]
        folders = folders_of(named)
        found = [one for k, folder in enumerate(folders) for one in pictures(folder, place=k, prompt=prompt)]
        if not plan(found, count=1, seed=seed):
            raise ValueError(_why_none(found, folders))
        path = Path(output).expanduser() if output else named[0] / FILE
        file = VotesFile(path)
        try:
            voted = list(_voted(file, found, len(folders) == 2))
            done = [shown.duo for shown, _ in voted]
            planned = plan(found, count=count - len(done), seed=seed, done=done)
        except BaseException:
            file.close()
            raise
        pairs = [_pair(k, shown) for k, shown in enumerate([*(shown for shown, _ in voted), *planned])]
        votes = [Vote(pair, row["vote"], _seconds(row)) for pair, (_, row) in zip(pairs, voted, strict=False)]
        return cls(folders, pairs, votes, file=file, seed=seed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def output(self) -> Path:
        """The file of votes."""
        return self._file.path

    def left(self) -> list[Pair]:
        """The pairs without a vote."""
        with self._lock:
            voted = {one.pair.number for one in self.votes}
            return [pair for pair in self.pairs if pair.number not in voted]

    def cast(self, pair: Pair, vote: str, *, seconds: float = 0.0) -> None:
        """Writes a vote: left, right or tie. `seconds`: from the pair's appearance to the vote.

        Errors: ValueError where it is none, or the pair has one already; OSError where it cannot be written. Neither
        changes anything.
        """
        if vote not in VOTES:
            raise ValueError(f"{vote!r:.40} is no vote: say {', '.join(VOTES[:-1])} or {VOTES[-1]}.")
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"a vote does not take {seconds} seconds: give a number of 0 or more.")
        with self._lock:
            self._check_open()
            if self.pairs[pair.number : pair.number + 1] != [pair]:
                raise ValueError(f"pair {pair.number} is not one of this session: take pairs from `pairs` or `left()`.")
            if any(one.pair == pair for one in self.votes):
                raise ValueError(f"pair {pair.number} has its vote already: undo it first.")
            self._file.add(self._row(pair, vote, round(float(seconds), 3)))
            self.votes.append(Vote(pair, vote, round(float(seconds), 3)))

    def undo(self) -> Pair | None:
        """Takes the last vote back, also in the file; the pair it was on. None where it is of other pictures."""
        with self._lock:
            self._check_open()
            if not self.votes or not self._last_is_ours():
                return None
            self._file.undo()
            return self.votes.pop().pair

    def close(self) -> None:
        """Ends the session; the file is anybody's."""
        with self._lock:
            if not self._closed:
                self._file.close()
            self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the session is closed: open it again.")

    def _last_is_ours(self) -> bool:
        """Whether the file's last vote is on a pair of this session: other folders' votes may stand behind ours."""
        row, pair = self._file.rows[-1], self.votes[-1].pair
        return _duo(self._file, row) == frozenset((pair.left, pair.right))

    def _row(self, pair: Pair, vote: str, seconds: float) -> Row:
        row: Row = {"prompt": pair.prompt, "left": self._name(pair.left), "right": self._name(pair.right), "vote": vote}
        if vote != "tie":
            row["winner"], row["loser"] = chosen(row)
        row["content"] = {row[side]: content(file) for side, file in (("left", pair.left), ("right", pair.right))}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return row | {"seconds": seconds, "seed": self.seed, "pair": pair.number, "time": now}

    def _name(self, file: Path) -> str:
        """As seen from the file of votes where it lies below it, so that both can be moved together."""
        home = self.output.parent.resolve()
        inside = file.is_relative_to(home) and not file.relative_to(home).parts[0].startswith("~")
        return file.relative_to(home).as_posix() if inside else str(file)


def _pair(number: int, shown: Shown) -> Pair:
    left, right = shown
    return Pair(number, left.prompt, left.file, right.file, (left.place, right.place))


def _voted(file: VotesFile, found: Sequence[Picture], two: bool) -> Iterator[tuple[Shown, Row]]:
    """The votes on pairs that these folders still hold, each pair once; of two folders those between them."""
    known = {(one.prompt, one.file): one for one in found}
    seen: set[Duo] = set()
    for row in file.rows:
        left, right = (known.get((row["prompt"], _whole(file, row[side]))) for side in ("left", "right"))
        if left is None or right is None or (two and left.place == right.place):
            continue
        with at(f"{file.path}: the vote on {row['left']} and {row['right']}"):
            check_content(row, {row["left"]: left.file, row["right"]: right.file})
        shown = Shown(left, right)
        if shown.duo not in seen:
            seen.add(shown.duo)
            yield shown, row


def _whole(file: VotesFile, name: str) -> Path:
    return settled(file.path.parent / name)


def _duo(file: VotesFile, row: Row) -> Duo:
    return frozenset((_whole(file, row["left"]), _whole(file, row["right"])))


def _seconds(row: Row) -> float:
    found = row.get("seconds")
    return float(found) if isinstance(found, int | float) else math.nan


def _why_none(found: Sequence[Picture], folders: Sequence[Path]) -> str:
    """Why no two pictures make a pair."""
    if len(folders) == 2:
        prompts = [{one.prompt for one in found if one.place == place} for place in (0, 1)]
        if not prompts[0] & prompts[1]:
            return (
                f"{folders[0]} and {folders[1]} have no prompt in common: draw both with the same --prompts and --seed."
            )
        return f"all pictures of {folders[0]} and {folders[1]} are the same, byte by byte: there is nothing to choose."
    counts: dict[str, int] = {}
    for one in found:
        counts[one.prompt] = counts.get(one.prompt, 0) + 1
    if max(counts.values()) == 1:
        return (
            f"{folders[0]} has one picture of each prompt, {len(counts)} in all, so there is no pair to choose from: "
            "draw several of each, or name a second folder with the same prompts."
        )
    return f"pictures of the same prompt in {folders[0]} are all the same, byte by byte: there is nothing to choose."
