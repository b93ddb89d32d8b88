"""How a sum of rewards is written, and what is said of what is no sum."""

from __future__ import annotations

from typing import Any

import pytest

from tastemaker.rewards.terms import as_text, is_sum, read


def judge(images: Any, prompts: Any) -> None:
    """Some reward."""


A, B = {"name": "a", "weight": 0.3}, {"name": "b", "weight": 1.0}


@pytest.mark.parametrize(
    "written",
    [
        "a:0.3,b:1",
        " a:.3 , b ",
        "a:3e-1,b:+1.",
        {"sum": "a:0.3,b"},
        {"sum": [A, B]},
        {"sum": [{"name": "a", "weight": "3e-1"}, {"name": "b"}]},
        {"sum": {"a": 0.3, "b": 1}},
        {"name": "a:0.3,b:1"},
        ["a:0.3", "b"],
        [("a", 0.3), ["b", "1"]],
        [("a", 0.3), "b:1"],
        [A, ({"name": "b"}, 1)],
    ],
)
def test_every_way_of_writing_gives_the_same_terms(written: Any) -> None:
    assert is_sum(written) and read(written, key="reward") == [A, B]


def test_what_is_given_to_the_class_alone() -> None:
    assert read({"a": 0.3, judge: -2}, key="Sum") == [A, {"name": judge, "weight": -2.0}]
    assert read(judge, key="Sum") == [{"name": judge, "weight": 1.0}]
    assert read("b", key="Sum") == [B]


@pytest.mark.parametrize("written", ["a", "a.py:f", "dir/a.py:f2", {"name": "a", "weight": 2}, None, judge, {"w": 1}])
def test_what_is_no_sum(written: Any) -> None:
    assert not is_sum(written)


def test_files_and_settings() -> None:
    assert read("dir/a.py:f:-0.5,b", key="reward") == [{"name": "dir/a.py:f", "weight": -0.5}, B]
    assert read("dir/a.py:f,b", key="reward") == [{"name": "dir/a.py:f", "weight": 1.0}, B]
    found = read([{"name": "a, b.py:f", "colour": "blue", "n": 2}], key="reward")  # in a dict a comma is a letter
    assert found == [{"name": "a, b.py:f", "weight": 1.0, "colour": "blue", "n": 2}]


def test_terms_as_a_line() -> None:
    assert as_text([A, {**B, "colour": "blue", "n": 2}]) == "a:0.3,b:1 (colour blue, n 2)"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("a:much,b:1", "--reward: the weight of `a` is 'much'; it is a finite number."),
        ("x.py:f:much,b:1", "--reward: the weight of `x.py:f` is 'much'"),
        ({"sum": {"a": True}}, "--reward: the weight of `a` is True"),
        ({"sum": {"a": None}}, "--reward: the weight of `a` is None"),
        ("a:1e999,b", "--reward: the weight of `a` is '1e999'"),
        ("a:1,,b:2", "--reward: a term is missing in `a:1,,b:2`"),
        ("a:1,", "--reward: a term is missing"),
        ([], "--reward: found a sum without terms"),
        ([("a", 1, 2)], "--reward: a term of a sum is a pair (reward, weight); found 3 entries."),
        ([{"weight": 1}], "--reward: a term of a sum is {name: NAME, weight: NUMBER}; found {'weight': 1}."),
        ({"name": "a:1,b", "colour": "blue"}, "--reward.colour: a sum has no setting of its own but `standardise`."),
        ({"sum": ["a"], "weight": 2}, "--reward.weight: a sum has no setting of its own but `standardise`."),
    ],
)
def test_errors_name_the_key(written: Any, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(written, key="--reward")
    assert str(caught.value).startswith(said)
