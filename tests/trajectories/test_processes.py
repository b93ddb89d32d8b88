"""Two gloo processes make the same run as one: started once for all cases (ranks.py)."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tastemaker.training.checkpoint import Checkpoints
from toy_runs import apart, metrics, same
from trajectories import ranks
from trajectories.ranks import CASES, JOINS, STOPS
from two_ranks import left_by

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both ranks left: weights of every case, and rank 0's metrics."""
    return left_by(ranks.__file__, tmp_path_factory, seconds=280)


def weights(folder: Path, name: str) -> dict[str, Tensor]:
    """Of a case; the same bits on both ranks."""
    first, second = (load_file(folder / f"{name}-{rank}.safetensors") for rank in range(2))
    assert same(first, second), name
    return first


def close(a: Any, b: Any) -> bool:
    """Equal, numbers within rounding."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == b or a == pytest.approx(b, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_make_the_run_of_one(name: str, folder: Path, tmp_path: Path) -> None:
    policy = CASES[name].policy()
    assert CASES[name].run(tmp_path, policy).train()
    found = weights(folder, name)
    assert apart(found, policy.state()) < 1e-6
    start = CASES[name].policy()
    assert apart(found, start.state()) > 1e-2  # it went somewhere
    # Calls are filled up to equal rows on each device, so their number differs, and where they are what is scored the
    # number of queries does; all else in the rows does not.
    differ = ["network_calls", "queries"] if CASES[name].algorithm.differentiates else ["network_calls"]
    ours, theirs = metrics(tmp_path, *differ), metrics(folder / name, *differ)
    assert close(ours, theirs)
    own = {"log_ratio", "reward", "kl", "error", "margin"}  # what algorithms add, each at least one of these
    told = [update.keys() for row in theirs for update in row["updates"]]
    assert all({"loss", "grad_norm"} <= names and names & own for names in told)


def test_memory_that_runs_out_on_one_device_changes_nothing(folder: Path) -> None:
    assert apart(weights(folder, "strained"), weights(folder, "filtered")) < 1e-6
    said = [json.loads((folder / f"rank-{rank}.json").read_text())["warnings"] for rank in range(2)]
    assert said[0] == "0" and int(said[1]) > 0


@pytest.mark.parametrize("name", STOPS)
def test_two_processes_stopped_and_resumed_make_the_same_bits(name: str, folder: Path) -> None:
    for rank in range(2):
        assert json.loads((folder / f"rank-{rank}.json").read_text())[name] == STOPS[name].checkpoint
    assert same(weights(folder, name), weights(folder, STOPS[name].case))
    assert metrics(folder / name) == metrics(folder / STOPS[name].case)


INSIDE = [name for name, stop in STOPS.items() if stop.checkpoint.count("-") == 2]


@pytest.mark.parametrize("name", INSIDE)
def test_inside_an_iteration_one_goes_on_where_two_stopped(name: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / name, tmp_path / "run")
    case = CASES[STOPS[name].case]
    policy = case.policy()
    start = Checkpoints.open(tmp_path / "run" / "checkpoints" / STOPS[name].checkpoint)
    assert len(start.per_rank) == 2 and case.run(tmp_path / "run", policy).train(start)
    assert apart(policy.state(), weights(folder, STOPS[name].case)) < 1e-6
    differ = ["network_calls", "queries"]
    assert close(metrics(tmp_path / "run", *differ), metrics(folder / STOPS[name].case, *differ))


@pytest.mark.parametrize("name", JOINS)
def test_inside_an_iteration_two_go_on_where_one_stopped(name: str, folder: Path) -> None:
    assert apart(weights(folder, name), weights(folder, JOINS[name].case)) < 1e-6
    differ = ["network_calls", "queries"]
    assert close(metrics(folder / name, *differ), metrics(folder / JOINS[name].case, *differ))
