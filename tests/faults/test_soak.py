"""Long runs (reference matrix D.4: 50): what a process holds does not grow with the iterations it makes."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tastemaker.algorithms.ddpo import DDPO
from tastemaker.training.checkpoint import Checkpoints
from toy import Toy
from toy_runs import failing, metrics, run_of

ITERATIONS, WARM = 500, 100
ROOM = 8 * 2**20  # bytes that the process may grow by after its warm-up: 20 kB an iteration would be found
STATUS = Path("/proc/self/status")


class Held(NamedTuple):
    """What this process holds."""

    memory: int
    files: int
    threads: int


def held() -> Held:
    gc.collect()
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    memory = int(lines["VmRSS"].split()[0]) * 1024
    return Held(memory, len(os.listdir("/proc/self/fd")), len(threading.enumerate()))


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(not STATUS.exists(), reason="what a process holds is read from /proc")
def test_five_hundred_iterations_hold_no_more_than_one_hundred(tmp_path: Path) -> None:
    """Each draws, scores in a thread of its own with failures, learns, is noted, and every fifth is saved."""
    algorithm = DDPO(
        images=8,
        per_prompt=2,
        updates=2,
        steps=3,
        guidance=2.0,
        iterations=ITERATIONS,
        prompt_history=8,
        prompt_minimum=2,
    )
    policy = Toy(dtype=torch.float32, sets=("base", "ema"))
    run = run_of(tmp_path, algorithm, policy, reward=failing(lambda b: b == 3), micro=8, save=5, ema=0.9)
    run.checkpoints = Checkpoints(tmp_path / "checkpoints", limit=2)
    seen: dict[int, Held] = {}
    finish = run.record.finish

    def noted(it: Any, policy: Any) -> str:
        why = finish(it, policy)
        if it.key.iteration + 1 in (WARM, ITERATIONS):
            seen[it.key.iteration + 1] = held()
        return why

    run.record.finish = noted  # type: ignore[method-assign]
    assert run.train()
    warm, end = seen[WARM], seen[ITERATIONS]
    assert end.memory - warm.memory < ROOM, f"{(end.memory - warm.memory) / 2**20:.1f} MiB more"
    assert end.files <= warm.files and end.threads <= warm.threads
    assert len(metrics(tmp_path)) == ITERATIONS and len(list((tmp_path / "checkpoints").iterdir())) == 2
