"""TRL's functions as ours: what they are given, what is read of their answers, what they are called."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tastemaker.compat.callbacks import NoTracker, listed, named, prompts_of, reward_of, tracker_of
from tastemaker.prompts.prompts import Prompts
from tastemaker.prompts.sources import source
from tastemaker.rewards.reward import adapt

IMAGES = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
PROMPTS = Prompts.of(["a", "b"], [{"k": 1}, {"k": 2}])


def factory() -> Callable[..., Any]:
    def _fn(images: Any, prompts: Any, metadata: Any) -> Any:
        return [m["k"] for m in metadata], {}

    return _fn


class Judge:
    device = "cpu"

    def __call__(self, *parts: Any) -> Any:
        assert len(parts) == 3 and parts[1] == ("a", "b")
        return torch.ones(2), {"half": [0.5, 0.5], "words": ["x", "y"]}


@pytest.mark.parametrize(
    ("function", "name", "value", "parts"),
    [
        (factory(), "factory", [1.0, 2.0], {}),
        (Judge(), "Judge", [1.0, 1.0], {"half"}),
        (lambda images, prompts, metadata: (np.array([3, 4]), None), "reward", [3.0, 4.0], {}),
        (lambda images, prompts, metadata=None: torch.tensor([5.0, 6.0]), "reward", [5.0, 6.0], {}),
    ],
)
def test_a_reward_is_asked_and_read_as_trl_does(
    function: Any, name: str, value: list[float], parts: dict[str, Any]
) -> None:
    judge = adapt(reward_of(function))
    scores = judge(IMAGES, PROMPTS)
    assert scores.value.tolist() == value and set(scores.parts) == set(parts)
    assert judge.name == name and (judge.device is None) == (name != "Judge")


def test_prompts_of_numpy_and_lists_are_texts_and_pairs() -> None:
    drawn = source(prompts_of(lambda: [np.random.choice(["cat"]), 3])).draw(random.Random(0), 2)
    assert drawn.texts == ("cat", "cat") and drawn.metadata == (3, 3) and type(drawn.texts[0]) is str
    with pytest.raises(ValueError, match="prompt_function is a list; it is a function"):
        prompts_of(["a cat"])  # type: ignore[arg-type]


def test_what_hooks_get() -> None:
    batch = (IMAGES, ("a", "b"), ({}, {}), torch.ones(2), {"half": torch.ones(2)})
    assert listed([batch]) == [list(batch)]
    assert list(named(batch)) == ["images", "prompts", "prompt_metadata", "rewards"]
    silent = tracker_of([])
    assert isinstance(silent, NoTracker) and silent.name == "none"
    silent.log({"a": 1}, step=3)
    silent.log_images({"a": IMAGES}, step=3, commit=True)
    silent.log_table("t", ["a"], [[1]])
    assert tracker_of([7, 8]) == 7
