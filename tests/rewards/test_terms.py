"""How a sum of rewards is written, and what is said of what is no sum."""

from __future__ import annotations

from typing import Any

import pytest

from tastemaker.rewards.terms import as_text, is_sum, read, reward_of, split, whole


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


C = {"name": "c", "weight": 2.0, "clip": [0.0, None], "floor": -1.0, "colour": "blue"}
D = {"name": "d", "weight": 1.0, "at_least": 3.0, "settings": {"weight": 5, "clip": 2}}


@pytest.mark.parametrize(
    "written",
    [
        "c:2{clip: [0, null], floor: -1, colour: blue},d{at_least: 3, settings: {weight: 5, clip: 2}}",
        "(c:2 {floor: -1, clip: [0, ~], colour: blue}, d:1{at_least: '3', settings: {weight: 5, clip: 2}})",
        {"sum": [{"name": "c", "weight": 2, "clip": ("0", None), "floor": -1, "colour": "blue"}, D]},
        [({"name": "c", "colour": "blue"}, {"weight": 2, "clip": [0, None], "floor": -1}), D],
        {"sum": {"c": {k: v for k, v in C.items() if k != "name"}, "d": {k: v for k, v in D.items() if k != "name"}}},
        [
            {
                "name": "c",
                "weight": 2,
                "settings": {"colour": "blue"},
                "clip": [0, None],
                "floor": -1,
                "at_least": None,
            },
            D,
        ],
    ],
)
def test_what_a_sum_does_with_a_term_and_its_own_settings(written: Any) -> None:
    found = read(written, key="reward")
    assert is_sum(written) and found == [C, D] and whole(found, key="reward") == {"sum": found}
    assert reward_of(found[0]) == {"name": "c", "colour": "blue"}
    assert reward_of(found[1]) == {"name": "d", "weight": 5, "clip": 2} and reward_of(A) == "a"
    assert read(found, key="reward") == found


def test_lists_of_rewards_are_cut_where_no_bracket_is_open() -> None:
    written = "a, (a:0.3,b), c{clip: [0, 1], of: 'x,y'} ,d/e (1).py:f"
    assert split(written) == ["a", "(a:0.3,b)", "c{clip: [0, 1], of: 'x,y'}", "d/e (1).py:f"]
    assert [is_sum(one) for one in split(written)] == [False, True, True, False]
    assert read("(a:0.3,b)", key="") == [A, B] and len(read("(a),(b)", key="")) == 2


def test_standardise() -> None:
    for said in ("group", "iteration", None):
        assert whole({"sum": [A, B], "standardise": said}, key="") == {"sum": [A, B], "standardise": said}
    assert whole({"name": "a:0.3,b", "standardise": "none"}, key="") == {"sum": [A, B], "standardise": None}
    with pytest.raises(ValueError, match="^--reward.standardise is 'prompt'; it is one of group, iteration, or none."):
        whole({"sum": [A], "standardise": "prompt"}, key="--reward")


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
        ("a:1{clip: [0]}", "--reward: the clip of `a` is [0]; it is [LOW, HIGH], and null leaves one open."),
        ("a:1{clip: [2, 1]}", "--reward: the clip of `a` is [2, 1]; it is [LOW, HIGH]"),
        ("a:1{clip: [~, ~]}", "--reward: the clip of `a` is [None, None]; it is [LOW, HIGH]"),
        ("a:1{clip: [no, 1]}", "--reward: the clip of `a` is False; it is a finite number."),
        ("a:1{floor: low}", "--reward: floor of `a` is 'low'; it is a finite number."),
        ("a:-1{at_least: 2}", "--reward: at_least of `a` costs weight x what is missing: the weight is positive"),
        ("a{at_least: 2, clip: [0, 1]}", "--reward: at_least of `a` costs weight x what is missing"),
        ("a{floor:1}", "--reward: `floor:1` behind `a` needs a blank after its colon: {KEY: VALUE}."),
        ("a{clip: [0}", "--reward: `{clip: [0}` behind `a` is not of the form {KEY: VALUE, KEY: VALUE}."),
        ([{"name": "a", "of": 1, "settings": {"of": 2}}], "--reward: `settings` of `a` is {'of': 2}; it holds what"),
        ({"name": "a:1,b", "colour": "blue"}, "--reward.colour: a sum has no setting of its own but `standardise`."),
        ({"sum": ["a"], "weight": 2}, "--reward.weight: a sum has no setting of its own but `standardise`."),
    ],
)
def test_errors_name_the_key(written: Any, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(written, key="--reward")
    assert str(caught.value).startswith(said)
