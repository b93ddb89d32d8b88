"""What a picture is to show, as the metadata of its prompt has it, and how far what a detector found is that.

The format is GenEval's (Ghosh et al. 2023, arXiv:2310.11513):

    {"include": [{"class": "cat", "count": 2, "color": "black"}, {"class": "dog", "position": ["left of", 0]}],
     "exclude": [{"class": "cat", "count": 3}]}

two black cats or more, but not three, and a dog to the left of the first entry's objects. Without a count it is 1.
The questions of the prompts `counting` are read too. Every asked count, colour and position is a question:

    count      n found, low to high wanted:  n / low below,  1 within,  max(0, 1 - (n - high) / high) above
    colour     share of the `low` surest objects whose surest colour is the wanted one
    position   share of pairs of surest objects that stand so: with c the way from one middle to the other and s the sum
               of their sizes, left of is  sign(c_x) max(|c_x| - 0.1 s_x, 0) / |c| < -1/2,  and so on

Departs from GenEval: 1. Its detector is a Mask2Former of 80 classes, its colours are a CLIP's choice for the masked
object; here one open-vocabulary detector says both. 2. Its scores are 0 or 1, which is `strict` here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tastemaker.prompts.english import number

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}  # axis, sign; y points down
NEAR, SLANT = 0.1, 0.5
KINDS = ("count", "colour", "position")
_NUMBERS = {number(n): n for n in range(100)}
_HOW_MANY = re.compile(r"how many (.+?) (are|can|do)\b", re.IGNORECASE)


class Wish(NamedTuple):
    """Objects of one class that a picture is to show."""

    what: str
    low: int = 1  # so many at least
    high: int | None = None  # and at most
    colour: str = ""
    relation: str = ""
    to: int = 0  # which wish's objects the relation is to


class Found(NamedTuple):
    """What a detector saw in one picture: boxes [N,4] (left, top, right, bottom in pixels), scores [N,queries]."""

    boxes: Tensor
    scores: Tensor


# ---- what is asked


def read(metadata: Any) -> tuple[Wish, ...]:
    """The wishes in a prompt's metadata. Errors: ValueError saying what is wrong with it."""
    if not isinstance(metadata, Mapping) or not metadata.keys() & {"include", "questions"}:
        raise ValueError("the prompt has no metadata that says what is to be seen: `include`, or questions and answers")
    if "include" not in metadata:
        return (_asked(metadata),)
    included = _entries(metadata["include"])
    limits = {str(one["class"]): _whole(one.get("count", 1)) - 1 for one in _entries(metadata.get("exclude", ()))}
    wishes = tuple(_wish(one, limits) for one in included)
    wishes += tuple(Wish(what, 0, high) for what, high in limits.items() if what not in {w.what for w in wishes})
    if not wishes:
        raise ValueError("the metadata's `include` is empty")
    for wish in wishes:
        if wish.relation and (wish.relation not in RELATIONS or not 0 <= wish.to < len(included)):
            raise ValueError(
                f"position is {[wish.relation, wish.to]}; it is one of {', '.join(RELATIONS)} and the place of an entry"
            )
    return wishes


def _entries(found: Any) -> Sequence[Mapping[str, Any]]:
    for one in found if isinstance(found, Sequence) and not isinstance(found, str) else [found]:
        if not isinstance(one, Mapping) or "class" not in one:
            raise ValueError(f"`include` and `exclude` are lists of entries with a class; found {one!r}")
    return list(found)


def _wish(entry: Mapping[str, Any], limits: Mapping[str, int]) -> Wish:
    relation, to = entry.get("position") or ("", 0)
    low, what = _whole(entry.get("count", 1)), str(entry["class"])
    high = limits.get(what)
    if high is not None and high < low:
        raise ValueError(f"{low} of {what} are wanted and {high + 1} are too many")
    return Wish(what, low, high, str(entry.get("color") or entry.get("colour") or ""), str(relation), int(to))


def _whole(count: Any) -> int:
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"count is {count!r}; it is a whole number from 1")
    return count


def _asked(metadata: Mapping[str, Any]) -> Wish:
    """The wish behind `How many cats are there in this image?` and `What animal is in this image?`."""
    count, what, many = None, "", ""
    for question, answer in zip(metadata["questions"], metadata.get("answers", ()), strict=False):
        if found := _HOW_MANY.match(str(question)):
            count, many = _NUMBERS.get(str(answer).lower()), found[1]
        else:
            what = what or str(answer)
    if count is None:
        raise ValueError("no question of the metadata is `How many ... are there` with a number for its answer")
    return Wish(what or many, count, count)


def queries(wishes: Sequence[Wish]) -> list[str]:
    """What a detector is asked for: every class, then every colour that an object with a wanted one may have."""
    classes = list(dict.fromkeys(wish.what for wish in wishes))
    coloured = [f"{colour} {wish.what}" for wish in wishes if wish.colour for colour in _colours(wish)]
    return [*classes, *dict.fromkeys(coloured)]


def _colours(wish: Wish) -> tuple[str, ...]:
    return COLOURS if wish.colour in COLOURS else (*COLOURS, wish.colour)


# ---- what is found


def answers(wishes: Sequence[Wish], found: Found, *, threshold: float, overlap: float) -> dict[str, list[float]]:
    """kind of question -> for each that is asked, from 0 to 1 how far it is so."""
    asked = queries(wishes)
    classes = list(dict.fromkeys(wish.what for wish in wishes))
    objects = dict(zip(classes, grouped(found, len(classes), threshold=threshold, overlap=overlap), strict=True))
    said: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for wish in wishes:
        here = objects[wish.what]
        said["count"].append(_counted(len(here), wish))
        surest = here[: wish.low]
        if wish.colour:
            columns = [asked.index(f"{colour} {wish.what}") for colour in _colours(wish)]
            which = found.scores[surest][:, columns].argmax(1).tolist()
            right = sum(_colours(wish)[place] == wish.colour for place in which)
            said["colour"].append(right / max(wish.low, 1))
        if wish.relation:
            others = objects[wishes[wish.to].what][: wishes[wish.to].low]
            pairs = [(found.boxes[a], found.boxes[b]) for a in surest for b in others if a != b]
            so = sum(stands(a, b, wish.relation) for a, b in pairs)
            said["position"].append(so / len(pairs) if pairs else 0.0)
    return said


def _counted(n: int, wish: Wish) -> float:
    if n < wish.low:
        return n / wish.low
    return 1.0 if wish.high is None or n <= wish.high else max(0.0, 1 - (n - wish.high) / max(wish.high, 1))


def grouped(found: Found, classes: int, *, threshold: float, overlap: float) -> list[list[int]]:
    """The boxes of each class, surest first: those surer of it than of any other, no two of them the same object."""
    best, which = found.scores[:, :classes].max(1) if len(found.scores) else (torch.zeros(0), torch.zeros(0))
    groups = []
    for one in range(classes):
        rows = ((which == one) & (best > threshold)).nonzero().flatten()
        rows = rows[best[rows].argsort(descending=True, stable=True)]
        groups.append([int(rows[place]) for place in kept(found.boxes[rows], overlap)])
    return groups


def kept(boxes: Tensor, overlap: float) -> list[int]:
    """Which boxes [N,4], surest first, share at most `overlap` of their union with each surer one that is kept."""
    sizes = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    places: list[int] = []
    for place in range(len(boxes)):
        surer = boxes[places]
        sides = torch.minimum(surer[:, 2:], boxes[place, 2:]) - torch.maximum(surer[:, :2], boxes[place, :2])
        shared = sides.clamp(min=0).prod(1)
        if not (shared > overlap * (sizes[places] + sizes[place] - shared)).any():
            places.append(place)
    return places


def stands(a: Tensor, b: Tensor, relation: str) -> bool:
    """Whether box a [4] stands so to box b: `left of` it, say."""
    axis, sign = RELATIONS[relation]
    way = (a[:2] + a[2:] - b[:2] - b[2:]) / 2
    sizes = a[2:] - a[:2] + b[2:] - b[:2]
    clear = way.sign() * (way.abs() - NEAR * sizes).clamp(min=0)
    return bool(sign * clear[axis] > SLANT * way.norm())
