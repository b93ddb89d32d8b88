"""Which pairs are shown, in which order, and which picture stands on which side.

Every choice is a function of the seed and of what has been voted on, so that a session which goes on after a pause
goes on as it would have done. Within a prompt the picture that was shown least meets the next one that it has not met;
prompts take turns, those with the fewest pairs first. Of two places the k-th pictures of a prompt meet, which in
folders that were drawn alike began from the same noise.
"""

from __future__ import annotations

import hashlib
from bisect import insort
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from heapq import heapify, heappop, heapreplace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tastemaker.voting.pictures import Picture

Duo = frozenset[Path]  # the files of two pictures, whichever was left
Same = Callable[[Picture, Picture], bool]


class Shown(NamedTuple):
    """Two pictures of one prompt as they stand on the page."""

    left: Picture
    right: Picture

    @property
    def duo(self) -> Duo:
        return frozenset((self.left.file, self.right.file))


def plan(found: Sequence[Picture], *, count: int, seed: int, done: Collection[Duo] = ()) -> list[Shown]:
    """At most `count` pairs, none of them done before, none of two files with the same bytes."""
    prompts: dict[str, list[Picture]] = {}
    for one in found:
        prompts.setdefault(one.prompt, []).append(one)
    two, same = any(one.place for one in found), _comparison()
    pairs = {
        text: _across(shots, done, same) if two else _within(shots, seed, done, same) for text, shots in prompts.items()
    }
    home = {one.file: text for text, shots in prompts.items() for one in shots}
    turns = Counter(home[key] for duo in done for key in islice(duo, 1) if key in home)
    drawn = islice(_turns(pairs, turns, seed), max(0, count))
    return [_sides(first, second, seed) for first, second in drawn]


def _turns(
    pairs: dict[str, Iterator[tuple[Picture, Picture]]], turns: Counter[str], seed: int
) -> Iterator[tuple[Picture, Picture]]:
    """The prompts' pairs; next is always the prompt that has had the fewest."""
    heap = [(turns[text], _draw(seed, "turn", turns[text], text), text) for text in pairs]
    heapify(heap)
    while heap:
        had, _, text = heap[0]
        pair = next(pairs[text], None)
        if pair is None:
            heappop(heap)
        else:
            heapreplace(heap, (had + 1, _draw(seed, "turn", had + 1, text), text))
            yield pair


def _within(shots: list[Picture], seed: int, done: Collection[Duo], same: Same) -> Iterator[tuple[Picture, Picture]]:
    """Pairs of one prompt's pictures: the one that was shown least, with the next that it has not met."""
    shown, met = Counter(key for duo in done for key in duo), set(done)

    def entry(k: int) -> tuple[int, int, int]:
        times = shown[shots[k].file]
        return times, _draw(seed, "picture", times, shots[k].name), k

    order = sorted(map(entry, range(len(shots))))
    while order:
        a = order.pop(0)[2]
        one = shots[a]
        others = ((at, shots[b]) for at, (_, _, b) in enumerate(order))
        free = ((at, b) for at, b in others if frozenset((one.file, b.file)) not in met and not same(one, b))
        at, other = next(free, (-1, None))
        if other is None:
            continue  # it has met all that are left
        b = order.pop(at)[2]
        met.add(frozenset((one.file, other.file)))
        shown.update((one.file, other.file))
        insort(order, entry(a))
        insort(order, entry(b))
        yield one, other


def _across(shots: list[Picture], done: Collection[Duo], same: Same) -> Iterator[tuple[Picture, Picture]]:
    """Pairs of one prompt's pictures of two places; the fewer ones come round again."""
    first, second = ([one for one in shots if one.place == place] for place in (0, 1))
    for k in range(max(len(first), len(second)) if first and second else 0):
        a, b = first[k % len(first)], second[k % len(second)]
        if frozenset((a.file, b.file)) not in done and not same(a, b):
            yield a, b


def _sides(first: Picture, second: Picture, seed: int) -> Shown:
    """Neither the order of the files nor of the places tells the side."""
    first, second = sorted((first, second), key=lambda one: (one.place, one.name))
    turned = _draw(seed, "side", first.place, first.name, second.name) % 2
    return Shown(second, first) if turned else Shown(first, second)


def _draw(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


def _comparison() -> Same:
    """Whether two pictures are the same file or have the same bytes; read only where they are equally long."""

    @cache
    def size(key: Path) -> int:
        return key.stat().st_size

    @cache
    def digest(key: Path) -> bytes:
        return hashlib.blake2b(key.read_bytes()).digest()

    def same(a: Picture, b: Picture) -> bool:
        return a.file == b.file or (size(a.file) == size(b.file) and digest(a.file) == digest(b.file))

    return same
