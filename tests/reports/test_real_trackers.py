"""W&B and trackio themselves, without network, where they are installed: a run and its resume, as processes."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path
from PIL import Image
from tastemaker.reports.trackers import need, start
name, first = sys.argv[1], int(sys.argv[2])
folder = Path("first")
(folder / "samples").mkdir(parents=True, exist_ok=True)
Image.new("RGB", (16, 16)).save(folder / "samples" / "a.webp")
need([name])
running = start([name], folder, {"algorithm": {"clip": 0.25}, "reward": {"api_key": "canary"}})
cost = {"seconds": {"total": 1.0}, "queries": 1, "images": 1}
for k in (first, first + 1):
    row = {"iteration": k, **cost, "reward": {"mean": 0.5 + k}, "updates": [{"loss": 1.0}]}
    running.iteration(row, [0.5, 1.0], [{"prompt": "a cat", "reward": 1.0, "file": "samples/a.webp"}])
assert [tracker.name for tracker in running.raw] == [name]
running.finish()
"""


def twice(name: str, home: Path) -> dict[str, str]:
    """Iterations 0 and 1, then from a checkpoint before 1 on 1 and 2; what the run is called then and there."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    offline = {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "TRACKIO_DIR": str(home / "trackio"), "HOME": str(home)}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "TRACKIO_"))}
    names = []
    for first in ("0", "1"):
        command = [sys.executable, "-c", SCRIPT, name, first, "--reward.api_key", "canary"]
        done = subprocess.run(command, cwd=home, env={**kept, **offline}, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        names.append(json.loads((home / "first" / "trackers" / "runs.json").read_text()))
    assert names[0] == names[1]
    assert [path for path in home.rglob("*") if path.is_file() and b"canary" in path.read_bytes()] == []
    return dict(names[0])


def test_wandb_goes_on_offline(tmp_path: Path) -> None:
    called = twice("wandb", tmp_path)
    files = sorted((tmp_path / "first" / "trackers" / "wandb").glob(f"offline-run-*/run-{called['wandb']}.wandb"))
    assert len(files) == 2
    for path in files:
        found = path.read_bytes()
        for word in (b"reward/mean", b"reward/histogram", b"algorithm.clip", b"a cat | 1"):
            assert word in found, word


def test_trackio_goes_on_offline(tmp_path: Path) -> None:
    assert twice("trackio", tmp_path) == {"trackio": "first"}
    (path,) = (tmp_path / "trackio").glob("tastemaker*.db")
    with sqlite3.connect(path) as found:
        rows = found.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert {run for run, *_ in rows} == {"first"}
    means = [(step, json.loads(values)["reward/mean"]) for _, step, values in rows]
    assert sorted(set(means)) == [(0, 0.5), (1, 1.5), (2, 2.5)]
