"""Credit: how much better than expected each image was. Pure functions of everyone's rewards.

Rewards r are [N], of any dtype; statistics are in fp64 on the CPU (whole numbers are not cut off); credit is fp32,
or fp64 for rewards of fp64. A reward that is not finite is a failed score: it is left out of every mean and deviation,
and its credit is NaN. Deviations are of the population (divided by n). Rewards that are all equal say nothing, and
get exactly 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor


def whiten(r: Tensor, *, floor: float = 1e-6) -> Tensor:
    """(r - mean) / (std + floor) over all images, [N]."""
    return per_group(r, torch.zeros(len(r), dtype=torch.long), floor=floor)


def per_group(r: Tensor, groups: Tensor | Sequence[int], *, floor: float = 1e-4) -> Tensor:
    """(r - mean of its group) / (std of its group + floor), [N], with groups [N] the id of each image's group.

    Flow-GRPO, Liu et al. 2025, arXiv:2505.05470, whose code adds 1e-4. A group of one image gets 0.
    """
    return relative(r, groups, baseline="mean", spread="group", floor=floor)


def leave_one_out(r: Tensor, groups: Tensor | Sequence[int]) -> Tensor:
    """r minus the mean of the *other* rewards of its group, [N], with groups [N] the id of each image's group.

    Kool et al. 2019 (RLOO): unlike the mean of all, the baseline does not depend on the image itself. It equals
    (r - mean) n / (n - 1). An image without companions has nothing to be compared with and gets 0.
    """
    return relative(r, groups, baseline="leave_one_out", spread="none")


def relative(
    r: Tensor,
    groups: Tensor | Sequence[int],
    *,
    baseline: Literal["mean", "leave_one_out"],
    spread: Literal["group", "global", "none"],
    floor: float = 1e-4,
) -> Tensor:
    """How far above its group's baseline each reward is, over a deviation + floor, [N]; groups [N] as in `per_group`.

    baseline: the mean of the group, or of its other rewards. spread: the deviation of the group's rewards, of all
    rewards of the iteration, or no division at all.
    """
    apart, index, count = _apart(r, groups)
    above = apart * (count / (count - 1).clamp(min=1))[index] if baseline == "leave_one_out" else apart
    if spread == "none":
        return _like(above, r)
    if spread == "global":
        apart, index, count = _apart(r, torch.zeros(len(r), dtype=torch.long))
    std = torch.sqrt(_totals(apart**2, index, count) / count.clamp(min=1))
    return _like(above / (std[index] + floor), r)


def equal(r: Tensor, groups: Tensor | Sequence[int]) -> Tensor:
    """[N] bool, whether the rewards of an image's group are all the same, or it is the only one: nothing to learn from.

    Failed scores are left out; a group without any other is not equal, and has no credit anyway.
    """
    apart, index, count = _apart(r, groups)
    return ((_totals(apart**2, index, count) == 0) & (count > 0))[index].to(r.device)


def per_prompt(
    r: Tensor,
    texts: Sequence[str],
    history: Mapping[str, Sequence[float]],
    *,
    buffer: int,
    minimum: int,
    floor: float = 1e-6,
) -> tuple[Tensor, dict[str, list[float]]]:
    """(r - mean) / (std + floor) over the last `buffer` rewards of the same prompt, [N], and the history with r in it.

    Black et al. 2023, arXiv:2305.13301, section 5. The new rewards enter their prompt's history first; a prompt
    with fewer than `minimum` remembered rewards uses all of this batch's instead. texts [N] are the prompts; the
    history is plain data, prompt -> rewards, oldest first, and belongs into the algorithm's state. The given history
    is not changed.
    """
    if not 1 <= minimum <= buffer:
        raise ValueError(
            f"a history of {buffer} rewards a prompt (buffer) never holds {minimum} of them (minimum >= 1)."
        )
    if len(texts) != len(r):
        raise ValueError(
            f"per_prompt needs the prompt of every reward, but got {len(texts)} prompts for {len(r)} rewards."
        )
    rows: dict[str, list[int]] = {}
    for row, (text, finite) in enumerate(zip(texts, torch.isfinite(r).tolist(), strict=True)):
        if finite:
            rows.setdefault(text, []).append(row)
    values = r.detach().to("cpu", torch.float64)
    credit, kept = whiten(values, floor=floor), {text: list(past) for text, past in history.items()}
    for text, own in rows.items():
        kept[text] = (kept.get(text, []) + values[own].tolist())[-buffer:]
        if len(kept[text]) >= minimum:
            past = torch.tensor(kept[text], dtype=torch.float64)
            low = past.min()
            credit[own] = (values[own] - low - (past - low).mean()) / ((past - low).std(correction=0) + floor)
    return _like(credit, r), kept


def softmax_weights(r: Tensor, *, temperature: float) -> Tensor:
    """exp(r / temperature), divided by its mean over all images, [N]: weights with a mean of 1.

    Peters and Schaal 2007 (reward-weighted regression); Black et al. 2023, arXiv:2305.13301, eq. 4.
    """
    values = r.detach().to("cpu", torch.float64)
    valid = torch.isfinite(values)
    powers = torch.exp((values - values[valid].max()) / temperature) if valid.any() else values
    return _like(powers / powers[valid].mean(), r)


def top(r: Tensor, *, share: float) -> Tensor:
    """1 for the best `share` of all images, at least one, and NaN for the others: not learned from, [N].

    Of equal rewards at the edge the first are taken.
    """
    values = r.detach().to("cpu", torch.float64)
    valid = torch.isfinite(values)
    credit = torch.full_like(values, torch.nan)
    count = min(int(valid.sum()), max(1, round(share * int(valid.sum()))))
    credit[values.masked_fill(~valid, -torch.inf).argsort(descending=True, stable=True)[:count]] = 1.0
    return _like(credit, r)


def _apart(r: Tensor, groups: Tensor | Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """r - mean of its group [N] (NaN for a failed score), its group's number [N], the valid rewards of each group [G].

    Everything is measured from the group's lowest reward, so that equal rewards give exact zeros whatever their size.
    """
    ids, valid = torch.as_tensor(groups, device="cpu"), torch.isfinite(r.detach()).cpu()
    if r.ndim != 1 or ids.shape != r.shape:
        raise ValueError(
            f"credit needs rewards [N] and a group for each, but got {list(r.shape)} and {list(ids.shape)}."
        )
    names, index = torch.unique(ids, return_inverse=True)
    values, nothing = r.detach().to("cpu", torch.float64), torch.zeros(len(names), dtype=torch.float64)
    low = torch.full_like(nothing, torch.inf).scatter_reduce(0, index, values.masked_fill(~valid, torch.inf), "amin")
    above = (values - low[index]).masked_fill(~valid, 0.0)
    count = _totals(valid.to(torch.float64), index, nothing)
    mean = _totals(above, index, nothing) / count.clamp(min=1)
    return (above - mean[index]).masked_fill(~valid, torch.nan), index, count


def _totals(values: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """[G] sums of the values [N] of each group; what is NaN counts as 0."""
    return torch.zeros_like(like).index_add(0, index, values.nan_to_num(nan=0.0))


def _like(credit: Tensor, r: Tensor) -> Tensor:
    """Credit as it leaves this file: where the rewards are, in fp64 if they were and else in fp32."""
    return credit.to(r.device, torch.float64 if r.dtype == torch.float64 else torch.float32)
