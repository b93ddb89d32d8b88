"""The scripted voter and the rows of its loop."""

from __future__ import annotations

import csv
from pathlib import Path

import human_loop
import pytest
import torch
import voter
from PIL import Image

from labelled import drawn


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = []
    for number, picture in enumerate(drawn(40)[0]):
        found.append(tmp_path / f"{number}.png")
        Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()).save(found[-1])
    return found


def test_the_rule_likes_dark_plain_backgrounds_and_large_objects() -> None:
    base = torch.full((4, 3, 64, 64), 0.6)
    base[:, :, 20:40, 20:40] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    base[1] -= 0.2 * (base[1] == 0.6)  # darker behind
    base[2, :, ::2, :8] = 0.2  # unrest behind
    base[3, :, 16:44, 16:44] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]  # larger
    plain, dark, restless, large = voter.utility(base).tolist()
    assert dark > plain > restless and large > plain


def test_votes_follow_the_rule_with_noise_and_are_drawn_by_their_key(files: list[Path]) -> None:
    values = voter.of_files(files).tolist()
    pairs = [(a, b) for a in range(40) for b in range(a + 1, 40, 7)]
    said = [voter.vote(files[a], files[b], a, b) for a, b in pairs]
    assert said == [voter.vote(files[a], files[b], a, b) for a, b in pairs]
    assert {"left", "right"} <= set(said)
    decided = [(one, values[a] - values[b]) for one, (a, b) in zip(said, pairs, strict=True) if one != "tie"]
    right = sum((one == "left") == (apart > 0) for one, apart in decided) / len(decided)
    sure = [(one == "left") == (apart > 0) for one, apart in decided if abs(apart) > 2]
    assert 0.7 < right < 1 and sum(sure) / len(sure) > 0.97
    assert all(
        abs(values[a] - values[b]) < voter.CLOSE for one, (a, b) in zip(said, pairs, strict=True) if one == "tie"
    )


def test_ratings_are_whole_numbers_about_the_rule() -> None:
    assert {voter.rating(-9.0), voter.rating(9.0)} == {1, 10}
    given = [voter.rating(0.5, k) for k in range(200)]
    assert all(isinstance(one, int) for one in given) and abs(sum(given) / 200 - 6.5) < 0.2 and len(set(given)) > 2


def test_tables_of_choices_hold_neighbours_of_one_prompt(files: list[Path], tmp_path: Path) -> None:
    found = [(file, "abcde"[k % 5]) for k, file in enumerate(files)]
    values = voter.of_files(files).tolist()
    file, right = human_loop._choices(tmp_path, "data", found, values, 0)
    with open(file, encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    prompt = {path.name: text for path, text in found}
    assert len(rows) == 40 and 0.5 < right <= 1
    assert all(prompt[row["left"]] == prompt[row["right"]] == row["prompt"] for row in rows)
    file, rank = human_loop._ratings(tmp_path, "data", found, values, 0)
    with open(file, encoding="utf-8", newline="") as opened:
        assert len(list(csv.DictReader(opened))) == 40
    assert 0.7 < rank < 1
