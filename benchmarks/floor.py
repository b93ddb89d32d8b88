"""One iteration against its network rows alone, in pairs:  python benchmarks/floor.py [--algorithm alignprop]

Ours is a whole iteration of 64 images x 20 steps with guidance: prompts, text, noise, chain, decoding, reward, credit,
loss, optimizer, metrics and kept pictures. The floor is what no implementation can leave out: the network's rows, as
many forward and as many forward and backward as the iteration needs, each in the fastest calls that were found. Both
alternate in one process, and an iteration is compared with the mean of the floors before and after it, so that a
machine that grows slower does not favour either.

Where the reward is differentiated, a picture's chain costs what was drawn for it: the steps before its first live one
are rows forward, its live steps rows forward and backward, and those behind another live one also hand a gradient on
to what they saw. The floor's rows are then so many of each as are timed well, and count by what the iteration needed.
Decoding, which is differentiated too, is no network row; the ratio to rows and decoder together is shown beside.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness import (
    GRADIENTS,
    RESULTS,
    Network,
    Rows,
    algorithm_of,
    fastest,
    machine,
    metrics,
    reward_for,
    training,
    write_result,
)

from tastemaker.algorithms.drtune import DRTune
from tastemaker.iteration import Later

GOALS = {"ddpo": 1.10, "alignprop": 1.15}
TIMED = 1024  # rows of each kind that are timed, at most, where every iteration needs others


class Needed(NamedTuple):
    """Network rows that an iteration cannot do without."""

    forward: int
    both: int
    through: int = 0  # of both, the rows whose gradient goes on to what the network saw


class Counted:
    """An algorithm, and what its iterations needed: known once an update's pictures are drawn."""

    def __init__(self, algorithm: Any) -> None:
        self.algorithm = algorithm
        self.needed: list[Needed] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.algorithm, name)

    def iteration(self, it: Any) -> Iterator[Any]:
        self.needed.append(Needed(0, 0) if self.algorithm.differentiates else plan_rows(it.plan))
        for update in self.algorithm.iteration(it):
            if isinstance(update.batch, Later):
                make = partial(self._made, update.batch.make, it.plan)
                update = update._replace(batch=replace(update.batch, make=make))
            yield update

    def _made(self, make: Any, plan: Any) -> Any:
        batch = make()
        found = (calls * plan.guided for calls in calls_of(batch, plan.steps, self.algorithm))
        self.needed[-1] = Needed(*map(sum, zip(self.needed[-1], found, strict=True)))
        return batch


def plan_rows(plan: Any) -> Needed:
    return Needed(plan.sampling_rows, plan.learning_rows)


def calls_of(batch: Any, steps: int, algorithm: Any) -> Needed:
    """Calls behind one update's pictures, guidance aside.

    The first live call of a picture sees what depends on no weights; later ones hand a gradient on to what they saw,
    which costs their first layers a backward pass too. DRTune's see cut inputs.
    """
    starts = getattr(batch, "starts", batch)
    if not hasattr(starts, "course"):  # steps of whole chains that are learned from one by one
        return Needed((int(batch.sample.max()) + 1) * steps, len(batch))
    live = int(starts.course.live.sum())
    through = 0 if isinstance(algorithm, DRTune) else live - len(starts)
    return Needed(int((starts.course.stop + 1).clamp(max=steps).sum()) - live, live, through)


class Alternation:
    """Stands between the iterations of a run: takes the time of the last one, and then of the network alone."""

    def __init__(self, pairs: int, profiled: bool) -> None:
        self.pairs, self.profile = pairs, cProfile.Profile() if profiled else None
        self.ours: list[float] = []
        self.network: list[tuple[float, ...]] = []  # of each kind of rows
        self.rows: tuple[Rows, ...] = ()
        self.counted: Counted | None = None
        self.began = 0.0

    def prepare(self, policy: Any, run: Any) -> None:
        """Looks for the fastest calls, before the run, because it takes a while; and begins to count."""
        own = Network.of(policy)
        networks = [own, own.copied(torch.channels_last)]
        run.algorithm = self.counted = Counted(run.algorithm)
        timed = plan_rows(run.plan)
        if run.algorithm.differentiates:
            every = run.plan.images * run.plan.steps * run.plan.guided
            timed = Needed(*(max(64, min(TIMED, every) // 64 * 64),) * 2)
        print("the network alone:")
        forward = fastest(networks, timed.forward, learn=False)
        both = fastest(networks, timed.both, learn=True)
        self.rows = forward, both, replace(both, through=True)
        print("the floor: " + "; ".join(map(str, self.rows)))

    def __call__(self, k: int) -> None:
        if k:
            self.ours.append(time.perf_counter() - self.began)
        if k > self.pairs + 1:
            if self.profile:
                self.profile.disable()
            return
        self.network.append(tuple(rows.seconds() for rows in self.rows))
        if self.profile and k == self.pairs + 1:
            self.profile.enable()
        self.began = time.perf_counter()

    def alone(self, k: int) -> tuple[float, float]:
        """Seconds of iteration k's rows forward, and of those forward and backward, as the network took beside it."""
        assert self.counted is not None
        needed = self.counted.needed[k]
        counts = needed.forward, needed.both - needed.through, needed.through
        kinds = zip(counts, self.rows, *self.network[k : k + 2], strict=True)
        forward, both, through = (count / timed.rows * (one + two) / 2 for count, timed, one, two in kinds)
        return forward, both + through

    def floor(self, k: int) -> float:
        """Seconds of the floor beside iteration k."""
        return sum(self.alone(k))


def compare(taken: Alternation, rows: list[dict[str, Any]], pairs: int, decoder: float | None) -> dict[str, Any]:
    """Every pair that counts, and the medians."""
    ks = range(1, pairs + 1)
    ratios = [taken.ours[k] / taken.floor(k) for k in ks]
    decoded = [taken.ours[k] / (taken.floor(k) + (decoder or 0.0)) for k in ks]
    print("\n  iteration   network   ratio   with the decoder   (s)")
    for k, ratio, other in zip(ks, ratios, decoded, strict=True):
        print(f"  {taken.ours[k]:9.2f} {taken.floor(k):9.2f} {ratio:7.3f} {other:18.3f}")
    parts = {name: statistics.median(rows[k]["seconds"][name] for k in ks) for name in rows[0]["seconds"]}
    kinds = zip(("forward", "both"), zip(*map(taken.alone, ks), strict=True), strict=True)
    alone = {name: statistics.median(values) for name, values in kinds}
    print(f"\nsampling {parts['sampling']:.2f} s, its rows alone {alone['forward']:.2f} s")
    print(f"learning {parts['learning']:.2f} s, its rows alone {alone['both']:.2f} s")
    where = "beside the sampling" if decoder is None else "in the learning"
    print(f"the rest {parts['other']:.2f} s; scoring, {where}, {parts['reward']:.2f} s")
    if decoder is not None:
        print(
            f"the decoder, forward and backward, of all pictures {decoder:.2f} s; iteration / (rows + decoder) "
            f"{statistics.median(decoded):.3f}"
        )
    print(f"the first iteration {taken.ours[0]:.2f} s")
    assert taken.counted is not None
    return {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "with_decoder": decoded,
        "ours": [taken.ours[k] for k in ks],
        "alone": [taken.floor(k) for k in ks],
        "first_iteration": taken.ours[0],
        "parts": parts,
        "alone_parts": alone,
        "needed": [taken.counted.needed[k]._asdict() for k in ks],
        "decoder": decoder,
    }


def decoding(policy: Any, pictures: int, at_once: int) -> float:
    """Seconds of decoding so many pictures and of the way back, as learning does it; the best of three."""
    found = []
    for _ in range(3):
        x0 = torch.randn(pictures, *policy.latent_shape, device=policy.device, requires_grad=True)
        began = time.perf_counter()
        for part in x0.split(at_once):
            policy.decode(part).mean().backward()
        found.append(time.perf_counter() - began)
    return min(found)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=("ddpo", *GRADIENTS), default="ddpo")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--updates", type=int, help="4 of ddpo, 1 of those that differentiate the reward")
    for name in ("micro_batch", "sampling_batch"):
        parser.add_argument(f"--{name}", type=int, help="the plan's choice if not given")
    parser.add_argument("--threads", type=int, help="of torch; its own choice if not given")
    parser.add_argument("--profile", action="store_true", help="the iteration that does not count, under cProfile")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args(argv)
    asked.updates = asked.updates or (4 if asked.algorithm == "ddpo" else 1)
    return asked


def main(argv: list[str] | None = None) -> int:
    asked = arguments(argv)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    own = {name: getattr(asked, name) for name in ("images", "steps", "updates")}
    rate = 3e-3 if asked.algorithm == "ddpo" else 3e-4
    # the first iteration fills caches, the last writes a checkpoint and may be profiled
    made = {"guidance": 3.0, "learning_rate": rate, "iterations": asked.pairs + 2}
    algorithm = algorithm_of(asked.algorithm, own | made)
    settings = {"model": asked.model, "reward": reward_for(algorithm), "prompts": "shapes", "device": "cpu"}
    settings["plan"] = {"micro_batch": asked.micro_batch, "sampling_batch": asked.sampling_batch}
    taken = Alternation(asked.pairs, asked.profile)
    with tempfile.TemporaryDirectory() as folder:
        run, policy = training(algorithm, settings, Path(folder), taken)
        taken.prepare(policy, run)
        decoder = decoding(policy, asked.images, run.plan.micro_batch) if algorithm.differentiates else None
        run.train()
        found = compare(taken, metrics(Path(folder)), asked.pairs, decoder)
    calls = {"micro_batch": run.plan.micro_batch, "sampling_batch": run.plan.sampling_batch}
    floor = [str(rows) for rows in taken.rows]
    setting = {"algorithm": asked.algorithm, "model": asked.model, **own}
    result = {"benchmark": "floor", **setting, **calls, "floor": floor, **found, "machine": machine()}
    goal = GOALS.get(asked.algorithm)
    print(f"\nmedian ratio {found['ratio']:.3f} ({f'goal: at most {goal:.2f}' if goal else 'no goal'})")
    print(write_result("floor", result, asked.results))
    if taken.profile:
        pstats.Stats(taken.profile).sort_stats("tottime").print_stats(35)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
