"""The pictures that a run keeps, and their rows: what is made again replaces what was there, and nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tastemaker.training.lines import read_lines
from tastemaker.training.samples import SAMPLES, Samples


def both(folder: Path, *, write: bool = True) -> tuple[Samples, Samples]:
    return Samples(folder, "training", write=write), Samples(folder, "evaluation", write=write)


def add(samples: Samples, iteration: int, name: int, reward: float = 0.5) -> dict[str, Any]:
    picture = torch.full((3, 8, 8), 0.2)
    return samples.add(
        iteration, name, picture, prompt="a cat", reward=reward, parts={"half": reward / 2, "none": math.nan}
    )


def found(folder: Path) -> list[tuple[str, int, int]]:
    """(kind, iteration, id) of every row; each has its picture, and there are no others."""
    rows = read_lines(folder / SAMPLES)
    files = {path.relative_to(folder).as_posix() for path in (folder / "samples").rglob("*.webp")}
    assert {row["file"] for row in rows} == files
    return [(row["kind"], row["iteration"], row["id"]) for row in rows]


def test_a_row_says_what_the_picture_is(tmp_path: Path) -> None:
    training, evaluation = both(tmp_path)
    returned = add(training, 3, 7)
    add(evaluation, 3, 7, math.nan)
    first, second = read_lines(tmp_path / SAMPLES)
    assert first == {
        "iteration": 3,
        "id": 7,
        "prompt": "a cat",
        "reward": 0.5,
        "parts": {"half": 0.25, "none": None},
        "file": "samples/3/7.webp",
        "kind": "training",
    }
    assert {**returned, "parts": first["parts"]} == first and math.isnan(returned["parts"]["none"])
    assert (second["kind"], second["reward"]) == ("evaluation", None)
    assert second["parts"] == {"half": None, "none": None} and second["file"] == "samples/3/evaluation-7.webp"
    with Image.open(tmp_path / first["file"]) as picture:
        assert picture.size == (8, 8) and picture.getpixel((4, 4)) == (51, 51, 51)
    assert training.files(3) == {7: tmp_path / first["file"]} and evaluation.files(4) == {}


def test_what_is_made_again_is_forgotten_and_the_other_kind_is_not(tmp_path: Path) -> None:
    training, evaluation = both(tmp_path)
    for iteration in (0, 1, 12):
        add(training, iteration, 5)
        add(evaluation, iteration, 5)
    (tmp_path / "samples" / "1" / "6.webp").write_bytes(b"torn: its row was never written")
    training.forget(lambda made: made >= 1)
    kept = [("training", 0, 5), *(("evaluation", iteration, 5) for iteration in (0, 1, 12))]
    assert sorted(found(tmp_path)) == sorted(kept)
    evaluation.forget(lambda made: made == 12)
    assert not (tmp_path / "samples" / "12").exists() and len(found(tmp_path)) == 3


def test_a_rank_that_does_not_write_forgets_nothing(tmp_path: Path) -> None:
    add(both(tmp_path)[0], 0, 1)
    both(tmp_path, write=False)[0].forget(lambda made: True)
    assert found(tmp_path) == [("training", 0, 1)]
