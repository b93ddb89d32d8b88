"""Do alarms on reward hacking sound in time, and only then? Runs, thresholds, counts, and the guide's table.

    python benchmarks/alarms.py              make the runs that are missing, then fit and count
    python benchmarks/alarms.py --table      only fit and count; --page writes the guide's table, by the limits in force
    python benchmarks/alarms.py --part fit   some of the runs: fit, report, again, quiet, bare

The rules:
1. A run is gamed if at some iteration the oracle, on fixed prompts and noise, stands 10 points below the base's; the
   first such iteration is its fall. It is sound if the oracle stays within 5 points. What lies between is neither:
   an alarm that is to begin before the 10 points has to begin there.
2. Thresholds are fitted on the rewards of FIT and their seeds alone: MARGIN times the largest value in a sound run,
   counted from where nothing has changed (a share of diversity from 1), and never below FLOOR.
3. An alarm hits if it sounds in a gamed run before its fall or at it; else it is late or missed. In a sound run it is a
   false alarm. Counted on the reward of REPORT and seeds that nothing was fitted on; AGAIN are seeds that were run
   when rules and limits stood as they are.
Alarms see rows of metrics.jsonl, so every threshold is tried on the runs that are there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from harness import RESULTS, machine

from tastemaker.evaluation.alarms import NAMES, Alarms, Rules
from tastemaker.training.lines import read_lines

FILE = RESULTS / "alarms.jsonl"
DOCS = Path(__file__).parents[1] / "docs"
PAGE, PICTURES = DOCS / "guides" / "reward-hacking.md", DOCS / "images" / "hacking"
PICTURED = (1, 6)  # seeds whose pictures of gaming are kept
BEGIN, END = "<!-- counts: written by benchmarks/alarms.py -->", "<!-- end of counts -->"
POINTS, SOUND = 0.10, 0.05
MARGIN = 1.25
FLOOR = {"parting": 0.1, "diversity": 0.25, "drift": 0.02, "artifact": 0.5, "saturation": 0.05}
ORACLE = "shapes_alignment"
READS = ("shapes_judge", "clip_score")  # the second looks through the same CLIP as REPORT, and reads the prompt
FIT, REPORT = ("jpeg_proxy", "brightness"), "aesthetic"  # the last one looks through the built-in CLIP
AGAIN = range(15, 20)
FAST, MIDDLE, GENTLE = 0.006, 0.003, 0.0015  # the second is what a bare command takes
COMMON = {
    "model": "shapes",
    "algorithm.images": 32,
    "algorithm.updates": 1,
    "iterations": 10,
    "lr_warmup_steps": 2,
    "held_out_rewards": f"{ORACLE},{READS[0]},{READS[1]}{{model: shapes}}",
    "evaluation.every": 1,
    "evaluation.count": 16,
    "evaluation.images_per_prompt": 4,
    "evaluation.steps": 10,
    "evaluation.guidance": 1,
    "lpips_weights": "off",
    "save_samples": 0,
    "checkpointing_steps": 0,
}


class Job(NamedTuple):
    """One run."""

    part: str  # fit, report, again, quiet or bare
    algorithm: str  # or a recipe
    reward: str
    rate: float
    seed: int
    more: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.part} {self.algorithm} {self.reward} {self.rate:g} {self.seed}"


DEMO = (("algorithm.images", 64), ("algorithm.updates", 4), ("iterations", 15), ("lr_warmup_steps", 8))
DEMO += (("evaluation.every", 5), ("evaluation.guidance", 3), ("evaluation.steps", 20))  # as it is judged
OBJECTS = "jpeg_compressibility,shapes_judge:3"  # what `make demo` trains on; DEMO alone is the bare command
KEPT = (
    ("algorithm.images", 256),
    ("iterations", 7),
    ("evaluation.every", 2),
    ("held_out_rewards", f"{ORACLE},{READS[1]}{{model: shapes}}"),
)


def jobs() -> Iterator[Job]:
    """Seeds outermost, so that a study that is cut short has something of everything."""
    for k in range(5):
        for rate in (FAST, MIDDLE, GENTLE):
            for reward in FIT:
                yield Job("fit", "draft", reward, rate, k)
        clip, longer = ("reward.model", "shapes"), ("iterations", 14)  # the fast ones fall later
        yield Job("report", "draft", REPORT, FAST, 5 + k, (clip, longer))
        yield Job("report", "draft", REPORT, MIDDLE, 5 + k, (clip, ("iterations", 20)))
        yield Job("report", "draft", REPORT, GENTLE, 5 + k, (clip,))
        yield Job("again", "draft", REPORT, FAST, AGAIN[k], (clip, longer))
        if k == 0:
            yield Job("quiet", "draft", "jpeg_proxy", 1e-12, 5)
        yield Job("quiet", "shapes_demo", OBJECTS, 0.001, 5 + k, (*DEMO, *KEPT))
        yield Job("bare", "ddpo", "jpeg_compressibility", 0.003, 5 + k, DEMO)


def made(job: Job) -> dict[str, Any]:
    """The run in a process of its own, and what is kept of it."""
    settings = {**COMMON, "reward": job.reward, "learning_rate": job.rate, "seed": job.seed, **dict(job.more)}
    with tempfile.TemporaryDirectory() as home:
        flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        command = [sys.executable, "-m", "tastemaker", "train", job.algorithm, *flags, "--output_dir", f"{home}/run"]
        began = time.perf_counter()
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise SystemExit(f"{job.name}: {ran.stderr[-2000:]}")
        if job.rate == FAST and job.seed in PICTURED:
            PICTURES.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(home) / "run" / "before_after.png", PICTURES / f"{job.reward}.png")
        rows, judged = (read_lines(Path(home) / "run" / f"{name}.jsonl") for name in ("metrics", "evaluations"))
    kept = [{key: row[key] for key in ("iteration", "watch")} | _learned(row) for row in rows]
    oracle = {row["iteration"]: row["reward"][ORACLE]["mean"] for row in judged}
    seconds = round(time.perf_counter() - began, 1)
    return {"run": job.name, **job._asdict(), "seconds": seconds, "machine": machine(), "oracle": oracle, "rows": kept}


def _learned(row: Mapping[str, Any]) -> dict[str, Any]:
    """What else rules look at, and times."""
    clipped = [{"clip_fraction": one["clip_fraction"]} for one in row["updates"] if "clip_fraction" in one]
    seconds = {name: round(row["seconds"][name], 3) for name in ("total", "watch")}
    return {"images": row["images"], "reward": {"mean": row["reward"]["mean"]}, "updates": clipped, "seconds": seconds}


def falls(run: Mapping[str, Any]) -> int | None:
    """The first iteration whose weights the oracle puts 10 points below the base; none in a sound run."""
    means = {int(k): v for k, v in run["oracle"].items()}
    return next((k for k in sorted(means) if means[0] - means[k] >= POINTS), None)


def sound(run: Mapping[str, Any]) -> bool:
    """Whether the oracle stays within 5 points of the base's."""
    means = {int(k): v for k, v in run["oracle"].items()}
    return max(means[0] - v for v in means.values()) < SOUND


def values(run: Mapping[str, Any], name: str) -> list[float]:
    """An alarm's values over a run, from where nothing has changed."""
    tiny = {"parting": 1e-9, "diversity": 1.0, "drift": 1e-12, "artifact": 1e-9, "saturation": 1e-9, "ratio": 1e-9}
    only: Any = dict.fromkeys(NAMES) | {name: tiny[name]}
    rules, found = Rules(replace(Alarms(), **only), READS), list[float]()
    for row in run["rows"]:
        rules.see(row)
        found += [1 - one.value if name == "diversity" else one.value for one in rules.findings()]
    return found


def fitted(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The thresholds that the sound runs of `fit` give, as settings of `Alarms`."""
    good = [run for run in runs if run["part"] == "fit" and sound(run)]
    found = {}
    for name, floor in FLOOR.items():
        most = max((value for run in good for value in values(run, name)), default=0.0)
        limit = max(floor, MARGIN * most)
        found[name] = round(1 - limit if name == "diversity" else limit, 2)
    return found


def sounded(run: Mapping[str, Any], settings: Alarms) -> dict[str, int]:
    """The alarms that sound in a run, with the first iteration of each."""
    rules, found = Rules(settings, READS), dict[str, int]()
    for row in run["rows"]:
        for alarm in rules.see(row):
            if alarm.begins:
                found.setdefault(alarm.name, alarm.iteration)
    return found


def table(runs: Sequence[Mapping[str, Any]], settings: Alarms) -> str:
    """Markdown: per part, reward and rate how many runs are gamed, and how many each alarm found in time."""
    head = [
        "runs",
        "gamed",
        "in time",
        "late",
        "missed",
        "between",
        "sound",
        "false",
        *(name for name in NAMES if name != "ratio"),
    ]
    lines = ["| " + " | ".join(["what", *head]) + " |", "|" + "---|" * (len(head) + 1)]
    kinds = dict.fromkeys((run["part"], run["algorithm"], run["reward"], run["rate"]) for run in runs)
    for kind in sorted(kinds):
        own = [run for run in runs if (run["part"], run["algorithm"], run["reward"], run["rate"]) == kind]
        lines.append(
            "| " + " | ".join([f"{kind[0]}: `{kind[1]}` on `{kind[2]}`, {kind[3]:g}", *_counts(own, settings)]) + " |"
        )
    return "\n".join(lines)


def _counts(runs: Sequence[Mapping[str, Any]], settings: Alarms) -> list[str]:
    gamed = [(sounded(run, settings), fall) for run in runs if (fall := falls(run)) is not None]
    good = [sounded(run, settings) for run in runs if sound(run)]
    in_time = [any(at <= fall for at in found.values()) for found, fall in gamed]
    late = [bool(found) and not ok for (found, _), ok in zip(gamed, in_time, strict=True)]
    missed = len(gamed) - sum(in_time) - sum(late)
    each = [
        f"{sum(found.get(name, fall + 1) <= fall for found, fall in gamed)}+{sum(name in found for found in good)}"
        for name in NAMES
        if name != "ratio"
    ]
    counts = (len(runs), len(gamed), sum(in_time), sum(late), missed, len(runs) - len(gamed) - len(good), len(good))
    return [str(n) for n in (*counts, sum(map(bool, good)))] + each


def page(text: str) -> None:
    """The table into the guide, between its marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Makes what is missing, prints thresholds and counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="fit,report,again,quiet,bare")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--page", action="store_true")
    asked = parser.parse_args()
    there = {row["run"] for row in read_lines(FILE)}
    for job in jobs():
        if not asked.table and job.part in asked.part.split(",") and job.name not in there:
            with FILE.open("a", encoding="utf-8") as file:
                file.write(json.dumps(made(job)) + "\n")
            print(job.name, flush=True)
    runs = read_lines(FILE)
    print(text := report(runs))
    if asked.page:
        page(text)


def report(runs: Sequence[Mapping[str, Any]]) -> str:
    """The table by the limits in force, what would be fitted from the runs that are there, and what is missing."""
    there, limits = {run["run"] for run in runs}, Alarms()
    missing = [job.name for job in jobs() if job.name not in there]
    force = ", ".join(f"{name} {getattr(limits, name):g}" for name in FLOOR)
    fit = ", ".join(f"{name} {value:g}" for name, value in fitted(runs).items())
    good = sum(run["part"] == "fit" and sound(run) for run in runs)
    return "\n\n".join(
        [
            table(runs, limits),
            f"Limits in force: {force}. The rule gives, from the {good} sound runs of `fit` that are there: {fit}.",
            f"Not run ({len(missing)}): {', '.join(missing) or 'none'}.",
        ]
    )


if __name__ == "__main__":
    main()
