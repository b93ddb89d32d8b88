"""Runs whose reward looks through a CLIP: settings reach it, values and gradients train on it, it is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

import runs
import tiny_clip
from tastemaker.training.lines import read_lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_clip.write(tmp_path_factory.mktemp("clip") / "tiny"))


def test_ddpo_trains_on_one_and_another_is_held_out(folder: str, tmp_path: Path) -> None:
    words = runs.small(tmp_path / "run", "--reward", "clip_score", "--reward.model", folder)
    runs.train([*words, "--reward.preprocess", "uint8"])
    asked = {"name": "clip_score", "model": folder, "preprocess": "uint8"}
    assert runs.settings(tmp_path / "run")["reward"] == asked
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert all(row["reward"]["failed"] == 0 and abs(row["reward"]["mean"]) <= 1 for row in rows)
    assert "clip_score" in runs.rows(tmp_path / "run", "evaluations")[0]["reward"]


def test_draft_differentiates_one_unless_it_sees_levels(folder: str, tmp_path: Path) -> None:
    few = ("--algorithm.images", "2", "--algorithm.steps", "2", "--iterations", "1", "--evaluation.count", "1")
    more = ("--evaluation.images_per_prompt", "1", "--evaluation.steps", "2", "--device", "cpu", "--model", "shapes")
    reward = ("--reward", "pickscore", "--reward.model", folder, "--output_dir", str(tmp_path / "run"))
    words = ("train", "draft", *few, *more, *reward)
    ran = runs.call(*words, "--reward.preprocess", "uint8")
    assert ran.code == 2 and "`pickscore` returned a tensor without a graph" in ran.err
    ran = runs.call(*words)
    assert ran.code == 0, ran.err
    (row,) = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert row["updates"][0]["grad_norm"] > 0 and row["updates"][0]["skipped"] == 0
