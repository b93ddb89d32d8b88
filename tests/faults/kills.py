"""Runs of every algorithm on the toy policy that a signal meets at a chosen place: what test_kills.py has processes do.

A place is the so-manieth event of a kind: a network call that draws or that learns, the end of an update, a row that is
written, or a step of a save on the disk, of which those at the manifest, at the renaming, at pruning, and those of the
best checkpoints are kinds of their own. The signal comes just before it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tastemaker.algorithms.algorithm import Algorithm
from tastemaker.algorithms.alignprop import AlignProp
from tastemaker.algorithms.awm import AWM
from tastemaker.algorithms.ddpo import DDPO
from tastemaker.algorithms.diffusion_dpo import DiffusionDPO
from tastemaker.algorithms.diffusion_nft import DiffusionNFT
from tastemaker.algorithms.dpok import DPOK
from tastemaker.algorithms.draft import DRaFT
from tastemaker.algorithms.drtune import DRTune
from tastemaker.algorithms.flow_grpo import FlowGRPO
from tastemaker.algorithms.grad_copy import GradCopy
from tastemaker.algorithms.ram import RAM
from tastemaker.algorithms.refl import ReFL
from tastemaker.algorithms.reinforce import REINFORCE
from tastemaker.algorithms.rwr import RWR
from tastemaker.evaluation.alarms import Alarms, Rules
from tastemaker.evaluation.checking import Check
from tastemaker.evaluation.evaluate import Trial, trial_prompts
from tastemaker.evaluation.watch import Watch
from tastemaker.process.samplers import DDIM, Window
from tastemaker.prompts.sources import source
from tastemaker.rewards.reward import adapt
from tastemaker.training import checkpoint
from tastemaker.training.best import Best
from tastemaker.training.lines import Lines
from tastemaker.training.merit import Merit
from tastemaker.training.stopping import Stopping
from tastemaker.training.trainer import Training
from tastemaker.training.watching import Watching
from tastemaker.world import World
from toy import Toy
from toy_runs import SEED, TEXTS, failing, run_of

EVENTS = "events.json"  # of a run that nothing happened to: how many of each kind
SAVE, ITERATIONS = 2, 5
SHARED: dict[str, Any] = {"images": 8, "per_prompt": 2, "steps": 3, "guidance": 2.0, "learning_rate": 0.02}
SHARED |= {"iterations": ITERATIONS}
FRESH = SHARED | {"updates": 2}
TWICE = FRESH | {"inner_epochs": 2}


class Case(NamedTuple):
    """by: the number by which the best checkpoints are kept."""

    algorithm: Algorithm
    by: str = "held_out.small"
    layout: float = 0.0
    flow: bool = False


CASES = {  # by the names of the table; with all that lasts where there is any
    "ddpo": Case(DDPO(clip=0.02, prompt_history=6, prompt_minimum=2, **TWICE), layout=1e-3),
    "reinforce": Case(REINFORCE(**SHARED), "reward"),
    "rwr": Case(RWR(levels=2, **TWICE), "parts.half"),
    "diffusion_nft": Case(DiffusionNFT(levels=2, kl=0.3, ramp=0.2, **FRESH), flow=True),
    "awm": Case(AWM(levels=2, clip=0.2, kl=0.3, **FRESH), "reward"),
    "ram": Case(RAM(levels=2, **FRESH)),
    "diffusion_dpo": Case(DiffusionDPO(levels=2, beta=5.0, **FRESH), "reward"),
    "dpok": Case(DPOK(clip=0.2, kl=0.3, **TWICE), "parts.half"),
    "flow_grpo": Case(FlowGRPO(clip=0.2, sampler=Window(DDIM(), 2, each="group"), **TWICE)),
    "draft": Case(DRaFT(k=2, kl=0.3, **FRESH), "reward"),
    "alignprop": Case(AlignProp(**FRESH)),
    "refl": Case(ReFL(first=0.3, last=0.7, **FRESH), "reward"),
    "drtune": Case(DRTune(active=2, **FRESH)),
    "grad_copy": Case(GradCopy(chosen=2, **FRESH), "parts.half"),
}


class Place(NamedTuple):
    """Where a signal comes: before this event of this kind; number 0 is never."""

    kind: str = ""
    number: int = 0
    signal: int = signal.SIGKILL


class Events:
    """Counts what happens, by kind, and sends this process its signal."""

    def __init__(self, place: Place) -> None:
        self.place, self.counts = place, Counter[str]()

    def see(self, kind: str) -> None:
        self.counts[kind] += 1
        if kind == self.place.kind and self.counts[kind] == self.place.number:
            os.kill(os.getpid(), self.place.signal)

    def before(self, real: Callable[..., Any], kind: Callable[..., str]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.see(kind(*args))
            return real(*args, **kwargs)

        return call


def step_of_a_save(name: str, *args: Any) -> str:
    """The kind of a change on the disk."""
    path = str(args[-1] if name in ("rename", "replace", "link", "save_file") else args[0])
    if "/checkpoints/best/" in path or "best.json" in path:
        return "best"
    if "/checkpoints/" not in path:
        return "file"
    if name == "write_text" and path.endswith(checkpoint.MANIFEST):
        return "manifest"
    if name == "rename" and "/checkpoints/checkpoint-" in path and not path.endswith(".json"):
        return "renaming"
    return "pruning" if "/.gone-" in path else "save"


def watch_the_disk(events: Events) -> None:
    for name in ("rename", "replace", "mkdir", "unlink", "rmdir", "link"):
        setattr(os, name, events.before(getattr(os, name), partial(step_of_a_save, name)))
    Path.write_text = events.before(Path.write_text, partial(step_of_a_save, "write_text"))  # type: ignore[method-assign]
    checkpoint.save_file = events.before(checkpoint.save_file, partial(step_of_a_save, "save_file"))
    Lines.add = events.before(Lines.add, lambda *_: "row")  # type: ignore[method-assign]
    os.fsync = lambda handle: None  # type: ignore[assignment]  # a kill leaves the kernel's buffers


class Shown(Toy):
    """Its pictures can be kept as files; its network calls are events."""

    events: Events

    def decode(self, x0: Tensor) -> Tensor:
        return (x0[:, :3].tanh() / 2 + 0.5).float().expand(-1, -1, 4, 4)

    def _network(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        self.events.see("learning" if torch.is_grad_enabled() else "drawing")
        return super()._network(x, t, text)


def small(images: Tensor, prompts: Any) -> Tensor:
    """Held out."""
    return -images.abs().flatten(1).mean(1)


def made(case: Case, folder: Path, events: Events, world: World) -> Training:
    """A run as the composition root makes it, with all that it may have beside it."""
    policy = Shown(layout=case.layout, flow=case.flow, sets=(*case.algorithm.sets, "ema"))
    policy.events = events
    optimizing: dict[str, Any] = {"ema": 0.9, "schedule": "cosine", "warmup_steps": 3}
    run = run_of(
        folder,
        case.algorithm,
        policy,
        reward=failing(lambda b: b == 3),
        world=world,
        micro=5,
        sampling=3,
        save=SAVE,
        **optimizing,
    )
    alarms = Alarms(pictures=6, checks=4, strips=0, window=1)
    strips = Trial(trial_prompts(source(TEXTS), 2, 2, SEED), 3, 1.0, DDIM(eta=0.0), SEED, 4)
    check = Check(strips, run.reward.reward, [adapt(small)])
    watch = Watch(alarms, case.algorithm.training_sampler, [adapt(small)], strips, check)
    run.record.watching = Watching(folder, watch, partial(Rules, alarms, ["small"]))
    run.reward.seen = watch.see
    run.record.samples = "all"  # with every prompt that was drawn
    run.record.update = events.before(run.record.update, lambda *_: "update")  # type: ignore[method-assign]
    run.checkpoints.limit = 2
    run.best = Best(folder, world, Merit(case.by, 1), 2)
    return run


def work(name: str, folder: Path, place: Place) -> None:
    """A run that begins, or goes on from what is there, until its end, or a signal."""
    torch.set_num_threads(1)
    events, world = Events(place), World()
    watch_the_disk(events)
    run = made(CASES[name], folder, events, world)
    with Stopping(world):
        run.train(run.checkpoints.latest())
    with (folder / EVENTS).open("w") as file:
        json.dump(events.counts, file)


def served() -> None:
    """A line of standard input is what to do; a process is forked for it, and its exit status is the answer.

    Forked here, where no graph was ever differentiated and no thread begun, and all is imported already.
    """
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # the first one imports for seconds
    for line in sys.stdin:
        name, folder, *place = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.dup2(2, 1)  # standard output has the answers
                work(name, Path(folder), Place(*place))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    served()
