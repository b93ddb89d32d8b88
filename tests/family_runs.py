"""One iteration of each kind of algorithm on a model of any family: what tests of families share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

import tastemaker as tm
from tastemaker.policy.weights import LoRA

CHAIN: dict[str, Any] = {"images": 4, "updates": 1, "steps": 3, "iterations": 1, "learning_rate": 1e-2}
WINDOW = tm.Window(inside=tm.FlowSDE(), size=1, first=0, last=2)

# For flows, by the guidance.
ALGORITHMS: dict[str, Callable[[float], Any]] = {
    "ddpo": lambda guidance: tm.DDPO(**CHAIN, guidance=guidance, sampler=tm.FlowSDE()),
    "flow_grpo": lambda guidance: tm.FlowGRPO(**CHAIN, per_prompt=2, guidance=guidance, sampler=WINDOW),
    "diffusion_nft": lambda guidance: tm.DiffusionNFT(**CHAIN, per_prompt=2, levels=2, guidance=guidance),
    "draft": lambda guidance: tm.DRaFT(**CHAIN, guidance=guidance),
}


def darkness(images: Tensor, prompts: list[str]) -> Tensor:
    return 1 - images.mean((1, 2, 3))


def trained(model: str, algorithm: str, folder: Path, *, guidance: float, lora: LoRA | None) -> tm.Run:
    """A run that has ended, on pictures of 16 x 16."""
    return tm.train(
        model=model,
        reward=darkness,
        prompts=["a cat", "a dog"],
        algorithm=ALGORITHMS[algorithm](guidance),
        lora=lora,
        alarms=None,
        resolution=16,
        device="cpu",
        evaluation={"count": 2, "steps": 1},
        output_dir=str(folder),
    )
