"""The reward's contract, credit, and what a checkpoint gives back: over arbitrary functions, scores and trees."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tastemaker.credit import per_group, whiten
from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards.reward import ContractError, check, score
from tastemaker.training.checkpoint import Checkpoints, Cursor
from tastemaker.training.encoding import decoded, encoded
from training.test_checkpoint import TENSORS, exact

MODEST = settings(derandomize=True, deadline=None, max_examples=60, database=None)
WEIGHTS = st.lists(st.floats(-3, 3, width=32), min_size=4, max_size=4)
COUNT = st.integers(2, 6)


def pictures(n: int, seed: int) -> Tensor:
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def pure(weights: list[float]) -> Any:
    """A function of each picture and its own prompt."""

    def reward(images: Tensor, prompts: Prompts) -> Tensor:
        own = torch.tensor([float(len(text)) for text in prompts])
        return weights[3] * own + (images.mean((2, 3)) * torch.tensor(weights[:3])).sum(1)

    return reward


@MODEST
@given(WEIGHTS, COUNT, st.integers(0, 99), st.lists(st.text("ab", min_size=1, max_size=9), min_size=6, max_size=6))
def test_a_function_of_a_picture_and_its_prompt_passes_and_calls_may_be_cut_anywhere(
    weights: list[float], n: int, seed: int, texts: list[str]
) -> None:
    images, prompts, reward = pictures(n, seed), Prompts.of(texts[:n]), pure(weights)
    check(reward, images, prompts)
    whole = score(reward, images, prompts).value
    parts = [score(reward, images[k : k + 2], prompts[k : k + 2]).value for k in range(0, n, 2)]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-5)


HOW = {
    "place": lambda value: value + (1 + value.max() - value.min()) * torch.arange(len(value)),
    "sorted": lambda value: value.sort().values,
    "rank": lambda value: value.argsort().argsort().float(),
    "whitened": lambda value: (value - value.mean()) / value.std(correction=0).clamp(min=1e-12),
    "best of the call": lambda value: value / value.max(),
}


@MODEST
@given(st.permutations([0.1, 0.5, 0.9]).map(lambda rest: [0.3, *rest]), st.sampled_from(sorted(HOW)))
def test_a_function_of_the_place_or_the_company_is_refused(values: list[float], how: str) -> None:
    """Whatever the order of the pictures behind the first, which is the one that is judged alone."""

    def reward(images: Tensor, prompts: Prompts) -> Tensor:
        found: Tensor = HOW[how](images.mean((1, 2, 3)))
        return found

    images = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    with pytest.raises(ContractError, match="in another order|must not depend on the other pictures"):
        check(reward, images, Prompts.of(["a"] * 4))


# ---- credit


SCORES = st.lists(st.none() | st.floats(-1e3, 1e3, width=32), min_size=1, max_size=12)


@MODEST
@given(SCORES)
def test_credit_is_as_if_pictures_without_a_score_were_absent(found: list[float | None]) -> None:
    rewards = torch.tensor([float("nan") if one is None else one for one in found])
    ok = rewards.isfinite()
    credit = whiten(rewards)
    assert torch.equal(credit.isfinite(), ok) and torch.equal(credit[ok], whiten(rewards[ok]))
    assert float(credit[ok].abs().sum()) == 0 or float(rewards[ok].max()) > float(rewards[ok].min())


@MODEST
@given(st.lists(st.tuples(st.integers(0, 2), st.none() | st.floats(-50, 50, width=32)), min_size=1, max_size=12))
def test_credit_in_groups_is_that_of_each_group_alone(found: list[tuple[int, float | None]]) -> None:
    groups = torch.tensor([group for group, _ in found])
    rewards = torch.tensor([float("nan") if one is None else one for _, one in found])
    credit = per_group(rewards, groups)
    for group in set(groups.tolist()):
        own = groups == group
        alone = per_group(rewards[own], groups[own])
        assert torch.allclose(credit[own], alone, equal_nan=True)


# ---- checkpoints


LEAF = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(list(TENSORS.values()))
)
KEYS = (
    st.sampled_from(["$tuple", "$dict", "$tensor", "$float", "a", "a/b", "", "b"]) | st.integers() | st.text(max_size=3)
)
TREES = st.recursive(
    LEAF,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(MODEST, max_examples=100)
@given(TREES)
def test_any_tree_with_tensors_comes_back_bit_for_bit(tree: Any) -> None:
    """Through JSON as text, as a file holds it."""
    plain, tensors = encoded(tree)
    assert exact(decoded(json.loads(json.dumps(plain, allow_nan=False)), tensors)) == exact(tree)


@settings(MODEST, max_examples=15)
@given(TREES, TREES, st.integers(0, 9), st.integers(0, 3))
def test_any_tree_comes_back_from_a_checkpoint(data: Any, own: Any, iteration: int, updates: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Checkpoints(Path(folder)).save(Cursor(iteration, updates), TENSORS, data, per_rank=[own])
        found = Checkpoints.open(path)
    assert found.cursor == (iteration, updates) and exact(found.tensors) == exact(TENSORS)
    assert exact(found.data) == exact(data) and exact(found.per_rank[0]) == exact([own])
