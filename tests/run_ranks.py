"""What each of two ranks does in test_ranks.py, which runs this file twice: whole runs, results to a file."""

from __future__ import annotations

import atexit
import json
import os
import sys
from pathlib import Path
from typing import Any

import tastemaker as tm
from tastemaker.evaluation.alarms import Rules
from tastemaker.reports import backends

RANK = os.environ["RANK"]


def settings(model: str, folder: Path) -> dict[str, Any]:
    return {
        "algorithm": tm.DDPO(images=4, updates=1, steps=2, guidance=1.0, iterations=2, learning_rate=1e-2),
        "model": model,
        "reward": "jpeg_compressibility",
        "prompts": ["a cat", "a dog", "a cow", "a hen"],
        "evaluation": {"count": 3, "images_per_prompt": 2},
        "report_to": "tensorboard",
        "output_dir": str(folder),
        "device": "cpu",
    }


def whole(model: str, folder: Path) -> dict[str, Any]:
    told: list[list[int]] = []
    run = tm.train(
        **settings(model, folder / "run") | {"lora": tm.LoRA(text_encoders=True)},
        on_samples=lambda batches, step, trackers: told.append([step, sum(len(b[0]) for b in batches), len(trackers)]),
    )
    return {"done": run.done, "weights": str(run.weights), "told": told, "drawn": len(run.pipeline("cpu").unet.config)}


def stopped(model: str, folder: Path) -> dict[str, Any]:
    Rules.asks = lambda *_: True  # type: ignore[method-assign]  # a check in each iteration
    own = {"stop_on": ["drift"], "alarms": {"drift": 1e-12}, "held_out_rewards": ["brightness"], "report_to": []}
    longer = {"algorithm": tm.DDPO(images=4, updates=1, steps=2, guidance=1.0, iterations=4, learning_rate=1e-2)}
    run = tm.train(**settings(model, folder / "stopped") | own | longer)
    return {"done": run.done, "weights": str(run.weights)}


def refused(model: str, folder: Path) -> str:
    def fail(*_: Any) -> Any:
        raise OSError("no network")

    backends.begin = fail
    try:
        tm.train(**settings(model, folder / "refused"))
    except ValueError as error:
        return str(error)
    return "it began"


def threads(folder: Path) -> None:
    """The names of the threads that are alive when everything that a run left for the end has been called."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    (folder / f"threads-{RANK}.json").write_text(json.dumps(names))


if __name__ == "__main__":
    home, model_folder = Path(sys.argv[1]), sys.argv[2]
    atexit.register(threads, home)  # before the runs' own: it is called after them
    results = {"whole": whole(model_folder, home), "stopped": stopped(model_folder, home)}
    results["refused"] = refused(model_folder, home)
    (home / f"rank-{RANK}.json").write_text(json.dumps(results))
