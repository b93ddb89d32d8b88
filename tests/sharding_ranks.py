"""What each of two or four ranks does in test_sharding.py, which runs this file as often: runs with sharded weights."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import tastemaker as tm
from sharded_toy import NetToy, sharded
from tastemaker import shards
from tastemaker.algorithms.algorithm import Algorithm
from tastemaker.training.checkpoint import Checkpoints
from tastemaker.training.trainer import Training
from tastemaker.world import Stop, World
from toy_runs import Scorer, closeness, failing, metrics, run_of

RUNS: dict[str, tuple[Algorithm, Scorer]] = {
    "ddpo": (
        tm.DDPO(images=8, per_prompt=2, updates=2, steps=3, guidance=2.0, iterations=2, learning_rate=0.02, clip=0.2),
        closeness,
    ),
    "ddpo-unequal": (  # the second of two processes learns from none of its pictures
        tm.DDPO(images=8, per_prompt=1, updates=1, steps=3, guidance=1.0, iterations=2, learning_rate=0.02, clip=0.2),
        failing(lambda b: b % 2 == 1),
    ),
    "draft": (tm.DRaFT(images=6, steps=4, k=2, kl=0.1, guidance=2.0, iterations=2, learning_rate=0.02), closeness),
    "drtune": (tm.DRTune(images=6, steps=4, active=2, guidance=2.0, iterations=2, learning_rate=0.02), closeness),
    "diffusion_nft": (
        tm.DiffusionNFT(
            images=10,
            per_prompt=2,
            updates=1,
            steps=4,
            levels=2,
            iterations=3,
            ramp=0.3,
            guidance=2.0,
            learning_rate=0.02,
        ),
        closeness,
    ),
}
FOUR = ("ddpo-unequal", "draft")


def training(folder: Path, name: str, world: World, *, save: int = 0, whole: bool = False) -> Training:
    """A run of `RUNS`, with an average of the weights; `whole`: all weights on every process."""
    algorithm, reward = RUNS[name]
    together = None if world.size == 1 or whole else world
    policy = NetToy(sets=(*algorithm.sets, "ema"), together=together)
    return run_of(folder, algorithm, policy, reward=reward, world=world, micro=3, save=save, ema=0.9)


def content(run: Training) -> dict[str, torch.Tensor]:
    """Weights, sets and moments, whole, on rank 0."""
    moments, _ = run.optimizer.state()
    found = run.policy.state() | {f"optimizer/{name}": tensor for name, tensor in moments.items()}
    return {name: tensor.clone() for name, tensor in run.world.whole(found).items()}


def whole_run(world: World, folder: Path, name: str) -> dict[str, Any]:
    run = training(folder / name, name, world, save=1)
    start = time.perf_counter()
    assert run.train()
    found = content(run)
    if world.rank == 0:
        save_file(found, folder / f"{name}.safetensors")
    held = sum(shards.local(tensor).numel() for tensor in run.policy.parameters())
    return {"held": held, "of": sum(p.numel() for p in run.policy.parameters()), "kept": len(found),
            "seconds": time.perf_counter() - start, "rows": [row["network_calls"] for row in metrics(folder / name)]
            if world.rank == 0 else []}  # fmt: skip


if __name__ == "__main__":
    warnings.simplefilter("error")
    home = Path(sys.argv[1])
    world = World.here("cpu")
    names = list(RUNS) if world.size == 2 else FOUR
    found: dict[str, Any] = {name: whole_run(world, home, name) for name in names}
    (home / f"rank-{world.rank}.json").write_text(json.dumps(found))
    world.close()
