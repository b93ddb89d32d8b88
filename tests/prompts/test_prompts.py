import random

import pytest

from tastemaker.prompts.prompts import Prompts


def test_is_the_sequence_of_its_texts() -> None:
    prompts = Prompts.of(["a", "b", "a"], [1, 2, 3])
    assert list(prompts) == ["a", "b", "a"] and len(prompts) == 3 and prompts[1] == "b" and "b" in prompts
    assert prompts.ids == (0, 1, 2) and prompts.groups == (0, 1, 2) and Prompts.of(["a"]).metadata == (None,)


def test_take_keeps_rows_together() -> None:
    prompts = Prompts.of(["a", "b", "c"], ["A", "B", "C"]).take([2, 0])
    assert prompts == Prompts(("c", "a"), (2, 0), (2, 0), ("C", "A"))
    assert Prompts.of(["a", "b", "c"])[1:].ids == (1, 2)


def test_repeat_makes_groups_with_ids_of_their_own() -> None:
    prompts = Prompts.of(["a", "b"], ["A", "B"]).repeat(3)
    assert prompts.texts == ("a",) * 3 + ("b",) * 3 and prompts.metadata == ("A",) * 3 + ("B",) * 3
    assert prompts.ids == tuple(range(6)) and prompts.groups == (0, 0, 0, 1, 1, 1)
    # a share of the rows gets the same ids as within the whole
    assert Prompts.of(["a", "b"]).take([1]).repeat(3).ids == (3, 4, 5)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_split_loses_nothing(n: int) -> None:
    prompts = Prompts.of(list("abcde"))
    parts = prompts.split(n)
    assert [i for part in parts for i in part.ids] == list(range(5)) and {len(p) for p in parts[:-1]} <= {n}
    assert len(parts[-1]) <= n


def test_refuses_what_is_not_rows() -> None:
    with pytest.raises(ValueError, match="the one text 'a red circle'"):
        Prompts.of("a red circle")
    with pytest.raises(ValueError, match="2 texts, 2 ids, 2 groups and 1 metadata"):
        Prompts.of(["a", "b"], [1])
    for call in (Prompts.of(["a"]).repeat, Prompts.of(["a"]).split):
        with pytest.raises(ValueError, match="1 or more"):
            call(0)


def test_rows_are_values() -> None:
    prompts = Prompts.of(["a", "b"])
    assert hash(prompts) == hash(prompts.take([0, 1])) and random.Random(0).choice(prompts) in ("a", "b")
