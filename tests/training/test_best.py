"""The list of the best checkpoints where a run goes on from it, by another number, and on a disk that is full."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tastemaker.training import best as module
from tastemaker.training.best import BEST, Best, Content, forget_after, listed
from tastemaker.training.checkpoint import Checkpoint, Checkpoints, Cursor
from tastemaker.training.merit import Merit
from tastemaker.world import World


def row(iteration: int, value: float, **parts: float) -> dict[str, Any]:
    return {"iteration": iteration, "reward": {"mean": value, "std": 0.0, "parts": parts}}


def made(folder: Path, by: str = "reward", keep: int = 2) -> Best:
    return Best(folder, World(), Merit(by, 1), keep)


def ran(best: Best, values: dict[int, float], **parts: float) -> None:
    """Iterations whose pictures are worth that; each is drawn by weights that stand in memory."""
    for iteration, value in values.items():
        if iteration:
            best.offer(Cursor(iteration, 0), None, lambda rows=list(best.rows): content(rows))  # type: ignore[misc]
        best.settle(row(iteration, value, **parts))


def content(rows: list[dict[str, Any]]) -> Content:
    return Content({"policy/w": torch.zeros(2)}, {"best": rows})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints" / "best").iterdir())


def start(folder: Path, iteration: int, rows: list[dict[str, Any]]) -> Checkpoint:
    return Checkpoint(folder / "elsewhere", Cursor(iteration, 0), *content(rows))


@pytest.mark.parametrize("way", ["absolute", "through a link", "with dots"])
def test_the_checkpoint_that_a_run_goes_on_from_stays_however_it_is_typed(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran(made(Path("t/m")), {0: 0.0, 1: 1.0, 2: 5.0})
    (tmp_path / "link").symlink_to(tmp_path / "t")
    typed = {
        "absolute": tmp_path / "t/m/checkpoints/best/checkpoint-2",
        "through a link": tmp_path / "link/m/checkpoints/best/checkpoint-2",
        "with dots": Path("t/../t/m/checkpoints/best/checkpoint-2"),
    }[way]
    again = made(Path("t/m"))
    Path("metrics.jsonl").write_text(json.dumps(row(0, 0.0)) + "\n")
    again.rewind(Checkpoints.open(typed), Path("metrics.jsonl"))
    assert names(Path("t/m")) == ["checkpoint-1", "checkpoint-2"]
    again.settle(row(2, 7.0))
    assert [one["iteration"] for one in listed(Path("t/m"))] == [2, 1]
    Checkpoints.open(typed)


def test_what_was_the_best_by_another_number_stays_until_others_come(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = made(tmp_path)
    ran(first, {0: 0.0, 1: 1.0, 2: 5.0})
    other = made(tmp_path, "parts.half")
    other.rewind(start(tmp_path, 3, first.rows), tmp_path / "none")
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    assert "best checkpoints by reward stay until others by parts.half take their places" in capsys.readouterr().out
    ran(other, {3: 0.0, 4: 0.0}, half=-9.0)  # the first row that is seen passes for the base's, which is no candidate
    assert [(one["by"], one["iteration"]) for one in listed(tmp_path)] == [("parts.half", 4), ("reward", 2)]
    assert [one["iteration"] for one in other.rows] == [4, 2]


def test_nothing_is_removed_without_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran(made(tmp_path), {0: 0.0, 1: 1.0, 2: 5.0})
    made(tmp_path).rewind(None, tmp_path / "none")
    assert names(tmp_path) == [] and not (tmp_path / BEST).exists()
    assert "checkpoints/best: checkpoint-1, checkpoint-2 (not among the best" in capsys.readouterr().out
    made(tmp_path).rewind(None, tmp_path / "none")
    assert capsys.readouterr().out == ""


def test_a_full_disk_costs_the_best_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    best = made(tmp_path)
    ran(best, {0: 0.0, 1: 1.0})
    before = (tmp_path / BEST).read_text()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        ran(best, {2: 5.0})
    assert "best.json was not written: [Errno 28] No space" in capsys.readouterr().err
    assert (tmp_path / BEST).read_text() == before and names(tmp_path) == ["checkpoint-1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [BEST, "checkpoints"]
    monkeypatch.setattr(module.shutil, "rmtree", full)  # type: ignore[attr-defined]
    monkeypatch.setattr(Path, "rename", full)
    best.rows = []
    best._drop()  # what cannot be removed stays
    assert names(tmp_path) == ["checkpoint-1"]


def test_a_fault_that_is_none_of_the_disks_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process that went on while the others ended would wait for them."""
    best = made(tmp_path)

    def broken(*_: Any) -> None:
        raise ValueError("what cannot be kept exactly")

    monkeypatch.setattr(best.checkpoints, "save", broken)
    with pytest.raises(ValueError, match="kept exactly"):
        ran(best, {0: 0.0, 1: 1.0})


def test_a_folder_that_an_abandoned_run_left_is_not_taken_for_these_weights(tmp_path: Path) -> None:
    best = made(tmp_path)
    ordinary = Checkpoints(tmp_path / "checkpoints")
    left = tmp_path / "checkpoints" / "best" / "checkpoint-1"
    left.mkdir(parents=True)
    best.settle(row(0, 0.0))
    best._needed = {left.resolve()}  # as if it could not be removed
    best.offer(Cursor(1, 0), ordinary.save(Cursor(1, 0), *content([])), lambda: content([]))
    left.mkdir(exist_ok=True)
    best.settle(row(1, 1.0))
    assert Checkpoints.open(left).cursor == Cursor(1, 0)


def test_best_json_of_every_version_is_read(tmp_path: Path) -> None:
    assert listed(tmp_path) == []
    rows = [
        {"iteration": k, "by": "reward", "value": 1.0, "checkpoint": f"checkpoints/best/checkpoint-{k}"} for k in (4, 2)
    ]
    for text, found in (
        (json.dumps(rows[0]), rows[:1]),
        (json.dumps({**rows[0], "kept": rows}), rows),
        ("[]", []),
        ("{", []),
    ):
        (tmp_path / BEST).write_text(text)
        assert listed(tmp_path) == found
    (tmp_path / BEST).write_text(json.dumps({**rows[0], "kept": rows}))
    forget_after(tmp_path, 4)  # of a run that keeps none any more and goes on from there
    assert listed(tmp_path) == rows[1:]
    forget_after(tmp_path, 0)
    assert not (tmp_path / BEST).exists()
