"""The runs whose trajectory must not depend on the machine; and, run as a program, what each of two processes makes of
them for test_processes.py: its weights to a file."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from tastemaker.algorithms.algorithm import Algorithm
from tastemaker.algorithms.alignprop import AlignProp
from tastemaker.algorithms.awm import AWM
from tastemaker.algorithms.ddpo import DDPO
from tastemaker.algorithms.diffusion_dpo import DiffusionDPO
from tastemaker.algorithms.diffusion_nft import DiffusionNFT
from tastemaker.algorithms.dpok import DPOK
from tastemaker.algorithms.draft import DRaFT
from tastemaker.algorithms.flow_grpo import FlowGRPO
from tastemaker.algorithms.grad_copy import GradCopy
from tastemaker.algorithms.ram import RAM
from tastemaker.algorithms.reinforce import REINFORCE
from tastemaker.algorithms.rwr import RWR
from tastemaker.process.flow_samplers import FlowSDE
from tastemaker.process.samplers import DDIM, Window
from tastemaker.process.truncation import PerStep
from tastemaker.rewards import Sum
from tastemaker.training.trainer import Training
from tastemaker.world import World
from toy import Toy
from toy_runs import failing, run_of


def small(images: Tensor, prompts: Any) -> Tensor:
    """Of another scale."""
    return -1e-3 * images.flatten(1).square().mean(1)


class Case(NamedTuple):
    """A run on the toy policy; `lost` are the pictures of every iteration whose scores fail.

    standardise: the reward is a sum whose terms are, with a limit and a floor.
    """

    algorithm: Algorithm
    flow: bool = False
    layout: float = 0.0
    lost: tuple[int, ...] = ()
    standardise: str | None = None

    def policy(self, kind: type[Toy] = Toy, **settings: Any) -> Toy:
        return kind(flow=self.flow, layout=self.layout, sets=(*self.algorithm.sets, "ema"), **settings)

    def run(self, folder: Path, policy: Toy, *, micro: int = 5, sampling: int = 3, **settings: Any) -> Training:
        reward: Any = failing(lambda b: b in self.lost)
        if self.standardise is not None:
            rules = ({"floor": -4.0}, {"weight": 0.5, "at_least": -1e-3})
            reward = Sum(list(zip((reward, small), rules, strict=True)), self.standardise)
        optimizing = {"ema": 0.9, "schedule": "cosine", "warmup_steps": 3}
        return run_of(
            folder, self.algorithm, policy, reward=reward, micro=micro, sampling=sampling, **optimizing, **settings
        )


SHARED = {"images": 16, "per_prompt": 2, "steps": 5, "guidance": 2.0, "iterations": 3, "learning_rate": 0.02}
FRESH = SHARED | {"updates": 2}
TWICE = FRESH | {"inner_epochs": 2}
WHOLE = DDPO(clip=0.2, **TWICE)
CASES = {
    # two devices: the first has nothing left in the first update
    "filtered": Case(WHOLE, lost=(0, 1, 4, 5, 11)),
    "history and renewed": Case(DDPO(clip=0.02, prompt_history=12, prompt_minimum=4, **TWICE), layout=1e-3, lost=(3,)),
    "part of a window": Case(
        DDPO(clip=0.2, timestep_fraction=0.7, sampler=Window(DDIM(), 3), **TWICE), flow=True, lost=(6,)
    ),
    "score function": Case(REINFORCE(**SHARED), lost=(2, 9)),
    "held": Case(DPOK(clip=0.2, kl=0.3, **TWICE), lost=(2, 9)),
    # a window for each group; one group has one score left and nothing to compare it with, another none
    "windows": Case(
        FlowGRPO(clip=0.2, advantage="global", sampler=Window(FlowSDE(), 2, each="group"), **TWICE),
        flow=True,
        lost=(0, 4, 5),
    ),
    "recentred": Case(FlowGRPO(clip=0.2, recentred=True, same_noise=True, kl=0.0, **TWICE), lost=(6,)),
    "uneven": Case(DDPO(clip=0.2, **TWICE | {"images": 12})),  # three groups an update, for two devices
    "last steps": Case(DRaFT(k=2, kl=0.3, diversity=0.1, **FRESH), lost=(2, 9)),
    "renoised": Case(DRaFT(copies=3, **FRESH | {"images": 12}), flow=True),
    "truncated": Case(AlignProp(truncation=PerStep(), **FRESH), lost=(0, 1, 4, 5)),
    "mirrored": Case(DiffusionNFT(levels=3, kl=0.1, ramp=0.1, **FRESH), lost=(2, 9)),
    "matched": Case(AWM(levels=2, clip=0.2, kl=0.1, **FRESH), flow=True, lost=(0, 1, 4, 5, 11)),
    "tilted": Case(RAM(levels=2, **FRESH), lost=(2, 9)),
    "preferred": Case(DiffusionDPO(levels=2, beta=5.0, **FRESH | {"per_prompt": 4}), lost=(0, 4, 5, 6)),
    "best of all": Case(RWR(levels=2, top=0.4, inner_epochs=2, **FRESH)),
    "summed in groups": Case(FlowGRPO(clip=0.2, **TWICE | {"per_prompt": 4}), lost=(0, 4, 5), standardise="group"),
    "summed": Case(WHOLE, lost=(0, 1, 4), standardise="iteration"),
    "copied": Case(GradCopy(chosen=3, **FRESH), lost=(0, 1, 4, 5, 11)),
}


class Halting(Toy):
    """Asks for a stop in its network call of this number, of those that draw or of those that learn."""

    def __init__(self, world: World, place: str, number: int, *, pause: float = 0.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.world, self.place, self.number, self.pause, self.calls = world, place, number, pause, 0

    def _network(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        self.calls += self.place == ("learning" if torch.is_grad_enabled() else "drawing")
        if self.calls == self.number:
            self.calls += 1
            time.sleep(self.pause)
            self.world.request_stop()
        return super()._network(x, t, text)


class Strained(Toy):
    """Has memory for three learning rows of guidance 2."""

    def _network(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        if torch.is_grad_enabled() and len(x) > 6:
            raise torch.OutOfMemoryError("out of memory")
        return super()._network(x, t, text)


class Place(NamedTuple):
    """Of which case, on which rank, in which call of which kind, and the checkpoint that comes of it."""

    case: str
    rank: int
    kind: str
    number: int
    checkpoint: str


STOPS = {
    # Rank 0 has finished its own rollout and waits: then neither's is kept.
    "in a rollout": Place("filtered", 1, "drawing", 19, "checkpoint-1"),
    "in an update": Place("filtered", 0, "learning", 10, "checkpoint-1-1"),
    # An update of "last steps" draws in 2 calls for each of its 5 steps, and asks the base in 2 more; one of "copied"
    # does not ask it.
    "in the second prefix": Place("last steps", 1, "drawing", 2 * 12 + 12 + 3, "checkpoint-1-1"),
    "before the second targets": Place("copied", 0, "drawing", 2 * 10 + 10 + 9, "checkpoint-1-1"),
}


JOINS = {  # of one process that is joined by another
    "joined in an update": Place("filtered", 0, "learning", 34, "checkpoint-1-2"),
    "joined in the second prefix": Place("last steps", 0, "drawing", 70, "checkpoint-1-1"),
}


def halted(world: World, folder: Path, stop: Place) -> tuple[str, Toy]:
    """A run that one rank stops, and that is then resumed: its checkpoint's name, its policy."""
    case, asked = CASES[stop.case], stop.number if world.rank == stop.rank else -1
    policy = case.policy(Halting, world=world, place=stop.kind, number=asked, pause=0.3)
    assert not case.run(folder, policy, world=world).train()
    again = case.policy()
    run = case.run(folder, again, world=world)
    start = run.checkpoints.latest()
    assert start is not None and run.train(start)
    return start.path.name, again


def joined(world: World, folder: Path, stop: Place) -> Toy:
    """A run that one process begins alone and stops inside an iteration, and that both end."""
    case, again = CASES[stop.case], CASES[stop.case].policy()
    if world.rank == 0:
        alone = World()
        policy = case.policy(Halting, world=alone, place=stop.kind, number=stop.number)
        assert not case.run(folder, policy, world=alone).train()
    world.barrier()
    run = case.run(folder, again, world=world)
    start = run.checkpoints.latest()
    assert start is not None and start.path.name == stop.checkpoint and len(start.per_rank) == 1 and run.train(start)
    return again


def rank_main(folder: Path) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    world, names = World.here("cpu"), {}
    policies = {name: case.policy() for name, case in CASES.items()}
    for name, policy in policies.items():
        assert CASES[name].run(folder / name, policy, world=world).train()
    for name, stop in STOPS.items():
        names[name], policies[name] = halted(world, folder / name, stop)
    for name, stop in JOINS.items():
        policies[name] = joined(world, folder / name, stop)
    policies["strained"] = CASES["filtered"].policy(Strained if world.rank else Toy)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert CASES["filtered"].run(folder / "strained", policies["strained"], world=world).train()
    names["warnings"] = str(len(said))
    for name, policy in policies.items():
        save_file(policy.state(), folder / f"{name}-{world.rank}.safetensors")
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(names))
    world.close()


if __name__ == "__main__":
    rank_main(Path(sys.argv[1]))
