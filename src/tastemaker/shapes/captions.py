"""Captions of the Shapes world and their split into training and held-out ones."""

import hashlib
from collections import Counter

from tastemaker.shapes.drawing import COLOURS, COUNTS, SHAPES, Scene

_WORDS = {1: "a", 2: "two", 3: "three", 4: "four"}
_SPLIT = "shapes-1"  # names the split: another text deals the captions anew


def caption(scene: Scene) -> str:
    """`a red circle`, `four green squares`: count, colour and shape, never the background."""
    article = "an" if scene.count == 1 and scene.colour[0] in "aeiou" else _WORDS[scene.count]
    return f"{article} {scene.colour} {scene.shape}{'s' if scene.count > 1 else ''}"


_SCENES: dict[str, tuple[int, str, str]] = {
    caption(Scene(count, colour, shape, "plain")): (count, colour, shape)
    for count in COUNTS
    for colour in COLOURS
    for shape in SHAPES
}


def _hash(text: str) -> bytes:
    return hashlib.blake2b(f"{_SPLIT}:{text}".encode(), digest_size=8).digest()


_HELD_OUT = frozenset(sorted(_SCENES, key=_hash)[: len(_SCENES) // 4])


def read(text: str) -> tuple[int, str, str] | None:
    """Count, colour and shape that a caption asks for; None where it is not a caption of this world."""
    return _SCENES.get(text.strip().lower())


def everything() -> tuple[str, ...]:
    """All 160 captions."""
    return tuple(_SCENES)


def train(count: int = 120) -> tuple[str, ...]:
    """The 75 % of captions that training may use, or `count` of them, evenly spread.

    Colours, shapes and numbers come about equally often; fewer captions are among more.
    Errors: ValueError where `count` is none of 1 to 120.
    """
    left = [text for text in _SCENES if text not in _HELD_OUT]
    if not 1 <= count <= len(left):
        raise ValueError(f"count is {count}; there are {len(left)} training captions: take 1 to {len(left)}.")
    if count == len(left):
        return tuple(left)
    used: Counter[tuple[int, int | str]] = Counter()
    chosen: set[str] = set()
    for _ in range(count):
        text = min(sorted(set(left) - chosen, key=_hash), key=lambda one: sum(used[part] for part in _parts(one)))
        chosen.add(text)
        used.update(_parts(text))
    return tuple(text for text in left if text in chosen)


def _parts(text: str) -> list[tuple[int, int | str]]:
    """Count, colour and shape of a caption, told apart by their place."""
    return list(enumerate(_SCENES[text]))


def heldout() -> tuple[str, ...]:
    """The 25 % of captions that evaluation uses: every colour, shape and count stands on both sides."""
    return tuple(text for text in _SCENES if text in _HELD_OUT)
