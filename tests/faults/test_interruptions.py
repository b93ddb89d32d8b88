"""Runs that are killed or stopped, and go on to the same bits (reference matrix D.4: 1, 3, 4)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runs
from tastemaker import folder
from tastemaker.training import trainer

RESUME = ("--resume_from_checkpoint", "latest")


def process(argv: list[str], trip: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TRIP": trip}
    command = [sys.executable, "-m", "tastemaker", *argv]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)


def check_same(found: Path, expected: Path) -> None:
    """Weights, numbers and pictures are those of the run that nothing happened to."""
    assert runs.weights(found) == runs.weights(expected)
    assert runs.metrics(found) == runs.metrics(expected)
    for name in ("evaluations", "samples"):
        assert runs.rows(found, name) == runs.rows(expected, name)
    for name in ("samples", "before_after.png", "curve.svg"):
        assert files(found / name) == files(expected / name)


def files(place: Path) -> dict[str, bytes]:
    found = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    return {str(path.relative_to(place.parent)): path.read_bytes() for path in found}


def names(place: Path) -> list[str]:
    return sorted(path.name for path in (place / "checkpoints").iterdir())


@pytest.mark.slow  # test_kills.py kills every algorithm; this is the command
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL while the second iteration is drawn; the log's last lines are torn as by a power cut."""
    output, calls = tmp_path / "run", tmp_path / "calls"
    killed = process(runs.words(output), f"SIGKILL,9,{calls}")
    assert killed.returncode == -signal.SIGKILL and "iteration 1/2" in killed.stdout
    assert names(output) == ["checkpoint-1"] and not (output / "lora").exists()
    for file in ("metrics", "evaluations", "samples"):
        with (output / f"{file}.jsonl").open("a") as lines:
            lines.write('{"iteration": 1, "rew')
    resumed = runs.train(runs.words(output, *RESUME))
    assert f"resuming from {output}/checkpoints/checkpoint-1\n" in resumed.out and "iteration 1/2" not in resumed.out
    check_same(output, runs.finished()[0])


def test_a_terminated_run_saves_ends_well_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """SIGTERM, as from a scheduler, while the first iteration is drawn."""
    output, calls = tmp_path / "run", tmp_path / "calls"
    stopped = process(runs.words(output), f"SIGTERM,7,{calls}")
    assert stopped.returncode == 0, stopped.stderr
    assert "SIGTERM: saving a checkpoint, then stopping." in stopped.stderr
    assert stopped.stdout.endswith(
        f"stopped in {output}; the same command with --resume_from_checkpoint latest goes on\n"
    )
    assert names(output) == ["checkpoint-0"]
    runs.train(runs.words(output, *RESUME))
    check_same(output, runs.finished()[0])


@pytest.mark.parametrize(("iteration", "update", "calls"), [(0, 1, 7), (1, 0, 5)])
def test_a_stop_inside_an_update_drops_its_gradient_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, iteration: int, update: int, calls: int
) -> None:
    """What was drawn, scored, learned and evaluated before it is in the checkpoint and is not made again.

    In the first iteration that is the base's evaluation too, which could not be made again.
    """
    output, counted = tmp_path / "run", tmp_path / "calls"
    descend: Callable[..., Any] = trainer.descend
    made = iter(range(9))

    def stopped(*parts: Any) -> Any:
        if next(made) == 2 * iteration + update:
            os.kill(os.getpid(), signal.SIGTERM)
        return descend(*parts)

    monkeypatch.setattr(trainer, "descend", stopped)
    assert runs.train(runs.words(output)).out.endswith("latest goes on\n")
    assert names(output)[-1] == f"checkpoint-{iteration}" + (f"-{update}" if update else "")
    monkeypatch.undo()
    with runs.tripping("raise", 99, counted):
        runs.train(runs.words(output, *RESUME))
    assert counted.stat().st_size == calls  # 3 to try the reward, 2 an iteration that is drawn, 2 the last evaluation
    check_same(output, runs.finished()[0])


def test_a_stop_in_the_last_evaluation_leaves_only_that_to_do(tmp_path: Path) -> None:
    output, calls = tmp_path / "run", tmp_path / "calls"
    with runs.tripping("SIGTERM", 10, calls):
        stopped = runs.train(runs.words(output))
    assert "iteration 2/2" in stopped.out and names(output)[-1] == "checkpoint-2"
    assert not (output / runs.LORA).exists() and len(runs.rows(output, "evaluations")) == 1
    resumed = runs.train(runs.words(output, *RESUME))
    assert "iteration" not in resumed.out.split("resuming from")[1].split("pictures of")[0]
    check_same(output, runs.finished()[0])


def test_a_finished_run_may_be_resumed_and_stays_as_it_is(tmp_path: Path) -> None:
    output = tmp_path / "run"
    argv = runs.small(output)
    shutil.copytree(runs.plain(), output)
    before = runs.weights(output), files(output / "samples"), files(output / "metrics.jsonl")
    runs.train([*argv, *RESUME])
    assert (runs.weights(output), files(output / "samples"), files(output / "metrics.jsonl")) == before
    assert len(runs.rows(output, "evaluations")) == 2
    longer = runs.train([*argv, *RESUME, "--iterations", "2"])  # and may be made longer
    assert "iteration 2/2" in longer.out and [row["iteration"] for row in runs.metrics(output)] == [0, 1]
    assert [row["iteration"] for row in runs.rows(output, "evaluations")] == [0, 2]


def test_going_back_forgets_what_came_after(tmp_path: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(runs.finished()[0], output)
    again = runs.train(runs.words(output, "--resume_from_checkpoint", str(output / "checkpoints" / "checkpoint-1")))
    assert "iteration 2/2" in again.out
    check_same(output, runs.finished()[0])


def test_without_a_checkpoint_latest_begins_and_says_so(tmp_path: Path) -> None:
    output = tmp_path / "run"
    ran = runs.train(runs.small(output, *RESUME))
    assert f"no checkpoint in {output}: starting from the beginning\n" in ran.out
    assert (output / runs.LORA).exists()


def test_a_run_never_begins_anew_because_its_checkpoints_are_damaged(tmp_path: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(runs.plain(), output)
    state = output / "checkpoints" / "checkpoint-1" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    before = {key: value for key, value in files(output).items() if not key.endswith(folder.LOCK)}
    with pytest.warns(UserWarning, match="checkpoint-1 is damaged and passed over"):
        ran = runs.call(*runs.small(output, *RESUME))
    assert ran.code == 2 and "none of the 1 checkpoints" in ran.err and ran.err.count("\n") == 1
    assert {key: value for key, value in files(output).items() if not key.endswith(folder.LOCK)} == before
