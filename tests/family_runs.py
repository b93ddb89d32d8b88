"""One short run of every kind of algorithm, for tiny models of any family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import tastemaker as tm
from tastemaker.policy.weights import LoRA
from tastemaker.process.samplers import DDIM, Window

SHORT: dict[str, Any] = {"images": 2, "updates": 1, "steps": 3, "guidance": 2.0, "iterations": 1, "learning_rate": 1e-2}
ALGORITHMS = [
    pytest.param(tm.DDPO(**SHORT), id="ddpo"),
    pytest.param(tm.FlowGRPO(**SHORT, per_prompt=2, sampler=Window(DDIM(1.0), size=1)), id="flow_grpo"),
    pytest.param(tm.DiffusionNFT(**SHORT, per_prompt=2, levels=2), id="diffusion_nft"),
    pytest.param(tm.DRaFT(**SHORT), id="draft"),
]


def darkness(images: Tensor, prompts: list[str]) -> Tensor:
    return 1 - images.mean((1, 2, 3))


def train(model: str, algorithm: Any, folder: Path) -> Path:
    """Its LoRA file, after one iteration in which every update had a gradient."""
    run = tm.train(
        model=model,
        reward=darkness,
        prompts=["a red cat", "two dogs"],
        algorithm=algorithm,
        lora=LoRA(rank=2),
        device="cpu",
        evaluation={"count": 1, "steps": 1},
        output_dir=str(folder),
    )
    (row,) = run.metrics()
    assert run.done and row["updates"] and all(update["grad_norm"] > 0 for update in row["updates"])
    return run.weights
