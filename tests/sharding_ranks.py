"""What each of two or four ranks does in test_sharding.py, which runs this file as often: runs with sharded weights."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file

import tastemaker as tm
from sharded_toy import NetToy
from tastemaker import agreement, fingerprint, shards
from tastemaker.algorithms.algorithm import Algorithm
from tastemaker.prompts.sources import source
from tastemaker.training.checkpoint import Checkpoints
from tastemaker.training.trainer import Training
from tastemaker.world import Stop, World
from toy_runs import SEED, TEXTS, Scorer, closeness, failing, run_of

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
    # in one loss they make unequally many calls with a graph
    "drtune-early": (
        tm.DRTune(images=6, steps=6, active=2, early=2, guidance=2.0, iterations=2, learning_rate=0.02),
        closeness,
    ),
    "refl": (tm.ReFL(images=6, steps=4, first=0.0, last=0.75, iterations=2, learning_rate=0.02), closeness),
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
RESUMED = "diffusion_nft"
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


def kept(world: World, folder: Path, name: str, run: Training) -> None:
    found = content(run)
    if world.rank == 0:
        save_file(found, folder / f"{name}.safetensors")


def whole_run(world: World, folder: Path, name: str) -> dict[str, Any]:
    """From the beginning to the end, with a checkpoint after every iteration."""
    run = training(folder / name, name, world, save=1)
    assert run.train()
    kept(world, folder, name, run)
    held = sum(shards.local(tensor).numel() for tensor in run.policy.parameters())
    return {"held": held, "of": sum(p.numel() for p in run.policy.parameters()), "kept": len(content(run))}


def resumed(world: World, folder: Path, source: Path, name: str, *, whole: bool) -> None:
    """A run that goes on from its first checkpoint."""
    home = folder / name
    if world.rank == 0:
        shutil.copytree(source, home)
    world.barrier()
    if whole:
        world = World.here("cpu")  # the other one knows of sharded weights
    run = training(home, RESUMED, world, whole=whole)
    assert run.train(Checkpoints.open(home / "checkpoints" / "checkpoint-1"))
    kept(world, folder, name, run)


def numbers(policy: NetToy) -> list[float]:
    """What the network says of some noise."""
    x = torch.linspace(-1, 1, 8, dtype=policy.dtype).view(2, 4, 1, 1)
    found = policy.predict(x, 1, policy.schedule(3), policy.encode(["cat", "dog"]), 1.0)
    made: list[float] = found.eps.detach().flatten().tolist()
    return made


def moved(policy: NetToy, by: float) -> None:
    """Different current weights."""
    with torch.no_grad():
        for parameter in policy.parameters():
            shards.local(parameter).mul_(by)


def sets(world: World, policy: NetToy) -> dict[str, Any]:
    """Sets are used, one in another and past an exception, by ranks that call unequally often; blended; put back."""
    weights, found = policy.weights, dict[str, Any]()
    moved(policy, 1.25)
    weights.blend("old", 0.5)
    own = ["old", "base", "old"] if world.rank == 0 else ["base"]
    found["unequal"] = []
    for name in own:
        with weights.using(name):
            found["unequal"].append([name, numbers(policy)])
    try:
        with weights.using("old"), weights.using("base"):
            raise KeyError("a mishap")
    except KeyError:
        found["after"] = numbers(policy)
    state = {name: tensor.clone() for name, tensor in world.whole(weights.state()).items()}
    box = [state]
    torch.distributed.broadcast_object_list(box, src=0)
    moved(policy, 3.0)
    weights.load_state(box[0])
    found["back"] = numbers(policy)
    return found | {
        "unknown": said(lambda: weights.using("new").__enter__()),
        "bad": said(lambda: weights.load_state({})),
    }


def stopped(world: World, policy: NetToy) -> list[Any]:
    """One rank calls with a graph, with a set and without end; the other, which fills in, is asked to stop."""

    def work() -> None:
        if world.rank == 0:
            numbers(policy)
            for _ in range(1000):
                with policy.using("old"):
                    numbers(policy)
                world.poll()
        threading.Timer(0.3, world.request_stop).start()
        world.sum(1)

    before = said(work)
    return [before, policy.calls.made, numbers(policy), world.sum(1)]


def strangers(world: World, *seeds: int) -> list[str]:
    """The ranks begin with the networks of these seeds, which is found out though none has a whole one."""
    policy: Any = NetToy(together=world, seed=seeds[world.rank])
    policy.frozen = dict
    found = []
    for few in (fingerprint.FEW, 0):
        with patch.object(fingerprint, "FEW", few):
            found.append(said(lambda: agreement.check(world, {"seed": SEED}, source(TEXTS), policy)))
    return found


def said(call: Callable[[], object]) -> str:
    try:
        call()
    except (Stop, RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(folder: Path) -> None:
    warnings.simplefilter("error")
    world = World.here("cpu")
    names = list(RUNS) if world.size == 2 else FOUR
    found: dict[str, Any] = {name: whole_run(world, folder, name) for name in names}
    if world.size == 2:
        alone = folder / "alone"
        if world.rank == 0:
            assert training(alone, RESUMED, World(), save=1).train()
        for name, source, whole in (("whole", RESUMED, True), ("cut", RESUMED, False), ("from-one", "alone", False)):
            resumed(world, folder, folder / source, name, whole=whole)
        policy = NetToy(sets=("base", "old"), together=world)
        found |= {"sets": sets(world, policy), "stopped": stopped(world, policy)}
        found |= {"strangers": strangers(world, 5, 6), "twins": strangers(world, 5, 5)}
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(found))
    world.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
