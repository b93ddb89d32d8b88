"""What the watch costs: iterations of the demo with it and without, in turns, in one process.

    python benchmarks/watch.py --pairs 6        goal: at most 3 % of an iteration

Each pair is an iteration with the watch and the one after it without; the order turns around from pair to pair. What
strips and checks take is evaluation and stands apart: it is measured in the same iterations and taken out. Judged by
what the watch and the best checkpoints took, by a clock around each, of the rest of their iteration; and beside it by
the median over pairs of (with - strips and checks) / without, which sees what no clock is around, but scatters as
iterations do.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from harness import algorithm_of, machine, training, write_result

from tastemaker.evaluation.alarms import Alarms, Rules
from tastemaker.evaluation.checking import Check
from tastemaker.evaluation.evaluate import Trial, trial_prompts
from tastemaker.evaluation.watch import Watch
from tastemaker.process.samplers import DDIM, Window
from tastemaker.prompts.sources import source
from tastemaker.rewards import named
from tastemaker.training.best import Best
from tastemaker.training.merit import Merit
from tastemaker.training.trainer import Training
from tastemaker.training.watching import Watching

DEMO = {"images": 256, "updates": 4, "steps": 10, "guidance": 1.0, "learning_rate": 0.001, "clip": 0.001}
EARLY = Window(DDIM(), size=3, last=2)
REWARD = {"sum": [{"name": "jpeg_compressibility"}, {"name": "shapes_judge", "weight": 3}]}


class Turns:
    """Switches the watch on and off between iterations, and keeps the time of each."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        self.with_watch: list[bool] = []
        self.extra: dict[int, float] = {}  # by iteration: strips and checks
        self.kept: dict[int, float] = {}  # and the best checkpoints, which wait, are judged and written

    def between(self, index: int) -> None:
        self.marks.append(time.perf_counter())

    def attach(self, run: Training, folder: Path) -> None:
        """The run with a watch that is on in iterations 1, 4, 5, 8, 9, ... and off in the others."""
        alarms = Alarms()
        prompts, held_out = source("shapes_heldout"), [named({"name": "clip_score", "model": "shapes"})]
        strips, fixed = (
            Trial(trial_prompts(prompts, count, each, 0), DEMO["steps"], guidance, DDIM(eta=0.0), 0, 8)
            for count, each, guidance in ((4, 2, DEMO["guidance"]), (alarms.checks // 4, 4, 3.0))
        )
        check = Check(fixed, run.reward.reward, held_out)
        watch = Watch(alarms, run.algorithm.training_sampler, held_out, strips, check)
        watch._strips = partial(self._timed, self.extra, watch._strips)  # type: ignore[method-assign]
        watch.check = partial(self._timed, self.extra, watch.check)  # type: ignore[method-assign]
        watching = Watching(folder, watch, partial(Rules, alarms, ["clip_score"]))
        best, tell = Best(folder, run.world, Merit("held_out.clip_score")), run.record.tell
        best.offer = partial(self._timed, self.kept, best.offer)  # type: ignore[method-assign]
        best.settle = partial(self._timed, self.kept, best.settle)  # type: ignore[method-assign]

        def switch(index: int) -> None:
            on = index % 4 in (0, 1)
            self.with_watch.append(on)
            run.record.watching, run.best = (watching, best) if on else (None, None)
            run.reward.seen = watch.see if on else None

        def told(*args: Any) -> None:
            tell(*args)
            switch(len(self.with_watch))

        run.record.tell = told  # type: ignore[method-assign]
        switch(0)

    def _timed(self, into: dict[int, float], what: Any, *asked: Any) -> Any:
        began, k = time.perf_counter(), len(self.with_watch) - 1
        found = what(*asked)
        into[k] = into.get(k, 0.0) + time.perf_counter() - began
        return found


def main() -> None:
    """Prints and writes the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=6)
    asked = parser.parse_args()
    algorithm = algorithm_of("ddpo", {**DEMO, "sampler": EARLY, "iterations": 2 * asked.pairs + 1})
    settings = {"model": "shapes", "reward": REWARD, "prompts": "shapes", "device": "cpu"}
    turns = Turns()
    with tempfile.TemporaryDirectory() as folder:
        run, _ = training(algorithm, settings, Path(folder), turns.between)
        turns.attach(run, Path(folder))
        run.train()
        rows = run.record.metrics.rows()
    lasted = [after - before for before, after in zip(turns.marks, turns.marks[1:], strict=False)]
    own = [row["seconds"].get("watch", 0.0) for row in rows]
    pairs = [(k, k + 1) if turns.with_watch[k] else (k + 1, k) for k in range(1, len(lasted) - 1, 2)]  # 0 fills caches
    bare = [seconds - turns.extra.get(k, 0.0) for k, seconds in enumerate(own)]
    ratios = [(lasted[w] - own[w] + bare[w]) / lasted[o] for w, o in pairs]
    kept = [turns.kept.get(k, 0.0) for k in range(len(own))]
    share = sum(bare[w] + kept[w] for w, _ in pairs) / sum(lasted[w] - own[w] - kept[w] for w, _ in pairs)
    found = {
        "benchmark": "watch",
        **DEMO,
        "sampler": str(EARLY),
        "pairs": len(pairs),
        "ratio": statistics.median(ratios),
        "share": share,
        "strips_and_checks_seconds": [round(seconds, 3) for seconds in turns.extra.values()],
        "best_checkpoints_seconds": [round(kept[w], 3) for w, _ in pairs],
        "seconds": [[round(lasted[w], 3), round(own[w], 3), round(lasted[o], 3)] for w, o in pairs],
        "machine": machine(),
    }
    print(f"share by the clocks {share:.3%} (goal: at most 3 %), median ratio of pairs {found['ratio']:.3f}")
    print(write_result("watch", found))


if __name__ == "__main__":
    main()
