"""Does it learn?  Runs and their controls over seeds, by one protocol (README.md beside this file).

    python benchmarks/learn.py --row short --jobs 2          # the four short rows
    python benchmarks/learn.py --row long,demo,fast
    python benchmarks/learn.py --row all --table             # only the table of what is there
    python benchmarks/learn.py --row all --page ../docs/leaderboard.md

A line of results/learn.jsonl is one run; runs whose line is there, with the same settings and the same base model, are
not made again, so the table can be filled over days.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import queries
import yaml
from controls import Permuted, Signed
from protocol import page, table
from rows import CLIP, ROWS, Row

HERE = Path(__file__).resolve().parent
ORACLE = "shapes_alignment"  # its parts are what the world's oracle reads: 1 where it is as the caption asks
OWN = ("target", "fields", "judge", "beside")  # of a row's settings, what is no setting of a run


@dataclass(frozen=True)
class Job:
    """One run."""

    row: Row
    seed: int
    control: bool
    model: str
    overrides: Mapping[str, Any]
    digest: str  # of the settings and the base model: a line with another one is of other runs

    @property
    def key(self) -> tuple[str, int, bool, str]:
        return self.row.name, self.seed, self.control, self.digest

    def __str__(self) -> str:
        return f"{self.row.name}, seed {self.seed}{', control' if self.control else ''}"


def jobs_of(
    rows: Sequence[Row], seeds: Sequence[int] | None, model: str | None, overrides: Mapping[str, Any]
) -> Iterator[Job]:
    """All runs of the rows, the control of a seed right after its run; on `model` where it is given."""
    from tastemaker.shapes import assets

    for row in rows:
        base, recipe = model or row.model, recipe_of(row)
        algorithm = recipe["algorithm"]["name"] if recipe else row.target
        settings = row.settings(overrides)
        given = {*settings, *row.fields, *recipe, *(recipe["algorithm"] if recipe else ())}
        parts = [settings, recipe, model_mark(base), brought(base, algorithm, given, {*row.fields})]
        reward = row.reward or str(recipe["reward"])
        if "shapes_judge" in reward:
            parts.append(assets.judge().read_bytes().hex())
        if CLIP in reward:
            parts.append((assets.clip() / assets.SUMS).read_text(encoding="utf-8"))
        described = json.dumps(parts, sort_keys=True)
        digest = hashlib.blake2b(described.encode(), digest_size=6).hexdigest()
        for seed in seeds or range(row.seeds):
            for control in (False, True)[: 1 + row.control]:
                yield Job(row, seed, control, base, overrides, digest)


def recipe_of(row: Row) -> dict[str, Any]:
    """What the recipe says that the row runs; nothing where it runs an algorithm."""
    from tastemaker.config import recipes

    return yaml.safe_load(recipes()[row.target].read_text(encoding="utf-8")) if row.target in recipes() else {}


@cache
def model_mark(model: str) -> str:
    """A digest of the model's weights."""
    from tastemaker.policy.load import folder

    place = folder(model)
    if place is None:
        return model
    found = hashlib.blake2b(digest_size=6)
    for file in sorted(place.glob("*/*.safetensors")):
        found.update(file.read_bytes())
    return found.hexdigest()


def brought(model: str, algorithm: str, given: Set[str], fields: Set[str]) -> list[dict[str, Any]]:
    """The model's defaults and those for this algorithm, but for what others take the place of: not groups of a run."""
    from tastemaker.config import model_defaults
    from tastemaker.policy.load import folder

    place = folder(model)
    own = model_defaults(place) if place else {}
    parts = [own.get("defaults", {}), own.get("algorithms", {}).get(algorithm, {})]
    return [{k: v for k, v in one.items() if k not in (given if type(v) is not dict else fields)} for one in parts]


def alone(job: Job, folder: Path, threads: int) -> dict[str, Any]:
    """`perform` in a process of its own, so that a run that dies takes no other one with it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(perform, job, folder, threads).result()


def perform(job: Job, folder: Path, threads: int) -> dict[str, Any]:
    """Makes one run in `folder`; its words go into a log there."""
    import torch

    torch.set_num_threads(threads)
    with (folder / "log.txt").open("w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        with contextlib.redirect_stderr(log):
            try:
                began = time.perf_counter()
                train(job, folder / "run")
                return summary(job, folder / "run") | {"wall": time.perf_counter() - began, "threads": threads}
            except Exception:
                traceback.print_exc()
                raise


def train(job: Job, folder: Path) -> None:
    """`tastemaker.train` with the row's settings."""
    import tastemaker
    from tastemaker.build import attribute, build
    from tastemaker.config import algorithm_of, algorithms
    from tastemaker.rewards import named

    name, given, reward = job.row.target, job.row.fields, job.row.reward or recipe_of(job.row)["reward"]
    judges = dict.fromkeys([job.row.judged, *job.row.beside, ORACLE])
    if CLIP in reward and not job.control:
        judges.pop(reward, None)  # what is trained on is judged anyway; a reward with settings would be twice
    settings = job.row.settings(job.overrides) | {
        "model": job.model,
        "seed": job.seed,
        "reward": reward,
        "held_out_rewards": list(judges),
        "output_dir": str(folder),
        "device": "cpu",
        "save_samples": 0,
        "checkpointing_steps": 0,
    }
    if job.control:
        differentiates = attribute(algorithms()[algorithm_of(name)]).differentiates
        settings["reward"] = (Signed if differentiates else Permuted)(named(reward), job.seed)
        settings["evaluation"] = {**settings["evaluation"], "every": 0}  # only its two ends are read
    algorithm = build(attribute(algorithms()[name]), given) if given else name
    tastemaker.train(algorithm=algorithm, **{key: value for key, value in settings.items() if key not in OWN})


def summary(job: Job, folder: Path) -> dict[str, Any]:
    """One run in numbers: what changed from base to tuned on the same prompts and noise, and what it cost."""
    from harness import machine

    from tastemaker.rewards import named
    from tastemaker.training.lines import read_lines

    judged, metrics = read_lines(folder / "evaluations.jsonl"), read_lines(folder / "metrics.jsonl")
    judge = named(job.row.judged).name
    last = judged[-1]["change"][judge]
    curve = [_point(row, metrics, judge) for row in judged]
    return {
        "row": job.row.name,
        "seed": job.seed,
        "control": job.control,
        "digest": job.digest,
        "iterations": len(metrics),
        "queries": sum(row["queries"] for row in metrics),
        "rows_forward": curve[-1]["rows_forward"],
        "rows_backward": curve[-1]["rows_backward"],
        "seconds": curve[-1]["seconds"],
        "mismatch": max(row["updates"][0].get("mismatch", 0.0) for row in metrics),
        "judge": judge,
        "change": {"sd": last["deviations"], "mean": last["mean"], "low": last["low"], "high": last["high"]},
        "reward": [judged[k]["reward"][judge]["mean"] for k in (0, -1)],
        "pictures": judged[-1]["pictures"],
        "training": [row["reward"].get("mean") for row in metrics],
        "curve": curve,
        "machine": machine(),
    }


def _point(row: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], reward: str) -> dict[str, Any]:
    """An evaluation, with what had been spent until then."""
    before = [one for one in metrics if one["iteration"] < row["iteration"]]
    found = {f"oracle_{name}": row["reward"][f"{ORACLE}.{name}"]["mean"] for name in ("colour", "shape", "count")}
    return found | {
        "iteration": row["iteration"],
        "sd": row["change"][reward]["deviations"],
        "changes": {name: one["deviations"] for name, one in row["change"].items() if "." not in name},
        "alignment": row["reward"][ORACLE]["mean"],
        "diversity": row.get("diversity", {}).get("mean"),
        "metric": row.get("diversity", {}).get("metric", ""),
        "rows_forward": sum(one["network_calls"]["rows_forward"] for one in before),
        "rows_backward": sum(one["network_calls"]["rows_backward"] for one in before),
        "seconds": sum(one["seconds"]["total"] for one in before),
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The runs that are there; a half-written last line is none."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def fill(jobs: Sequence[Job], path: Path, *, at_once: int, threads: int, keep: Path | None) -> int:
    """Makes the runs whose line is missing, some at a time, and writes each down as it ends; the number that failed."""
    there = {(one["row"], one["seed"], one["control"], one["digest"]) for one in read(path)}
    missing = [job for job in jobs if job.key not in there]
    print(f"{len(jobs) - len(missing)} of {len(jobs)} runs are in {path}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    root = keep or Path(tempfile.mkdtemp(prefix="learn-"))
    failed = 0
    with ThreadPoolExecutor(at_once) as pool:
        running: dict[Future[dict[str, Any]], tuple[Job, Path]] = {}
        for job in missing:
            kind = "control" if job.control else "run"
            folder = root / f"{job.row.name}-{job.seed}-{kind}-{job.digest}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            running[pool.submit(alone, job, folder, threads)] = job, folder
        for future in as_completed(running):
            job, folder = running[future]
            try:
                found = future.result()
            except Exception as error:
                failed += 1
                print(f"FAILED {job}: {error} (see {folder / 'log.txt'})", file=sys.stderr, flush=True)
                continue
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            print(f"{job}: {found['change']['sd']:+.2f} SD in {found['seconds']:.0f} s", flush=True)
            if not keep:
                shutil.rmtree(folder)
    return failed


def main(argv: list[str] | None = None) -> int:
    names = sorted({row.group for row in ROWS} | {row.name for row in ROWS})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", default="short", help=f"with commas: all, {', '.join(names)}")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, help="of each run; all cores shared out if not given")
    parser.add_argument("--seeds", help="with commas; the row's own number of seeds from 0 if not given")
    parser.add_argument("--model", help="instead of each row's own")
    parser.add_argument("--iterations", type=int, help="another number than the row's, for trials")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "learn.jsonl")
    parser.add_argument("--keep", type=Path, help="a folder in which the runs' own folders stay")
    parser.add_argument("--table", action="store_true", help="make no run, print what is there")
    parser.add_argument("--page", type=Path, help="also write the table, and what is missing, to this file")
    asked = parser.parse_args(argv)
    wanted = asked.row.split(",")
    if unknown := set(wanted) - {"all", *names}:
        parser.error(f"--row {', '.join(unknown)} is none of all, {', '.join(names)}")
    rows = [row for row in ROWS if {"all", row.name, row.group} & set(wanted)]
    overrides = {"iterations": asked.iterations} if asked.iterations else {}
    seeds = [int(seed) for seed in asked.seeds.split(",")] if asked.seeds else None
    jobs = list(jobs_of(rows, seeds, asked.model, overrides))
    threads = asked.threads or max(1, (os.cpu_count() or 1) // asked.jobs)
    failed = 0 if asked.table else fill(jobs, asked.results, at_once=asked.jobs, threads=threads, keep=asked.keep)
    keys = {job.key for job in jobs}
    there = [run for run in read(asked.results) if _key(run) in keys]
    print("\n" + table(rows, there))
    if asked.page:
        asked.page.write_text(page(rows, there), encoding="utf-8")
        for group, file in queries.CHARTS.items():
            same = [row for row in rows if row.group == group and row.model == "shapes"]
            names = [row.name for row in same if row.judged == queries.JUDGE]
            queries.chart(names, there, asked.page.parent / "images" / file)
    return 1 if failed else 0


def _key(run: Mapping[str, Any]) -> tuple[str, int, bool, str]:
    return run["row"], run["seed"], run["control"], run["digest"]


if __name__ == "__main__":
    raise SystemExit(main())
