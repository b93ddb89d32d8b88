"""Folders of runs for reports: rows with numbers of all sizes and small pictures, written as a run writes them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

PROMPTS = ("a red circle", "two blue squares", "three green stars")
HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    '<img src="x" onerror="window.hacked = 2">',
    '" onmouseover="window.hacked = 3" x=\'',
    "{{ 7 * 7 }}{% raw %} <!-- <script> ]]> javascript:window.hacked=4",
    "emoji 🦊👩‍👩‍👧 and \u202eback\u202c, \x00 \ud800 half \u2028 line",
    "long " * 2000,
)
CONFIG = """resolved: true                    # every setting, and where it comes from
algorithm:
  name: ddpo                      # flag
  iterations: {iterations}        # flag
  clip: 0.0001                    # paper
model: shapes                     # flag
reward: taste                     # flag
held_out_rewards: [other]         # recipe mine
prompts: animals                  # default
seed: {seed}                      # flag
wandb_api_key: abcdef0123456789   # flag
"""


def noise(rng: random.Random, size: int) -> Image.Image:
    return Image.frombytes("RGB", (size, size), rng.randbytes(3 * size * size))


def metrics(iteration: int, rng: random.Random, *, watch: bool = True) -> dict[str, Any]:
    rewards = sorted(rng.gauss(iteration / 10, 1) for _ in range(16))
    low, high = rewards[0], rewards[-1]
    counts = [0] * 20
    for reward in rewards:
        counts[min(19, int((reward - low) / (high - low) * 20))] += 1
    updates = [
        {"items": 80.0, "clip_fraction": rng.random(), "log_ratio": rng.random() / 30, "loss": rng.gauss(0, 1),
         "grad_norm": rng.random() * 1e-5, "learning_rate": 3e-4, "skipped": 0.0,
         **({"mismatch": 0.0} if k == 0 else {})} for k in range(3)
    ]  # fmt: skip
    row: dict[str, Any] = {
        "iteration": iteration,
        "seconds": {"total": 3.5 + rng.random(), "sampling": 1.25, "learning": 2.0, "other": 0.25, "reward": 0.125},
        "queries": 16,
        "network_calls": {"rows_forward": 1234, "rows_backward": 567},
        "images": 16,
        "reward": {"mean": sum(rewards) / 16, "std": 1.0, "min": low, "max": high, "histogram": counts, "failed": 0,
                   "parts": {}},
        "held_out": {},
        "updates": updates,
        "memory": {"peak_bytes": 2**33 + iteration},
    }  # fmt: skip
    if watch:
        row["watch"] = {"held_out.other": rng.random(), "diversity": rng.random(), "drift": 1e-6 * iteration}
        row["watch"] |= {"periodicity": 1.5, "saturation": None}
        if iteration % 3 == 1:
            row["watch"] |= {"checked": 32.0, "checked_trained": rng.random()}
            row["watch"] |= {"checked.other": -rng.random(), "checked_error.other": rng.random()}
    return row


def evaluation(iteration: int, prompts: Sequence[str], rng: random.Random, *, first: bool) -> dict[str, Any]:
    values = {name: [rng.gauss(iteration / 5, 1) for _ in range(2 * len(prompts))]
              for name in ("taste", "other", "other.part/of ~it")}  # fmt: skip
    means = {name: sum(found) / len(found) for name, found in values.items()}
    interval = {"low": 0.5, "high": 1.5, "deviations": 1.25, "wins": 0.75}
    row: dict[str, Any] = {
        "iteration": iteration, "prompts": "animals_heldout", "pictures": 2 * len(prompts), "sampler": "deterministic",
        "steps": 20, "guidance": 3.0,
        "reward": {name: {"mean": mean, "low": mean - 0.3, "high": mean + 0.3} for name, mean in means.items()},
        "change": {name: {"mean": 1.0, **interval} for name in values},
        "values": values,
        "diversity": {"metric": "pixels", "mean": 0.5 - iteration / 100, "low": 0.3, "high": 0.6,
                      "change": {"mean": -0.1, "low": -0.2, "high": -0.05}, "values": [0.5] * len(prompts)},
    }  # fmt: skip
    if first:
        row |= {"texts": list(prompts), "groups": [b // 2 for b in range(2 * len(prompts))]}
    return row


def sample(
    folder: Path, iteration: int, name: int, kind: str, prompt: str, rng: random.Random, size: int = 16
) -> dict[str, Any]:
    file = Path("samples") / str(iteration) / f"{'evaluation-' if kind == 'evaluation' else ''}{name}.webp"
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    noise(rng, size).save(folder / file, lossless=True, method=0)
    return {"iteration": iteration, "id": name, "prompt": prompt, "reward": rng.gauss(0, 1),
            "parts": {"part/of ~it": rng.random()}, "file": file.as_posix(), "kind": kind}  # fmt: skip


def write(folder: Path, kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
    lines = [{"schema": 1, "kind": kind}, *rows]
    (folder / f"{kind}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def make(
    folder: Path,
    *,
    iterations: int = 6,
    every: int = 3,
    prompts: Sequence[str] = PROMPTS,
    seed: int = 0,
    alarms: bool = False,
    size: int = 16,
) -> Path:
    """A run of so many iterations, judged every so many and at the end."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG.format(iterations=iterations, seed=seed), encoding="utf-8")
    judged = [*range(0, iterations, every), iterations]
    write(folder, "metrics", [metrics(k, rng) for k in range(iterations)])
    write(folder, "evaluations", [evaluation(k, prompts, rng, first=k == 0) for k in judged])
    rows = []
    for k in judged:
        rows += [sample(folder, k, 2 * b, "evaluation", text, rng, size) for b, text in enumerate(prompts)]
    for k in range(iterations):
        rows += [sample(folder, k, b, "training", prompts[b % len(prompts)], rng, size) for b in range(4)]
    write(folder, "samples", rows)
    start = {"began": "2026-01-02T03:04:05+00:00", "command": f"tastemaker train ddpo --seed {seed}", "resumed": None,
             "device": "cpu", "processes": 1, "machine": "Linux", "versions": {"tastemaker": "0.1.0"}}  # fmt: skip
    write(folder, "starts", [start])
    if alarms:
        parting = {"iteration": 4, "alarm": "parting", "value": 0.3125, "threshold": 0.2, "stopped": True,
                   "message": "the reward rises and other falls"}  # fmt: skip
        write(folder, "alarms", [parting])
        best = {"iteration": 3, "by": "held_out.other", "value": 0.9375, "checkpoint": "checkpoints/best"}
        second = {**best, "iteration": 2, "value": 0.8125, "checkpoint": "checkpoints/second"}
        (folder / "best.json").write_text(json.dumps({**best, "kept": [best, second]}))
    return folder


def without_numbers(folder: Path) -> Path:
    """A run whose rewards are all NaN, as JSON writes them."""
    make(folder)
    for kind in ("metrics", "evaluations", "samples"):
        lines = [json.loads(line) for line in (folder / f"{kind}.jsonl").read_text().splitlines()]
        for row in lines[1:]:
            if kind == "metrics":
                row["reward"] = {"failed": 16, "parts": {}, "histogram": []}
            elif kind == "samples":
                row["reward"] = None
            else:
                row["reward"] = {name: {"mean": None, "low": None, "high": None} for name in row["reward"]}
                row["change"] = {name: dict.fromkeys(change) for name, change in row["change"].items()}
                row["values"] = {name: [None] * len(found) for name, found in row["values"].items()}
        write(folder, kind, lines[1:])
    return folder


def is_close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-12)
