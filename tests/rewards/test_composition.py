"""What metadata ask for and how far boxes answer it: closed forms."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch

from tastemaker.prompts.sources import source
from tastemaker.rewards.composition import COLOURS, Found, Wish, answers, kept, queries, read, stands

SIDE = 10.0


def seen(wishes: tuple[Wish, ...], *objects: tuple[str, float, float], sure: float = 0.9) -> Found:
    """Boxes of side 10 with their middles at (x, y), by what they show: a class, or a colour and a class."""
    asked = queries(wishes)
    boxes = torch.tensor([[x - 5, y - 5, x + 5, y + 5] for _, x, y in objects]).reshape(-1, 4)
    scores = torch.full((len(objects), len(asked)), 0.01)
    for row, (what, _, _) in enumerate(objects):
        colour, _, name = what.rpartition(" ")
        scores[row, asked.index(name)] = sure - 0.01 * row
        if what in asked and colour:
            scores[row, asked.index(what)] = 0.5
    return Found(boxes, scores)


def said(metadata: Any, *objects: tuple[str, float, float]) -> dict[str, list[float]]:
    wishes = read(metadata)
    return answers(wishes, seen(wishes, *objects), threshold=0.3, overlap=0.5)


def row_of(what: str, n: int, y: float = 0.0) -> list[tuple[str, float, float]]:
    return [(what, 20.0 * k, y) for k in range(n)]


# ---- what is asked


def test_metadata_as_geneval_has_them() -> None:
    wishes = read(
        {
            "tag": "position",
            "include": [
                {"class": "cat", "count": 2, "color": "black"},
                {"class": "dog", "count": 1, "position": ["left of", 0]},
            ],
            "exclude": [{"class": "cat", "count": 3}, {"class": "car", "count": 1}],
        }
    )
    assert wishes == (
        Wish("cat", 2, 2, "black"),
        Wish("dog", 1, None, "", "left of", 0),
        Wish("car", 0, 0),
    )
    assert queries(wishes) == ["cat", "dog", "car", *(f"{colour} cat" for colour in COLOURS)]
    assert read({"include": [{"class": "cup", "colour": "beige"}]}) == (Wish("cup", colour="beige"),)
    assert queries((Wish("cup", colour="beige"),))[-1] == "beige cup"


def test_the_questions_of_our_prompts_are_read() -> None:
    rows = source("counting").draw(random.Random(0), 50)
    for text, metadata in zip(rows, rows.metadata, strict=True):
        (wish,) = read(metadata)
        assert wish.what == metadata["answers"][1] and wish.low == wish.high
        assert text.startswith(metadata["answers"][0]) and 2 <= wish.low <= 8
    assert read({"questions": ["How many cats are there in this image?"], "answers": ["two"]}) == (Wish("cats", 2, 2),)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (None, "no metadata that says what is to be seen"),
        ({"class": 3}, "no metadata that says what is to be seen"),
        ({"include": []}, "`include` is empty"),
        ({"include": [{"count": 2}]}, r"lists of entries with a class; found \{'count': 2\}"),
        ({"include": 3}, "lists of entries with a class; found 3"),
        ({"include": [{"class": "cat"}], "exclude": ["dog"]}, "found 'dog'"),
        ({"include": [{"class": "cat", "count": 0}]}, "count is 0; it is a whole number from 1"),
        ({"include": [{"class": "cat", "count": 3}], "exclude": [{"class": "cat", "count": 2}]}, "3 of cat are wanted"),
        ({"include": [{"class": "cat", "position": ["under", 0]}]}, "one of left of, right of, above, below"),
        ({"include": [{"class": "cat", "position": ["above", 4]}]}, "the place of an entry"),
        ({"questions": ["What is it?"], "answers": ["cat"]}, "no question of the metadata"),
    ],
)
def test_other_metadata_are_told_of(metadata: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(metadata)


# ---- what is found


@pytest.mark.parametrize(
    ("n", "score"), [(0, 0), (1, 1 / 3), (2, 2 / 3), (3, 1), (4, 2 / 3), (5, 1 / 3), (6, 0), (9, 0)]
)
def test_a_count_is_graded_by_its_distance(n: int, score: float) -> None:
    exact = {"include": [{"class": "cat", "count": 3}], "exclude": [{"class": "cat", "count": 4}]}
    assert said(exact, *row_of("cat", n))["count"] == [pytest.approx(score)]
    asked = {"questions": ["How many cats are there?", "What animal?"], "answers": ["three", "cat"]}
    assert said(asked, *row_of("cat", n))["count"] == [pytest.approx(score)]
    at_least = {"include": [{"class": "cat", "count": 3}]}
    assert said(at_least, *row_of("cat", n))["count"] == [pytest.approx(min(n / 3, 1))]


def test_what_is_to_be_absent() -> None:
    metadata = {"include": [{"class": "cat"}], "exclude": [{"class": "dog", "count": 1}]}
    assert said(metadata, ("cat", 0, 0))["count"] == [1, 1]
    assert said(metadata, ("cat", 0, 0), ("dog", 30, 0))["count"] == [1, 0]


def test_colours_of_the_surest() -> None:
    metadata = {"include": [{"class": "cat", "count": 2, "color": "black"}]}
    both = [("black cat", 0, 0), ("black cat", 20, 0)]
    assert said(metadata, *both)["colour"] == [1]
    assert said(metadata, both[0])["colour"] == [0.5]  # the other is missing
    assert said(metadata, both[0], ("white cat", 20, 0))["colour"] == [0.5]
    assert said(metadata, *both, ("white cat", 40, 0))["colour"] == [1]  # of the two that are surest
    assert said(metadata, ("white cat", 40, 0), *both)["colour"] == [0.5]
    assert said(metadata)["colour"] == [0] and said(metadata)["position"] == []


def test_positions_of_all_pairs() -> None:
    metadata = {"include": [{"class": "cat"}, {"class": "dog", "count": 2, "position": ["left of", 0]}]}
    assert said(metadata, ("cat", 100, 0), ("dog", 0, 0), ("dog", 20, 0))["position"] == [1]
    assert said(metadata, ("cat", 100, 0), ("dog", 0, 0), ("dog", 200, 0))["position"] == [0.5]
    assert said(metadata, ("cat", 100, 0), ("dog", 200, 0))["position"] == [0]
    assert said(metadata, ("dog", 0, 0))["position"] == [0]  # of nothing


@pytest.mark.parametrize(
    ("angle", "relations"), [(0, {"right of"}), (90, {"below"}), (180, {"left of"}), (270, {"above"})]
)
def test_where_a_box_stands(angle: float, relations: set[str]) -> None:
    """Around the clock: within 60 degrees of a side, less what the boxes' sizes take away; overlapping ones nowhere."""
    box = torch.tensor([-5.0, -5.0, 5.0, 5.0])

    def of(away: float, degrees: float) -> set[str]:
        x, y = away * math.cos(math.radians(degrees)), away * math.sin(math.radians(degrees))
        moved = box + torch.tensor([x, y, x, y])
        return {relation for relation in ("left of", "right of", "above", "below") if stands(moved, box, relation)}

    assert of(40, angle) == relations
    assert of(1e6, angle + 59.9) > relations and of(1e6, angle + 60.1).isdisjoint(relations)
    assert of(3.9, angle) == set()  # the way less 0.1 (10 + 10) is less than half the way
    assert of(4.1, angle) == relations
    assert not stands(box, box, "above")


def test_boxes_of_the_same_object_are_one() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 10, 21], [30, 0, 40, 10.0]])
    assert kept(boxes, 0.5) == [0, 2, 4]  # with the first: 1, exactly a half, less; the fourth is the third
    assert kept(boxes, 0.49) == [0, 3, 4] and kept(boxes, 0.4) == [0, 4]
    assert kept(boxes, 1.0) == [0, 1, 2, 3, 4] and kept(boxes[:0], 0.5) == []


def test_a_box_counts_once_and_only_where_the_detector_is_sure() -> None:
    wishes = read({"include": [{"class": "cat"}, {"class": "dog"}]})
    boxes = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10], [30, 0, 40, 10], [60, 0, 70, 10.0]])
    scores = torch.tensor([[0.5, 0.4], [0.6, 0.1], [0.35, 0.7], [0.3, 0.2]])
    found = answers(wishes, Found(boxes, scores), threshold=0.3, overlap=0.5)
    assert found["count"] == [1, 1]  # the first two are one cat; the third is a dog alone; the last is no more than 0.3
    two = read({"include": [{"class": "cat", "count": 2}, {"class": "dog", "count": 2}]})
    assert answers(two, Found(boxes, scores), threshold=0.3, overlap=0.5)["count"] == [0.5, 0.5]
    assert answers(two, Found(boxes, scores), threshold=0.2, overlap=1)["count"] == [1, 0.5]
    assert answers(two, Found(boxes[:0], scores[:0]), threshold=0.3, overlap=0.5)["count"] == [0, 0]
