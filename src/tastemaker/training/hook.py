"""What a function of the user's is given after every iteration: `tm.train(on_samples=...)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tastemaker.iteration import Iteration
from tastemaker.policy.policy import Policy, decode

# Of one sampling call: images [B,3,H,W] in [0, 1] on the CPU, prompts, their metadata, rewards [B] with NaN where a
# score failed, and the rewards' named parts {name: [B]}.
Batch = tuple[Tensor, tuple[str, ...], tuple[Any, ...], Tensor, dict[str, Tensor]]
OnSamples = Callable[[list[Batch], int, list[Any]], object]  # (batches, iteration, accelerate's trackers)


@torch.no_grad()
def batches(it: Iteration, policy: Policy, parts: Mapping[str, Tensor]) -> list[Batch]:
    """This device's pictures of the iteration as they were scored: cut as sampled, decoded again from their latents.

    parts: `[B]` by name, of all of the device's pictures.
    """
    reward, x0 = it.kept.get("rollout.reward"), it.kept.get("rollout.x0")
    if reward is None or x0 is None:
        return []
    found: list[Batch] = []
    for start in range(0, len(reward), it.plan.sampling_batch):
        rows = slice(start, start + it.plan.sampling_batch)
        images, prompts = decode(policy, x0[rows].to(policy.device)).cpu(), it.prompts[rows]
        info = {name: part[rows].clone() for name, part in parts.items()}
        found.append((images, prompts.texts, prompts.metadata, reward[rows].clone(), info))
    return found
