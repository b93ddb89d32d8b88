"""Two gloo processes make the same run as one: started once for all cases (ranks.py)."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

import tastemaker
from toy_runs import apart, metrics, same
from trajectories import ranks
from trajectories.ranks import CASES, STOPS

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both ranks left: weights of every case, and rank 0's metrics."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    paths = [str(Path(tastemaker.__file__).parents[1]), str(Path(ranks.__file__).parents[1])]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    common |= {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    processes = [
        subprocess.Popen(
            [sys.executable, ranks.__file__, str(folder)],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        output = [process.communicate(timeout=280)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()  # closes its pipe
    assert [process.returncode for process in processes] == [0, 0], "\n".join(output)
    return folder


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
