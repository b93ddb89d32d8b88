"""One iteration of each kind of algorithm on a model of any family: what tests of families share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

import tastemaker as tm
from tastemaker.policy.weights import LoRA

CHAIN: dict[str, Any] = {"images": 4, "updates": 1, "steps": 3, "iterations": 1, "learning_rate": 1e-2}

# By the guidance, and the noise of a step.
ALGORITHMS: dict[str, Callable[[float, Any], Any]] = {
    "ddpo": lambda guidance, noise: tm.DDPO(**CHAIN, guidance=guidance, sampler=noise),
    "flow_grpo": lambda guidance, noise: tm.FlowGRPO(
        **CHAIN, per_prompt=2, guidance=guidance, sampler=tm.Window(inside=noise, size=1, first=0, last=2)
    ),
    "diffusion_nft": lambda guidance, _: tm.DiffusionNFT(**CHAIN, per_prompt=2, levels=2, guidance=guidance),
    "draft": lambda guidance, _: tm.DRaFT(**CHAIN, guidance=guidance),
}


def darkness(images: Tensor, prompts: list[str]) -> Tensor:
    return 1 - images.mean((1, 2, 3))


def trained(
    model: str, algorithm: str, folder: Path, *, guidance: float, lora: LoRA | None, noise: Any, **settings: Any
) -> tm.Run:
    """A run that has ended, and in which every update had a gradient."""
    run = tm.train(
        model=model,
        reward=darkness,
        prompts=["a cat", "a dog"],
        algorithm=ALGORITHMS[algorithm](guidance, noise),
        lora=lora,
        alarms=None,
        device="cpu",
        evaluation={"count": 2, "steps": 1},
        output_dir=str(folder),
        **settings,
    )
    (row,) = run.metrics()
    assert run.done and row["updates"] and all(update["grad_norm"] > 0 for update in row["updates"])
    return run
