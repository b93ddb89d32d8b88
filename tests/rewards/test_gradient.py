"""What is refused before an algorithm differentiates a reward, and in which words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards import DIFFERENTIABLE, TABLE, Sum
from tastemaker.rewards.facts import FACTS
from tastemaker.rewards.gradient import needs_gradient, refuse
from tastemaker.rewards.reward import ContractError, Scores

PROMPTS = Prompts.of(["a red circle"] * 4)
PICTURES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def tried(reward: Any, images: Tensor = PICTURES) -> None:
    needs_gradient(reward, images, PROMPTS, algorithm="draft", others=["ddpo", "reinforce"])


def refusal(work: Callable[[], None]) -> str:
    with pytest.raises(ContractError) as caught:
        work()
    return str(caught.value)


def bright(images: Tensor, prompts: Any) -> Tensor:
    return images.mean((1, 2, 3))


@pytest.mark.parametrize("name", [*sorted(DIFFERENTIABLE - set(FACTS)), "jpeg_proxy:0.3,brightness:-1"])
def test_what_has_a_gradient_passes(name: str) -> None:
    from tastemaker.rewards import named

    refuse(name, algorithm="draft", others=["ddpo"])
    images = PICTURES.clone()
    with torch.no_grad():
        tried(named(name), images)
    assert torch.equal(images, PICTURES) and not images.requires_grad


def test_what_returns_no_graph_is_told_what_to_use() -> None:
    from tastemaker.rewards import named

    assert refusal(lambda: tried(named("jpeg_compressibility"))) == (
        "draft differentiates the reward, but `jpeg_compressibility` returned a tensor without a graph. "
        "Use ddpo or reinforce with it. Or take `jpeg_proxy`, which has one."
    )
    told = refusal(lambda: tried(lambda images, prompts: images.detach().mean((1, 2, 3))))
    assert told.endswith("but `reward` returned a tensor without a graph. Use ddpo or reinforce with it.")
    told = refusal(lambda: tried(lambda images, prompts: [float(x.mean()) for x in images.detach()]))
    assert "without a graph" in told


def broken(images: Tensor, prompts: Any) -> Tensor:
    return (images - images.detach()).flatten(1).sum(1).sqrt()  # the slope of a root at zero


def partly_broken(images: Tensor, prompts: Any) -> Tensor:
    rows = torch.tensor([1.0, 0, 0, 0])[: len(images)]
    return bright(images, prompts) + rows * broken(images, prompts) + (1 - rows) * bright(images, prompts)


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (lambda images, prompts: torch.zeros(4, requires_grad=True) + 1, "whose graph does not lead to the pictures"),
        (lambda images, prompts: 0 * bright(images, prompts), "zero everywhere, for all of 4 pictures"),
        (
            lambda images, prompts: (images > 0.5).float().mean((1, 2, 3)) + 0 * bright(images, prompts),
            "zero everywhere",
        ),
        (broken, "`broken` has a gradient that is not finite, for 4 of 4 pictures"),
        (lambda images, prompts: images.numpy().mean((1, 2, 3)), "fails on pictures with a graph (RuntimeError: "),
    ],
)
def test_gradients_that_are_none(reward: Any, said: str) -> None:
    told = refusal(lambda: tried(reward))
    assert said in told and told.endswith("Use ddpo or reinforce with it.")


def test_a_zero_or_a_missing_score_among_others_is_no_reason() -> None:
    rows = torch.tensor([1.0, 0.0, 1.0, 1.0])
    tried(lambda images, prompts: rows * bright(images, prompts))

    def choosy(images: Tensor, prompts: Any) -> Scores:
        value = bright(images, prompts)
        return Scores(torch.cat([value[:1] / 0 * 0, value[1:]]))

    tried(choosy)


def test_a_sum_needs_it_of_every_term() -> None:
    reward = Sum({"jpeg_proxy": 1, "jpeg_incompressibility": 1})
    told = refusal(lambda: tried(reward))
    assert "but `jpeg_incompressibility` returned a tensor without a graph" in told and "`jpeg_proxy:-1`" in told
    tried(Sum({"jpeg_proxy": 1, bright: 1}))


@pytest.mark.parametrize(
    "spec",
    [
        "jpeg_compressibility",
        {"name": "jpeg_compressibility"},
        "brightness:1,jpeg_compressibility:2",
        {"sum": [{"name": "jpeg_compressibility", "weight": 2}, "brightness"]},
        Sum({"brightness": 1, "jpeg_compressibility": 2}),
    ],
)
def test_names_without_a_gradient_are_refused_unseen(spec: Any) -> None:
    told = refusal(lambda: refuse(spec, algorithm="draft", others=["ddpo", "reinforce"], key="--reward"))
    assert told == (
        "--reward: draft differentiates the reward, but `jpeg_compressibility` has no gradient to the picture. "
        "Use ddpo or reinforce with it. Or take `jpeg_proxy`, which has one."
    )


def test_the_table_says_who_has_one() -> None:
    for name in TABLE:
        if name in DIFFERENTIABLE:
            refuse(name, algorithm="draft", others=[])
        else:
            assert refusal(lambda name=name: refuse(name, algorithm="draft", others=[])).count(f"`{name}`") == 1  # type: ignore[misc]


def test_of_files_and_objects_nothing_is_known_yet() -> None:
    for spec in ("nowhere.py:f", "nowhere.py:f:2,brightness", bright, {"name": "nowhere.py:f", "weight": 2}, "no_such"):
        refuse(spec, algorithm="draft", others=[])
