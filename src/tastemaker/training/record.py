"""What a run writes down while it goes: metrics.jsonl, samples, a line an iteration, progress bars."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import torch
from torch import Tensor
from tqdm import tqdm

from tastemaker.iteration import Iteration
from tastemaker.policy.policy import Policy, decode
from tastemaker.reports.trackers import Trackers
from tastemaker.rewards.recorded import Recorded
from tastemaker.training.hook import OnSamples, batches
from tastemaker.training.lines import Lines
from tastemaker.training.samples import Samples
from tastemaker.training.watching import Watching
from tastemaker.world import World

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

METRICS = "metrics.jsonl"
BINS = 20  # of an iteration's histogram of rewards


class Bars:
    """Progress on a terminal; where there is none, nothing (the line an iteration is enough for a log)."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.bar: Any = None

    def begin(self, what: str, total: int) -> None:
        self.end()
        if self.stream.isatty():
            self.bar = tqdm(total=total, desc=f"  {what}", leave=False, file=self.stream, dynamic_ncols=True)

    def advance(self, count: int, note: str = "") -> None:
        if self.bar is not None:
            self.bar.update(count)
            if note:
                self.bar.set_postfix_str(note)

    def end(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class Record:
    """Keeps the numbers of the iteration under way and writes them when it ends. One a device; only rank 0 writes.

    trackers, on_samples: are told of every iteration too, on rank 0. watching: looks at it; alarms are part of it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        iterations: int,
        write: bool = True,
        samples: int | Literal["all"] = 16,
        trackers: Trackers | None = None,
        on_samples: OnSamples | None = None,
        watching: Watching | None = None,
    ) -> None:
        self.folder, self.iterations, self.samples, self.watching = folder, iterations, samples, watching
        self.metrics = Lines(folder / METRICS, "metrics", write=write)
        self.shown = Samples(folder, "training", write=write)
        self.progress = Bars()
        self.write, self.on_samples = write, on_samples
        self.trackers = trackers or Trackers(folder, {})
        self.row: dict[str, Any] = {}  # of the iteration that ended last
        self._updates: list[dict[str, float]] = []
        self._held_out: dict[str, float] = {}
        self._before: dict[str, float] = {}
        self._carried: dict[str, float] = {}
        self._reached: dict[str, float] | None = None
        self._count: Callable[[], dict[str, float]] = dict
        self._began = self._started = time.perf_counter()
        self._first: int | None = None
        self._drawn: float | None = None
        self._drawing = self._learning = 0.0

    def rewind(self, iteration: int) -> None:
        """Forgets what lies behind the cursor: a resumed run makes it again."""
        self.metrics.keep(lambda row: row["iteration"] < iteration)
        self.shown.forget(lambda made: made >= iteration)
        if self.watching is not None:
            self.watching.rewind(iteration, self.metrics.path)

    def begin(self, iteration: int, reward: Recorded, policy: Policy) -> None:
        """A new iteration: counters are read, so that its end knows what it cost."""
        self._count = lambda: _counters(reward, policy)
        self._before, self._reached = self._count(), None
        self._began, self._drawn, self._drawing, self._learning = time.perf_counter(), None, 0.0, 0.0
        self._first = iteration if self._first is None else self._first

    def carry(self, carried: Mapping[str, Any]) -> None:
        """Goes on with the numbers of an interrupted iteration; called before `begin`."""
        self._updates = [dict(update) for update in carried["updates"]]
        self._held_out, self._carried = dict(carried["held_out"]), dict(carried["counters"])

    def carried(self) -> dict[str, Any]:
        """The numbers of this iteration so far, for a checkpoint inside it.

        Calls of an update that was begun and dropped are not among them: they are made again.
        """
        counters = self._spent(self._reached or self._count())
        return {"updates": self._updates, "held_out": self._held_out, "counters": counters}

    def judged(self, means: Mapping[str, float]) -> None:
        """The mean score by every judge of the evaluation before this iteration; called before the iteration ends."""
        self._held_out = dict(means)

    def why_failed(self, it: Iteration) -> str:
        """The last line of a failed score's traceback, where the reward raised."""
        return f"The last one said: {it.notes[-1].strip().splitlines()[-1]}" if it.notes else ""

    def learns(self) -> None:
        """Drawing is over, the first update begins."""
        self._drawn, self._reached = time.perf_counter(), self._count()

    def drew(self, seconds: float) -> None:
        """Pictures of one update were drawn after learning had begun."""
        self._drawing += seconds

    def update(self, made: int, stats: Mapping[str, float], seconds: float) -> None:
        """One optimizer step's statistics."""
        self._learning += seconds
        self._reached = self._count()
        row = dict(stats)
        if "log_ratio" in row and made == 0:
            row["mismatch"] = row["log_ratio"]  # before the first step the weights are those that drew the pictures
        self._updates.append(row)

    def finish(self, it: Iteration, policy: Policy) -> str:
        """The iteration is over: one row of metrics, one line on the terminal, some of its pictures, alarms.

        Why the run is to stop, empty where it goes on.
        """
        self.progress.end()
        spent, index = self._spent(self._count()), int(it.key.iteration)
        values, parts = _gathered(it)
        row: dict[str, Any] = {
            "iteration": index,
            "seconds": {k.removeprefix("s_"): v for k, v in spent.items() if k.startswith("s_")},
            "queries": it.world.sum(int(spent["queries"])),
            "network_calls": {
                "rows_forward": it.world.sum(int(spent["rows_forward"])),
                "rows_backward": it.world.sum(int(spent["rows_backward"])),
            },
            "images": len(values),
            "reward": {**_summary(values), "parts": parts},
            "held_out": self._held_out,
            "updates": self._updates,
            "memory": _memory(policy.device),
        }
        if self.watching is not None:
            start = time.perf_counter()
            row["watch"] = self.watching.look(it, row, self.progress)
            self.progress.end()
            row["seconds"]["watch"] = time.perf_counter() - start
        self.metrics.add(row)
        self.row = row
        if self.write:
            print(self._line(row), flush=True)
            self.trackers.iteration(row, values.tolist(), self._keep_samples(it, policy))
        self._updates, self._held_out, self._carried = [], {}, {}
        return "" if self.watching is None else self.watching.tell(row, it.world)

    def tell(self, it: Iteration, policy: Policy) -> None:
        """The user's function is given the iteration's pictures; called after `finish`, and after the checkpoint."""
        if self.write and self.on_samples is not None:
            told = batches(it, policy, _own_parts(it))
            self.on_samples(told, int(it.key.iteration), self.trackers.raw)

    def _spent(self, now: Mapping[str, float]) -> dict[str, float]:
        spent = {name: now[name] - self._before[name] for name in now}
        total = time.perf_counter() - self._began
        sampling = (self._drawn or time.perf_counter()) - self._began + self._drawing
        spent |= {"s_total": total, "s_sampling": sampling, "s_learning": self._learning}
        spent["s_other"] = total - sampling - self._learning
        return {name: value + self._carried.get(name, 0) for name, value in spent.items()}

    def _line(self, row: Mapping[str, Any]) -> str:
        done = row["iteration"] + 1
        each = (time.perf_counter() - self._started) / (done - (self._first or 0))
        reward, last = row["reward"], (row["updates"] or [{}])[-1]
        mean = f"{reward['mean']:.4g} +- {reward['std']:.3g}" if "mean" in reward else "none"
        failed = f"  {reward['failed']} failed" if reward["failed"] else ""
        same = "min" in reward and reward["min"] == reward["max"] and row["images"] > 1  # std has its rounding
        failed += "  all scores are equal: nothing to learn from" if same else ""
        norm = f"  grad {last['grad_norm']:.2g}" if "grad_norm" in last else ""
        left = f"  {_clock(each * (self.iterations - done))} left" if done < self.iterations else ""
        seconds = row["seconds"]["total"]
        return f"iteration {done}/{self.iterations}  reward {mean}{failed}{norm}  {seconds:.1f} s{left}"

    def _keep_samples(self, it: Iteration, policy: Policy) -> list[dict[str, Any]]:
        """Some of the pictures, best, worst and spread between, drawn again from their latents. Returns their rows."""
        reward, x0 = it.kept.get("rollout.reward"), it.kept.get("rollout.x0")
        if reward is None or x0 is None or not len(reward) or self.samples == 0:
            return []
        rows = _spread(reward, len(reward) if self.samples == "all" else self.samples)
        parts = _own_parts(it)
        with torch.no_grad():
            images = decode(policy, x0[rows].to(policy.device))
        return [
            self.shown.add(
                int(it.key.iteration),
                it.prompts.ids[row],
                image,
                prompt=it.prompts.texts[row],
                reward=float(reward[row]),
                parts={name: float(part[row]) for name, part in parts.items()},
            )
            for row, image in zip(rows, images, strict=True)
        ]


def _counters(reward: Recorded, policy: Policy) -> dict[str, float]:
    return {
        "queries": reward.queries,
        "s_reward": reward.seconds,
        "rows_forward": policy.rows.forward,
        "rows_backward": policy.rows.backward,
    }


def _gathered(it: Iteration) -> tuple[Tensor, dict[str, float]]:
    """Everyone's rewards `[N]`, and the mean of every named part."""
    own = it.kept.get("rollout.reward", torch.zeros(0))
    ids, mine, parts = it.prompts.ids[: len(own)], _own_parts(it), {}
    for name in names_anywhere(it.world, mine):
        everyones = it.world.everyone(mine.get(name, torch.full((len(own),), torch.nan)), ids=ids)
        parts[name] = float(everyones.nanmean())
    return it.world.everyone(own, ids=ids), parts


def _histogram(ok: Tensor) -> list[int]:
    """How many of the rewards `[N]`, one or more, lie in each of the equal bins from their least to their greatest."""
    low, high = ok.double().min(), ok.double().max()
    places = ((ok.double() - low) / (high - low) * BINS).nan_to_num().long().clamp(max=BINS - 1)
    counts: list[int] = torch.bincount(places, minlength=BINS).tolist()
    return counts


def _summary(values: Tensor) -> dict[str, Any]:
    """What everyone's rewards `[N]` are like; how many failed."""
    ok = values[values.isfinite()]
    found = {"mean": ok.mean(), "std": ok.std(correction=0), "min": ok.min(), "max": ok.max()} if len(ok) else {}
    numbers: dict[str, Any] = {name: float(value) for name, value in found.items()}
    return numbers | ({"histogram": _histogram(ok)} if len(ok) else {}) | {"failed": len(values) - len(ok)}


def _own_parts(it: Iteration) -> dict[str, Tensor]:
    """The named parts `[B]` of this device's rewards."""
    prefix = "rollout.parts."
    return {name.removeprefix(prefix): value for name, value in it.kept.items() if name.startswith(prefix)}


def names_anywhere(world: World, names: Iterable[str]) -> list[str]:
    """All names that some device has, sorted, the same on every device."""
    text = "".join(f"{name}\n" for name in sorted(names)).encode()
    ids = range(world.rank << 32, (world.rank << 32) + len(text))  # so that no two devices' texts mix
    whole = world.everyone(torch.tensor(list(text), dtype=torch.uint8), ids=ids)
    return sorted(set(bytes(whole.tolist()).decode().splitlines()))


def _spread(reward: Tensor, count: int) -> list[int]:
    """`count` rows from the best to the worst, evenly by rank; failed ones last."""
    order: list[int] = torch.argsort(reward.nan_to_num(-math.inf), descending=True).tolist()
    count = min(count, len(order))
    picks: Sequence[int] = [round(k * (len(order) - 1) / max(count - 1, 1)) for k in range(count)]
    return [order[k] for k in dict.fromkeys(picks)]


def _memory(device: torch.device) -> dict[str, int]:
    """The most that was held at once until now: of a CUDA device, else of the whole process."""
    if device.type == "cuda":
        return {"peak_bytes": torch.cuda.max_memory_allocated(device)}
    if resource is None:
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
