"""Whether a reward has a gradient to the picture: asked before an algorithm that differentiates it begins."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards import DIFFERENTIABLE, TABLE
from tastemaker.rewards.combine import Sum
from tastemaker.rewards.comparison import Comparison
from tastemaker.rewards.reward import ContractError, NamedReward, adapt
from tastemaker.rewards.terms import is_sum, read

# Rewards without a gradient -> what has one and asks for the same.
INSTEAD = {
    "jpeg_compressibility": "jpeg_proxy",
    "jpeg_incompressibility": "jpeg_proxy:-1",
    "shapes_alignment": "shapes_judge",
}


def refuse(spec: Any, *, algorithm: str, others: Sequence[str], key: str = "reward") -> None:
    """Refuses a reward, as a user writes it, or a term of a sum that is known to have no gradient.

    others: algorithms that take any reward. Of functions and objects nothing is known yet: `needs_gradient` tries them.
    Errors: ContractError that begins with `key`.
    """
    spec = spec.sum if isinstance(spec, Sum) else spec
    for one in [term["name"] for term in read(spec, key=key)] if is_sum(spec) else [spec]:
        name = one.get("name") if isinstance(one, Mapping) else one
        if is_sum(name) or isinstance(name, Sum):
            refuse(name, algorithm=algorithm, others=others, key=key)
        if isinstance(name, str) and name in TABLE and name not in DIFFERENTIABLE:
            raise _refusal(algorithm, f"`{name}` has no gradient to the picture", name, others, f"{key}: ")


def refuse_comparison(comparison: Comparison, *, algorithm: str, others: Sequence[str], key: str = "reward") -> None:
    """Refuses what needs the scores of an iteration together: they are not there when one call is differentiated."""
    what, instead = ("standardise", "give every term the weight you want over the deviation of its scores")
    if comparison.standardise is None:
        what, instead = "floor", "write `at_least`, which costs weight x what is missing and has a gradient"
    raise ContractError(
        f"{key}: {algorithm} differentiates the reward call by call, but `{what}` weighs a picture against all others "
        f"of its iteration. Use {' or '.join(others)} with it, or {instead}."
    )


def needs_gradient(reward: Any, images: Tensor, prompts: Prompts, *, algorithm: str, others: Sequence[str]) -> None:
    """Tries the gradient of a reward on some pictures [B,3,H,W] in [0,1]; of a sum that of every term.

    others: algorithms that take any reward. Errors: ContractError where the score has no graph to the pictures, or its
    gradient is not finite, or zero for all of them.
    """
    judge = adapt(reward)
    if isinstance(judge.function, Sum):
        for term in judge.function.terms:
            needs_gradient(term, images, prompts, algorithm=algorithm, others=others)
        return
    found = _gradient(judge, images, prompts)
    if isinstance(found, str):
        raise _refusal(algorithm, f"`{judge.name}` {found}", judge.name, others)


@torch.enable_grad()
def _gradient(judge: NamedReward, images: Tensor, prompts: Prompts) -> str | None:
    """What is wrong with it; pictures without a score have none, and are passed over."""
    pictures = images.detach().clone().requires_grad_()
    try:
        value = judge(pictures, prompts).value
    except ContractError:
        raise
    except Exception as error:  # numpy() of a tensor with a graph, or an operation in place
        return f"fails on pictures with a graph ({type(error).__name__}: {error})"
    if not value.requires_grad:
        return "returned a tensor without a graph"
    scored = value.detach().isfinite().to(images.device)
    (slope,) = torch.autograd.grad(value[value.isfinite()].sum(), pictures, allow_unused=True)
    if slope is None:
        return "returned a tensor whose graph does not lead to the pictures"
    slope = slope[scored]
    broken = int((~slope.isfinite()).flatten(1).any(1).sum())
    if broken:
        return f"has a gradient that is not finite, for {broken} of {len(images)} pictures"
    if len(slope) and not slope.any():
        return f"has a gradient that is zero everywhere, for all of {len(slope)} pictures"
    return None


def _refusal(algorithm: str, what: str, name: str, others: Sequence[str], key: str = "") -> ContractError:
    known = INSTEAD.get(name, "")
    instead = f" Or take `{known}`, which has one." if known.partition(":")[0] in TABLE else ""
    use = f" Use {' or '.join(others)} with it." if others else ""
    return ContractError(f"{key}{algorithm} differentiates the reward, but {what}.{use}{instead}")
