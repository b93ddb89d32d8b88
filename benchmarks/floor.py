"""One DDPO iteration against its network rows alone, in pairs:  python benchmarks/floor.py

Ours is a whole iteration of 64 images x 20 steps with guidance: prompts, text, noise, chain, decoding, JPEG, credit,
loss, optimizer, metrics and kept pictures. The floor is what no implementation can leave out: the network's rows, as
many forward and as many forward and backward as the plan says, each in the fastest calls that were found. Both
alternate in one process, and an iteration is compared with the mean of the floors before and after it, so that a
machine that grows slower does not favour either.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, Network, Rows, fastest, machine, metrics, training, write_result

from tastemaker.algorithms.ddpo import DDPO

GOAL = 1.10


class Alternation:
    """Stands between the iterations of a run: takes the time of the last one, and then of the network alone."""

    def __init__(self, pairs: int, profiled: bool) -> None:
        self.pairs, self.profile = pairs, cProfile.Profile() if profiled else None
        self.ours: list[float] = []
        self.forward: list[float] = []
        self.both: list[float] = []
        self.rows: tuple[Rows, Rows] | None = None
        self.began = 0.0

    def prepare(self, policy: Any, plan: Any) -> None:
        """Looks for the fastest calls; before the run, because it takes a while."""
        own = Network.of(policy)
        networks = [own, own.copied(torch.channels_last)]
        print("the network alone:")
        forward = fastest(networks, plan.sampling_rows, learn=False)
        self.rows = forward, fastest(networks, plan.learning_rows, learn=True)
        print(f"the floor: {self.rows[0]}; {self.rows[1]}")

    def __call__(self, k: int) -> None:
        if k:
            self.ours.append(time.perf_counter() - self.began)
        if k > self.pairs + 1:
            if self.profile:
                self.profile.disable()
            return
        assert self.rows is not None
        self.forward.append(self.rows[0].seconds())
        self.both.append(self.rows[1].seconds())
        if self.profile and k == self.pairs + 1:
            self.profile.enable()
        self.began = time.perf_counter()

    def floor(self, k: int) -> float:
        """Seconds of the floor beside iteration k."""
        return sum(self.forward[k : k + 2] + self.both[k : k + 2]) / 2


def compare(taken: Alternation, rows: list[dict[str, Any]], pairs: int) -> dict[str, Any]:
    """Every pair that counts, and the medians."""
    ks = range(1, pairs + 1)
    ratios = [taken.ours[k] / taken.floor(k) for k in ks]
    print("\n  iteration   network   ratio   (s)")
    for k, ratio in zip(ks, ratios, strict=True):
        print(f"  {taken.ours[k]:9.2f} {taken.floor(k):9.2f} {ratio:7.3f}")
    parts = {name: statistics.median(rows[k]["seconds"][name] for k in ks) for name in rows[0]["seconds"]}
    alone = {"forward": statistics.median(taken.forward[1:]), "both": statistics.median(taken.both[1:])}
    print(f"\nsampling {parts['sampling']:.2f} s, its rows alone {alone['forward']:.2f} s")
    print(f"learning {parts['learning']:.2f} s, its rows alone {alone['both']:.2f} s")
    print(f"the rest {parts['other']:.2f} s; scoring, beside the sampling, {parts['reward']:.2f} s")
    print(f"the first iteration {taken.ours[0]:.2f} s")
    return {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "ours": [taken.ours[k] for k in ks],
        "alone": [taken.floor(k) for k in ks],
        "first_iteration": taken.ours[0],
        "parts": parts,
        "alone_parts": alone,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--threads", type=int, help="of torch; its own choice if not given")
    parser.add_argument("--profile", action="store_true", help="the iteration that does not count, under cProfile")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args(argv)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    iterations = asked.pairs + 2  # the first fills caches, the last writes a checkpoint and may be profiled
    algorithm = DDPO(
        images=asked.images,
        steps=asked.steps,
        updates=asked.updates,
        guidance=3.0,
        learning_rate=3e-3,
        iterations=iterations,
    )
    settings = {"model": asked.model, "reward": "jpeg_compressibility", "prompts": "shapes", "device": "cpu"}
    taken = Alternation(asked.pairs, asked.profile)
    with tempfile.TemporaryDirectory() as folder:
        run, policy = training(algorithm, settings, Path(folder), taken)
        taken.prepare(policy, run.plan)
        run.train()
        found = compare(taken, metrics(Path(folder)), asked.pairs)
    setting = {name: getattr(asked, name) for name in ("model", "images", "steps", "updates")}
    calls = {"micro_batch": run.plan.micro_batch, "sampling_batch": run.plan.sampling_batch}
    floor = [str(rows) for rows in taken.rows or ()]
    result = {"benchmark": "floor", **setting, **calls, "floor": floor, **found, "machine": machine()}
    print(f"\nmedian ratio {found['ratio']:.3f} (goal: at most {GOAL:.2f})")
    print(write_result("floor", result, asked.results))
    if taken.profile:
        pstats.Stats(taken.profile).sort_stats("tottime").print_stats(35)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
