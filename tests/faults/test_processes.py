"""Several processes: one goes wrong, one is lost, there are others than before (matrix D.4: 17, 25, 43, 44)."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

import runs
from faults import fault_ranks, lost_rank
from faults.fault_ranks import SMALL
from tastemaker.training.checkpoint import Checkpoints, newest
from toy import Toy
from toy_runs import apart, metrics, run_of, same
from two_ranks import left_by, started

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]  # processes that wait for each other


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return left_by(fault_ranks.__file__, tmp_path_factory, runs.model(), seconds=200)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights of the run that one process makes."""
    policy = Toy()
    assert run_of(tmp_path_factory.mktemp("alone"), SMALL, policy, micro=5).train()
    return {name: tensor.clone() for name, tensor in policy.state().items()}


def found(folder: Path, what: str) -> list[Any]:
    return [json.loads((folder / f"rank-{rank}.json").read_text())[what] for rank in range(2)]


def weights(folder: Path, name: str) -> dict[str, Tensor]:
    """The same bits on both ranks."""
    first, second = (load_file(folder / f"{name}-{rank}.safetensors") for rank in range(2))
    assert same(first, second)
    return first


# ---- 25: a gradient that is not finite, on one of them


def test_nan_on_one_rank_is_skipped_on_all(folder: Path, alone: dict[str, Tensor]) -> None:
    assert found(folder, "nan") == [{"skipped": 1, "updates": 6}] * 2
    after = weights(folder, "nan")
    assert all(tensor.isfinite().all() for tensor in after.values()) and apart(after, alone) > 1e-4
    rows = [update for row in metrics(folder / "nan") for update in row["updates"]]
    assert [row["skipped"] for row in rows] == [0, 1, 0, 0, 0, 0]


def test_nan_for_good_on_one_rank_ends_all_with_the_same_words(folder: Path) -> None:
    first, second = found(folder, "lost")
    assert first == second and "no finite gradient in 5 updates in a row (iteration 2)" in first


# ---- 17: other numbers of processes


def test_a_run_of_two_goes_on_alone(folder: Path, alone: dict[str, Tensor], tmp_path: Path) -> None:
    shutil.copytree(folder / "two", tmp_path / "run")
    policy = Toy()
    run = run_of(tmp_path / "run", SMALL, policy, micro=3, save=1)
    assert run.train(Checkpoints.open(tmp_path / "run" / "checkpoints" / "checkpoint-1"))
    assert apart(policy.state(), weights(folder, "two")) < 1e-6 and apart(policy.state(), alone) < 1e-6
    assert [row["iteration"] for row in metrics(tmp_path / "run")] == [0, 1, 2]


def test_a_run_of_one_goes_on_as_two(folder: Path, alone: dict[str, Tensor]) -> None:
    assert apart(weights(folder, "one"), alone) < 1e-6


# ---- 43: ranks that were asked for different things


def test_ranks_that_were_asked_for_other_things_do_not_begin(folder: Path) -> None:
    first, second = found(folder, "other")
    for on_0, on_1, words in zip(
        first[:3],
        second[:3],
        ("seed is 1 on rank 1 and 0 on 0", "algorithm.clip is 0.2 on rank 1 and 0.1 on 0", "prompts that are drawn is"),
        strict=True,
    ):
        assert on_0.startswith("1 of 2 processes were asked for another run than rank 0: they say what differs.")
        assert on_1.startswith(f"1 of 2 processes were asked for another run than rank 0: {words}"), on_1
    assert first[3] == second[3] == "nothing"  # what only rank 0 does may differ


HELD = {  # what is called the same on both, and holds other things: its number in the list -> its name
    4: "the prompts' sha256",
    5: r"the sha256 of judge.py \(reward\)",
    6: r"the sha256 of head \(held_out_rewards\)",
    7: "the package's sha256",
    9: "the checksum of the trained weights",
    10: "the checksum of the frozen vae",
}


def test_ranks_whose_files_code_or_weights_differ_do_not_begin(folder: Path) -> None:
    """One prompt of 501, a line of a reward, a byte of a trained one, the program's text, one bit of a weight."""
    first, second = found(folder, "other")
    assert first[8] == second[8] == "nothing" and len(first) == 11  # loaded alike
    for number, name in HELD.items():
        assert first[number].startswith("1 of 2 processes were asked for another run than rank 0: they say what")
        assert re.search(rf"rank 0: {name} is \w{{16}} on rank 1 and \w{{16}} on 0\. Start all", second[number]), number


# ---- 44: one is lost


@pytest.mark.parametrize("kind", ["dies", pytest.param("hangs", marks=pytest.mark.slow)])
def test_the_others_end_when_one_is_lost_and_the_run_goes_on(
    kind: str, alone: dict[str, Tensor], tmp_path: Path
) -> None:
    processes = started([lost_rank.__file__, str(tmp_path), kind])
    try:
        began = time.monotonic()
        output = processes[0].communicate(timeout=120)[0]
        waited = time.monotonic() - began
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[0].returncode not in (0, -9) and "RuntimeError" in output, output
    words = ("Connection closed by peer", "Connection reset by peer") if kind == "dies" else ("Timed out", "timed out")
    assert any(word in output for word in words), output
    assert waited < 100 and isinstance(processes[1], subprocess.Popen)
    latest = newest(tmp_path / "checkpoints")
    assert latest is not None and latest.cursor == (1, 0)
    policy = Toy()
    assert run_of(tmp_path, SMALL, policy, micro=5).train(latest)
    assert apart(policy.state(), alone) < 1e-6


# ---- 5: one of them alone is told to stop


def test_a_signal_to_one_of_them_stops_both_at_the_same_place(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    processes = started(["-m", "tastemaker", *runs.words(folder, "--iterations", "200")])
    try:
        until = time.monotonic() + 100
        while not (folder / "metrics.jsonl").is_file() and time.monotonic() < until:
            time.sleep(0.1)
        processes[1].send_signal(signal.SIGTERM)
        output = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(output)
    assert "SIGTERM: saving a checkpoint" in output[1] and f"stopped in {folder}" in output[0]
    latest = newest(folder / "checkpoints")
    assert latest is not None and 0 < latest.cursor.iteration < 200 and len(latest.per_rank) in (0, 2)
