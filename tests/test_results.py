"""What a run shows of its evaluations: written down, compared with the base, drawn and said."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tastemaker.evaluation.evaluate import Change, Trial, Verdict
from tastemaker.evaluation.statistics import Interval
from tastemaker.process.samplers import DDIM
from tastemaker.prompts.prompts import Prompts
from tastemaker.reports.trackers import Trackers
from tastemaker.results import SHOWN, Results, sentences
from tastemaker.training.checkpoint import Cursor
from tastemaker.training.lines import read_lines

PICTURES = 10
NAN = math.nan
SPREAD = [0, 1, 3, 4, 5, 6, 8, 9]  # SHOWN of PICTURES


def results(folder: Path, *, write: bool = True) -> Results:
    trial = Trial(Prompts.of([f"prompt {b}" for b in range(PICTURES)]), 20, 3.0, DDIM(eta=0.0), 0)
    return Results(folder, trial, "held-out", "deterministic", write=write)


def verdict(shift: float, holes: tuple[int, ...] = ()) -> Verdict:
    """Scores 0..9 and a shift; each picture is as grey as its number."""
    values = torch.arange(PICTURES).float() + shift
    values[list(holes)] = NAN
    pictures = [torch.full((3, 8, 8), 20 * b, dtype=torch.uint8) for b in range(PICTURES)]
    return Verdict({"taste": values, "taste.part": values / 2}, pictures, tuple(range(PICTURES)))


def evaluations(folder: Path) -> list[int]:
    return [row["iteration"] for row in read_lines(folder / "evaluations.jsonl")]


def test_the_first_evaluation_is_what_later_ones_are_compared_with(tmp_path: Path) -> None:
    made = results(tmp_path)
    first = made.add(0, verdict(0))
    assert first["taste"].change.mean == 0
    for iteration, shift in ((5, 1.0), (10, 3.0)):
        found = made.add(iteration, verdict(shift))
        assert found["taste"].change == Interval(shift, shift, shift) and found["taste.part"].change.mean == shift / 2
    last = read_lines(tmp_path / "evaluations.jsonl")[-1]
    assert (last["iteration"], last["prompts"], last["pictures"], last["sampler"]) == (
        10,
        "held-out",
        10,
        "deterministic",
    )
    assert (last["steps"], last["guidance"]) == (20, 3.0)
    assert last["reward"]["taste"]["mean"] == 7.5 and last["values"]["taste"] == [b + 3.0 for b in range(10)]
    assert last["change"]["taste"]["mean"] == 3.0 and last["change"]["taste"]["wins"] == 1.0
    assert math.isclose(last["change"]["taste"]["deviations"], 3 / 2.8722813, rel_tol=1e-6)
    assert json.loads((tmp_path / "evaluations.jsonl").read_text().splitlines()[0])["kind"] == "evaluations"


def test_pictures_that_are_kept_spread_over_the_rewards_of_the_base(tmp_path: Path) -> None:
    first, later = verdict(0), verdict(0)
    first.values["taste"] = torch.tensor([5.0, 0.0, 9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0])
    made = results(tmp_path)
    made.add(0, first)
    made.add(5, later)
    for iteration in (0, 5):  # what changed since does not choose
        files = {int(path.stem.partition("-")[2]) for path in (tmp_path / "samples" / str(iteration)).iterdir()}
        assert sorted(float(first.values["taste"][b]) for b in files) == SPREAD


def test_an_evaluation_made_again_replaces_its_record(tmp_path: Path) -> None:
    made = results(tmp_path)
    made.add(0, verdict(0))
    made.add(5, verdict(1.0))
    made.add(5, verdict(2.0, holes=(1,)))
    assert evaluations(tmp_path) == [0, 5]
    rows = read_lines(tmp_path / "samples.jsonl")
    assert [(row["iteration"], row["id"]) for row in rows] == [(k, b) for k in (0, 5) for b in SPREAD]
    assert rows[SHOWN + 1]["reward"] is None and rows[SHOWN + 1]["parts"] == {"taste.part": None}
    assert rows[-1] == {
        "iteration": 5,
        "id": 9,
        "prompt": "prompt 9",
        "reward": 11.0,
        "parts": {"taste.part": 5.5},
        "file": "samples/5/evaluation-9.webp",
        "kind": "evaluation",
    }
    assert read_lines(tmp_path / "evaluations.jsonl")[-1]["change"]["taste"]["mean"] == 2.0


@pytest.mark.parametrize(
    ("cursor", "kept"),
    [
        (Cursor(0, 0), []),
        (Cursor(0, 1), [0]),  # an iteration that has changed the weights does not judge the base again
        (Cursor(1, 0), [0]),
        (Cursor(5, 0), [0]),
        (Cursor(5, 2), [0, 5]),
        (Cursor(6, 0), [0, 5]),
        (Cursor(10, 0), [0, 5]),
        (Cursor(11, 0), [0, 5, 10]),
    ],
)
def test_resuming_keeps_what_is_not_made_again(tmp_path: Path, cursor: Cursor, kept: list[int]) -> None:
    made = results(tmp_path)
    for iteration in (0, 5, 10):
        made.add(iteration, verdict(float(iteration)))
    resumed = results(tmp_path)
    resumed.rewind(cursor)
    assert evaluations(tmp_path) == kept
    rows = read_lines(tmp_path / "samples.jsonl")
    assert [row["iteration"] for row in rows] == [iteration for iteration in kept for _ in range(SHOWN)]
    assert sorted(int(path.name) for path in (tmp_path / "samples").iterdir()) == kept
    if kept:  # and is compared with the same base
        assert resumed.add(20, verdict(4.0))["taste"].change.mean == 4.0
    else:
        assert resumed.add(0, verdict(4.0))["taste"].change.mean == 0.0


def test_a_resumed_base_has_the_same_bits_and_holes(tmp_path: Path) -> None:
    thirds = Verdict({"taste": torch.arange(10) / 3}, verdict(0).pictures, tuple(range(10)))
    thirds.values["taste"][4] = NAN
    results(tmp_path).add(0, thirds)
    resumed = results(tmp_path)
    resumed.rewind(Cursor(1, 0))
    assert torch.equal(resumed.base["taste"].nan_to_num(-1), thirds.values["taste"].nan_to_num(-1))


def test_before_and_after_are_the_same_prompts(tmp_path: Path) -> None:
    made = results(tmp_path)
    assert made.before_after() is None
    made.add(0, verdict(0, holes=(0, 3)))
    assert made.before_after() is None
    made.add(7, verdict(1.0, holes=(3,)))
    path = made.before_after()
    assert path == tmp_path / "before_after.png"
    with Image.open(path) as sheet:
        assert sheet.width > SHOWN * 8
    before, after = ({file.name for file in (tmp_path / "samples" / str(k)).iterdir()} for k in (0, 7))
    assert before == after and len(after) == SHOWN
    with Image.open(tmp_path / "samples" / "7" / "evaluation-5.webp") as picture:
        assert picture.getpixel((4, 4)) == (100, 100, 100)


def test_fewer_pictures_leave_no_stale_ones(tmp_path: Path) -> None:
    made = results(tmp_path)
    made.add(0, verdict(0))
    few = verdict(0)
    made.add(0, few._replace(pictures=few.pictures[:2], ids=few.ids[:2]))
    assert len(list((tmp_path / "samples" / "0").iterdir())) == 2


def test_every_prompt_is_shown_before_a_second_picture_of_any(tmp_path: Path) -> None:
    trial = replace(results(tmp_path).trial, prompts=Prompts.of(["a", "b", "c"]).repeat(4))
    values = {"taste": torch.arange(12.0)}
    pictures = [torch.zeros(3, 8, 8, dtype=torch.uint8)] * 12
    Results(tmp_path, trial, "held-out", "deterministic").add(0, Verdict(values, pictures, tuple(range(12))))
    names = {file.stem.removeprefix("evaluation-") for file in (tmp_path / "samples" / "0").iterdir()}
    assert names == {"0", "4", "8", "1", "5", "9", "2", "6"}


def test_the_curve_is_drawn_with_and_without_numbers(tmp_path: Path) -> None:
    made = results(tmp_path)
    made.add(0, verdict(0))
    made.add(2, verdict(1.0))
    rows = [
        {"schema": 1, "kind": "metrics"},
        {"iteration": 0, "reward": {"mean": 1.0}},
        {"iteration": 1, "reward": {"failed": 4}},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = made.curve("taste").read_text()
    assert "taste" in text and "held-out" in text and "training pictures" in text
    holes = tuple(range(PICTURES))
    for iteration in (0, 2):
        made.add(iteration, verdict(0, holes))  # no picture has a score
    (tmp_path / "metrics.jsonl").write_text(json.dumps(rows[2]) + "\n")
    assert made.curve("taste").is_file() and made.before_after() is not None


def test_a_rank_that_does_not_write_writes_nothing(tmp_path: Path) -> None:
    made = results(tmp_path, write=False)
    assert made.add(0, verdict(0))["taste"].change.mean == 0 and made.add(1, verdict(2.0))["taste"].change.mean == 2
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_reaches_the_trackers_with_its_pictures(tmp_path: Path) -> None:
    class Told(Trackers):
        rows: list[tuple[Any, Any]] = []

        def evaluation(self, row: Any, samples: Any) -> None:
            self.rows.append((row, samples))

    told = Told(tmp_path, {})
    trial = results(tmp_path).trial
    for write in (True, False):
        made = Results(tmp_path, trial, "held-out", "deterministic", write=write, trackers=told)
        for iteration, shift in ((0, 0.0), (5, 1.0)):
            made.add(iteration, verdict(shift))
    assert [row for row, _ in told.rows] == read_lines(tmp_path / "evaluations.jsonl")  # rank 0's alone
    pictures = [sample for _, samples in told.rows for sample in samples]
    assert pictures == read_lines(tmp_path / "samples.jsonl") and len(pictures) == 2 * SHOWN


def test_sentences_say_what_changed() -> None:
    change = Change(
        Interval(-2.0, -2.2, -1.8), Interval(-1.5, -1.7, -1.3), Interval(0.5, 0.4, 0.6), 1.25, Interval(0.9, 0.8, 1)
    )
    zero = Change(Interval(0.0, 0, 0), Interval(0.1, 0, 0.2), Interval(0.1, 0, 0.2), NAN, Interval(0.5, 0.4, 0.6))
    head, first, second = sentences({"taste": change, "longer name": zero}, 64, 32, "shapes_heldout")
    assert head == "64 pictures of shapes_heldout, same prompts and noise before and after (95 % intervals):"
    assert "of few prompts, so too narrow" in sentences({}, 64, 19, "shapes_heldout")[0]
    assert first == "  taste        -2 -> -1.5   +0.5 [+0.4, +0.6]   +25 %, +1.25 SD, 90% of pairs won"
    assert second == "  longer name  0 -> 0.1   +0.1 [+0, +0.2]   50% of pairs won"
