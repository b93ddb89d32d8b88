"""Rewards that fail in a run: masked, counted, never a 0; too many stop it with a checkpoint (D.4, 19-23)."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean, pstdev

import pytest

import runs

ALL = ("--save_samples", "all")


def test_a_picture_without_a_score_is_left_out_and_counted(tmp_path: Path) -> None:
    output = tmp_path / "run"
    squeamish = runs.reward("squeamish")
    # 8 prompts, each once: one picture an iteration, and one of the evaluation's, has no score
    ran = runs.train(
        runs.words(output, *ALL, "--reward", squeamish, "--algorithm.images", "8", "--evaluation.count", "8")
    )
    assert ran.out.count("  1 failed  ") == 2
    for row in runs.metrics(output):
        kept = [one for one in runs.rows(output, "samples") if one["kind"] == "training"]
        samples = [one for one in kept if one["iteration"] == row["iteration"]]
        assert [one["prompt"] for one in samples if one["reward"] is None] == ["bad luck"]
        scores = [one["reward"] for one in samples if one["reward"] is not None]
        found = row["reward"]
        assert (row["images"], row["queries"], len(scores), found["failed"]) == (8, 8, 7, 1)
        assert math.isclose(found["mean"], fmean(scores), rel_tol=1e-5) and found["max"] == max(scores)
        assert math.isclose(found["std"], pstdev(scores), rel_tol=1e-3) and found["min"] == min(scores)
        assert sum(update["items"] for update in row["updates"]) == 7 * 3  # the steps of the seven
    for row in runs.rows(output, "evaluations"):
        assert row["values"]["squeamish"].count(None) == 1 and 0 < row["reward"]["squeamish"]["mean"] < 1
    assert (output / "before_after.png").stat().st_size > 1000


def test_a_call_that_raises_costs_its_own_pictures_alone(tmp_path: Path) -> None:
    """From the last iteration's second call on the judge is down: half of its pictures, and the evaluation after it."""
    output = tmp_path / "run"
    with runs.tripping("raise", 9, tmp_path / "calls"):
        runs.train(runs.words(output))
    first, second = runs.metrics(output)
    expected = runs.metrics(runs.finished()[0])
    assert first == expected[0] and second["reward"]["failed"] == 2
    assert sum(update["items"] for update in second["updates"]) == 2 * 3
    last = runs.rows(output, "evaluations")[-1]
    assert last["values"]["brightness"] == [None] * 4
    assert last["reward"]["brightness"]["mean"] is None and last["change"]["brightness"]["mean"] is None


def test_too_many_failures_stop_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    """The judge is down from the second iteration on; once it is back the run goes on to the same bits."""
    output = tmp_path / "run"
    with runs.tripping("raise", 8, tmp_path / "calls"):
        ran = runs.call(*runs.words(output))
    assert ran.code == 2 and ran.err.count("\n") == 1
    assert "4 of 4 scores of iteration 1 failed, more than max_failed=0.5 allows" in ran.err
    assert "The last one said: ConnectionError: the judge is down" in ran.err
    assert "--resume_from_checkpoint latest" in ran.err
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["checkpoint-1"]
    assert [row["iteration"] for row in runs.metrics(output)] == [0]
    runs.train(runs.words(output, "--resume_from_checkpoint", "latest"))
    good = runs.finished()[0]
    assert runs.weights(output) == runs.weights(good)
    assert runs.metrics(output) == runs.metrics(good)


@pytest.mark.parametrize(("share", "code"), [("0.49", 2), ("0.5", 0)])
def test_how_many_may_fail_is_a_setting(tmp_path: Path, share: str, code: int) -> None:
    output = tmp_path / "run"
    with runs.tripping("raise", 7, tmp_path / "calls"):  # two of the four pictures of the first iteration
        ran = runs.call(*runs.words(output, "--iterations", "1", "--max_failed", share))
    assert ran.code == code and ("2 of 4 scores of iteration 0 failed" in ran.err) == (code == 2)


def test_an_iteration_without_any_score_changes_no_weight(tmp_path: Path) -> None:
    output = tmp_path / "run"
    with runs.tripping("raise", 6, tmp_path / "calls"):
        runs.train(runs.words(output, "--max_failed", "1", "--iterations", "1"))
    (row,) = runs.metrics(output)
    assert row["reward"] == {"failed": 4, "parts": {}} and all(update["skipped"] == 1 for update in row["updates"])
    from safetensors.torch import load_file

    up = [tensor for name, tensor in load_file(output / runs.LORA).items() if name.endswith("lora.up.weight")]
    assert up and not any(tensor.any() for tensor in up)
    assert (output / "curve.svg").exists()
