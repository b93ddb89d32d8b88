"""Which pairs are drawn: evenly, each once, the same for the same seed, sides by a coin."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tastemaker.voting.pictures import Picture, pictures
from tastemaker.voting.plan import Duo, _turns, _within, plan
from votables import names, picture, sampled

PROMPTS = ["a cat", "a dog", "a cow"]


def folder(tmp_path: Path, per_prompt: int = 5) -> list[Picture]:
    return pictures(sampled(tmp_path / "s", PROMPTS * per_prompt))


def test_it_is_a_function_of_the_seed(tmp_path: Path) -> None:
    found = folder(tmp_path)
    first = names(plan(found, count=12, seed=3))
    assert first == names(plan(list(reversed(found)), count=12, seed=3)) == names(plan(found, count=30, seed=3))[:12]
    assert first != names(plan(found, count=12, seed=4))


def test_prompts_take_turns_and_pictures_are_shown_alike(tmp_path: Path) -> None:
    found = folder(tmp_path)
    for count in range(1, 31):
        drawn = plan(found, count=count, seed=1)
        assert len(drawn) == len({one.duo for one in drawn}) == count
        assert all(one.left.prompt == one.right.prompt for one in drawn)
        turns = Counter(one.left.prompt for one in drawn)
        assert max(turns.values()) - min(turns[prompt] for prompt in PROMPTS) <= 1
        shown = Counter(side.file for one in drawn for side in one)
        assert max(shown.values()) - min(shown[one.file] for one in found) <= 2
    assert len(plan(found, count=1000, seed=1)) == 3 * 10  # each pair once


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 12), seed=st.integers(0, 9), share=st.floats(0, 1))
def test_within_a_prompt_pictures_are_shown_about_equally_often(n: int, seed: int, share: float) -> None:
    shots = [Picture("a cat", Path(f"/{k}"), str(k)) for k in range(n)]
    drawn = list(_within(shots, seed, (), lambda a, b: False))
    assert len(drawn) == len(set(map(frozenset, drawn))) == n * (n - 1) // 2
    some = drawn[: round(share * len(drawn))]
    shown = Counter(one.file for pair in some for one in pair)
    assert max(shown[one.file] for one in shots) - min(shown[one.file] for one in shots) <= 2


@pytest.mark.parametrize("done", range(0, 31, 5))
def test_it_goes_on_as_it_would_have_done(tmp_path: Path, done: int) -> None:
    found = folder(tmp_path)
    whole = plan(found, count=30, seed=2)
    rest = plan(found, count=30 - done, seed=2, done=[one.duo for one in whole[:done]])
    assert names(rest) == names(whole[done:])


def test_what_was_voted_on_is_not_drawn_again_and_new_pictures_come_first(tmp_path: Path) -> None:
    found = folder(tmp_path, 3)
    old = plan(found, count=9, seed=0)
    done = [one.duo for one in old]
    assert plan(found, count=9, seed=0, done=done) == []
    more = pictures(sampled(tmp_path / "s", PROMPTS * 4))
    new = {one.file for one in more} - {one.file for one in found}
    drawn = plan(more, count=3, seed=0, done=done)
    assert len(drawn) == 3 and all({one.left.file, one.right.file} & new for one in drawn)


def test_sides_are_a_coin(tmp_path: Path) -> None:
    found = pictures(sampled(tmp_path / "s", ["a cat"] * 30))
    drawn = plan(found, count=400, seed=0)
    ordered = sum(int(one.left.file.stem) < int(one.right.file.stem) for one in drawn)
    assert abs(ordered - 200) < 4 * 10  # four standard deviations


def test_pictures_of_the_same_bytes_are_no_pair(tmp_path: Path) -> None:
    sampled(tmp_path / "s", ["a cat"] * 4)
    for k in (1, 3):
        picture(tmp_path / "s" / f"{k}.png", 0)  # as number 0
    found = pictures(tmp_path / "s")
    drawn = {frozenset(int(side.file.stem) for side in one) for one in plan(found, count=9, seed=0)}
    assert drawn == {frozenset((2, k)) for k in (0, 1, 3)}
    link = tmp_path / "s" / "2.png"
    link.unlink()
    link.symlink_to("0.png")
    assert plan(found, count=9, seed=0) == []


def test_of_two_places_the_kth_meets_the_kth(tmp_path: Path) -> None:
    texts = ["a cat", "a dog", "a cat", "a fox"]
    a = pictures(sampled(tmp_path / "a", texts))
    b = pictures(sampled(tmp_path / "b", [*texts[:3], "a cow"], first=100), place=1)
    drawn = plan([*a, *b], count=9, seed=0)
    assert len(drawn) == 3 and all({one.left.place, one.right.place} == {0, 1} for one in drawn)
    assert all(one.left.name == one.right.name for one in drawn)
    assert sorted(one.left.prompt for one in drawn) == ["a cat", "a cat", "a dog"]
    assert [one.left.prompt for one in drawn[:2]] in (["a cat", "a dog"], ["a dog", "a cat"])


def test_of_two_places_the_fewer_come_round_again(tmp_path: Path) -> None:
    a = pictures(sampled(tmp_path / "a", ["a cat"] * 2))
    b = pictures(sampled(tmp_path / "b", ["a cat"] * 4, first=100), place=1)
    drawn = plan([*a, *b], count=9, seed=0)
    assert len({one.duo for one in drawn}) == 4
    shown = Counter((side.place, side.name) for one in drawn for side in one)
    assert set(shown.values()) == {1, 2} and shown[0, "0.png"] == shown[0, "1.png"] == 2


def test_of_two_places_neither_side_tells_the_place(tmp_path: Path) -> None:
    texts = [f"prompt {k}" for k in range(200)]
    shots = [Picture(text, tmp_path / f"{place}-{text}", text, place) for text in texts for place in (0, 1)]
    for k, one in enumerate(shots):
        one.file.write_text(str(k).zfill(4))
    first = sum(one.left.place == 0 for one in plan(shots, count=200, seed=5))
    assert abs(first - 100) < 4 * 7.1
    a, b = (plan(shots, count=200, seed=seed) for seed in (5, 6))
    assert {one.left for one in a} != {one.left for one in b}


def test_turns_begin_with_the_prompt_that_has_had_the_fewest() -> None:
    pairs = {name: iter([(Picture(name, Path(name), name), Picture(name, Path("x"), "x"))] * 3) for name in "ab"}
    order = [first.prompt for first, _ in _turns(pairs, Counter(a=2), 0)]
    assert order[:2] == ["b", "b"] and Counter(order) == {"a": 3, "b": 3}


def test_nothing_is_drawn_of_nothing() -> None:
    done: list[Duo] = []
    assert plan([], count=5, seed=0, done=done) == plan([], count=-1, seed=0) == []
