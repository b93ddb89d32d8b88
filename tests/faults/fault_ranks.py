"""What each of two ranks does in test_processes.py, which runs this file twice: runs on the toy policy, refusals."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import tastemaker as tm
from tastemaker import agreement, fingerprint
from tastemaker.algorithms.ddpo import DDPO
from tastemaker.policy.adapter import LoRA
from tastemaker.policy.load import load
from tastemaker.process.prediction import Prediction
from tastemaker.prompts.sources import source
from tastemaker.training.checkpoint import Checkpoints
from tastemaker.world import World
from toy import Toy
from toy_runs import run_of

SMALL = DDPO(images=16, per_prompt=2, updates=2, steps=4, guidance=2.0, iterations=3, learning_rate=0.02, clip=0.2)


class Spoiled(Toy):
    """NaN in its learning calls from one number on, `many` of them."""

    def __init__(self, first: int, many: int) -> None:
        super().__init__()
        self.bad, self.calls = range(first, first + many), 0

    def predict(self, *given: Any) -> Prediction:
        found = super().predict(*given)
        self.calls += torch.is_grad_enabled()
        bad = torch.is_grad_enabled() and self.calls in self.bad
        return found._replace(x0=found.x0 * float("nan")) if bad else found


def nan_on_one(world: World, folder: Path) -> dict[str, Any]:
    """Rank 1 spoils one call of the second of six updates: 4 pictures x 4 steps in calls of 5 are 4 calls an update."""
    policy = Spoiled(6, 1) if world.rank else Toy()
    run = run_of(folder / "nan", SMALL, policy, world=world, micro=5)
    assert run.train()
    save_file(policy.state(), folder / f"nan-{world.rank}.safetensors")
    return {"skipped": run.optimizer.skipped, "updates": run.optimizer.updates}


def nan_for_good(world: World, folder: Path) -> str:
    policy = Spoiled(5, 1000) if world.rank else Toy()
    return said(lambda: run_of(folder / "lost", SMALL, policy, world=world, micro=5).train())


def two_then_one(world: World, folder: Path) -> None:
    """A checkpoint after every iteration; the test goes on from the first one, alone."""
    policy = Toy()
    assert run_of(folder / "two", SMALL, policy, world=world, micro=5, save=1).train()
    save_file(policy.state(), folder / f"two-{world.rank}.safetensors")


def one_then_two(world: World, folder: Path) -> None:
    if world.rank == 0:
        assert run_of(folder / "one", SMALL, Toy(), micro=3, save=1).train()
    world.barrier()
    policy = Toy()
    run = run_of(folder / "one", SMALL, policy, world=world, micro=5, save=1)
    assert run.train(Checkpoints.open(folder / "one" / "checkpoints" / "checkpoint-1"))
    save_file(policy.state(), folder / f"one-{world.rank}.safetensors")


def asked_for_other_things(world: World, folder: Path, model: str) -> list[str]:
    """A run with another seed; and what is compared then, where only a setting, the prompts, or the rest differs."""
    algorithm = tm.DDPO(images=4, updates=1, steps=2, guidance=1.0, iterations=1)
    given: dict[str, Any] = {"model": model, "reward": "jpeg_compressibility", "prompts": ["a cat", "a dog"]}
    given |= {"output_dir": str(folder / "refused"), "device": "cpu", "dry_run": True, "alarms": None}
    tree, cats = {"seed": 0, "algorithm": {"clip": 0.1}, "report_to": []}, ["a cat", "a dog"]
    mine = folder / f"rank-{world.rank}"  # a folder of each rank's own, as on two machines
    mine.mkdir()
    (mine / "judge.py").write_text(
        f"def score(images, prompts):\n    return images.mean((1, 2, 3)) * {world.rank + 1}\n"
    )
    (mine / "head").mkdir()
    (mine / "head" / "weights").write_bytes(bytes([world.rank]))
    (mine / "head" / "reward.json").write_text("{}")
    many = [f"a {k}" for k in range(500)]
    (package := mine / "package").mkdir()
    (package / "module.py").write_text(f"VERSION = {world.rank}\n")
    pairs = [
        (tree | {"algorithm": {"clip": 0.1 * (world.rank + 1)}}, cats),
        (tree, ["a cat", "a cow"] if world.rank else cats),  # one name, but other contents on that machine
        (tree | {"report_to": ["wandb"] * world.rank, "output_dir": f"runs/{world.rank}"}, cats),
    ]
    os.chdir(mine)  # so that settings are the same texts
    return [
        said(lambda: tm.train(algorithm=algorithm, seed=world.rank, **given)),
        *(said(lambda pair=pair: agreement.check(world, pair[0], source(pair[1]))) for pair in pairs),
        said(lambda: agreement.check(world, tree, source([*many, f"the last of {world.rank}"]))),
        said(lambda: agreement.check(world, tree | {"reward": "judge.py:score"}, source(cats))),
        said(lambda: agreement.check(world, tree | {"held_out_rewards": ["brightness:1,head:2"]}, source(cats))),
        said(lambda: with_package(package, lambda: agreement.check(world, tree, source(cats)))),
        *(said(lambda change=change: with_weights(world, model, change)) for change in ("", "trained", "frozen")),
    ]


def with_package(folder: Path, call: Any) -> None:
    """Another text of the program on each rank."""
    was, fingerprint.PACKAGE = fingerprint.PACKAGE, folder
    try:
        call()
    finally:
        fingerprint.PACKAGE = was


def with_weights(world: World, model: str, change: str) -> None:
    """One bit of one number differs on rank 1, among those that are trained or those that are not."""
    policy: Any = load(model, lora=LoRA(rank=2), sets=("base", "ema"))
    if change and world.rank:
        tensors = policy.state() if change == "trained" else policy.frozen()["vae"]
        numbers = next(tensors[name] for name in sorted(tensors) if tensors[name].dtype == torch.float32)
        numbers.flatten().view(torch.int32)[0] ^= 1
    agreement.check(world, {"seed": 0}, source(["a cat", "a dog"]), policy)


def said(call: Any) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "nothing"


def rank_main(folder: Path, model: str) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    world = World.here("cpu")
    found: dict[str, Any] = {"nan": nan_on_one(world, folder), "lost": nan_for_good(world, folder)}
    two_then_one(world, folder)
    one_then_two(world, folder)
    found["other"] = asked_for_other_things(world, folder, model)
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(found))
    world.close()


if __name__ == "__main__":
    rank_main(Path(sys.argv[1]), sys.argv[2])
