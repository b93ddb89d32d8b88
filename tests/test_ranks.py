"""Two processes make one run: who writes, who is told, and how a run that cannot begin ends on both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import runs
from two_ranks import left_by

RANKS = str(Path(__file__).with_name("run_ranks.py"))
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    home = left_by(RANKS, tmp_path_factory, runs.model(), seconds=100)
    return home, [json.loads((home / f"rank-{rank}.json").read_text()) for rank in range(2)]


def test_the_run_has_ended_on_both_and_only_the_first_is_told(ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    home, (first, second) = ranks
    for found in (first, second):
        assert found["whole"]["done"] and found["whole"]["weights"] == str(home / "run" / runs.LORA)
        assert found["whole"]["drawn"] > 0
    assert first["whole"]["told"] == [[0, 2, 1], [1, 2, 1]] and second["whole"]["told"] == []  # its share of 4 pictures
    assert [row["images"] for row in runs.rows(home / "run", "metrics")] == [4, 4]
    events = list((home / "run" / "trackers").rglob("events*"))
    assert len(events) >= 1 and len({path.name.split(".")[-2] for path in events}) == 1  # of one process


def test_both_are_watched_and_one_of_them_writes(ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    home, _ = ranks
    for row in runs.rows(home / "run", "metrics"):
        watch = row["watch"]
        assert watch["pictures"] == 4 and watch["drift"] is not None and watch["spread"] > 0


def test_an_alarm_stops_both(ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    home, found = ranks
    assert [rank["stopped"] for rank in found] == [{"done": False, "weights": str(home / "stopped" / runs.LORA)}] * 2
    (alarm,) = runs.rows(home / "stopped", "alarms")
    assert alarm["stopped"] and len(runs.rows(home / "stopped", "metrics")) == 2
    assert (home / "stopped" / json.loads((home / "stopped" / "best.json").read_text())["checkpoint"]).is_dir()


def test_both_draw_their_share_of_a_check(ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    home, _ = ranks
    first, second = (row["watch"] for row in runs.rows(home / "stopped", "metrics"))
    for watch in (first, second):
        assert watch["checked"] == 6 and watch["checked_trained"] is not None and watch["checked_error.brightness"] > 0
    assert 0 != first["checked.brightness"] != second["checked.brightness"]


def test_diversity_is_of_all_prompts(ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    home, _ = ranks
    for row in runs.rows(home / "run", "evaluations"):
        assert len(row["diversity"]["values"]) == 3 and all(value > 0 for value in row["diversity"]["values"])


def test_a_run_that_cannot_begin_says_so_on_both(ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    home, found = ranks
    said = "report_to tensorboard did not start: OSError: no network"
    assert [rank["refused"] for rank in found] == [said, said] and not (home / "refused").exists()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="names of threads are read from /proc")
def test_no_thread_of_the_groups_outlives_the_interpreter(ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    home, _ = ranks
    for rank in range(2):
        left = json.loads((home / f"threads-{rank}.json").read_text())
        assert left and not [name for name in left if "gloo" in name], left
