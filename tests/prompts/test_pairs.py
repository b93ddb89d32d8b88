"""Pairs of files of votes: ties are passed over, and a picture is not better than itself."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tastemaker.prompts.pairs import pairs


def written(folder: Path, *rows: dict[str, Any]) -> str:
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"x")
    (folder / "votes.jsonl").write_text("".join(json.dumps({"prompt": "a cat", **row}) + "\n" for row in rows))
    return str(folder / "votes.jsonl")


TIE = {"left": "a.png", "right": "b.png", "vote": "tie"}
CHOICE = {"left": "a.png", "right": "b.png", "vote": "left", "winner": "a.png", "loser": "b.png"}


def test_ties_are_passed_over(tmp_path: Path) -> None:
    found = pairs(written(tmp_path, TIE, CHOICE, TIE))
    assert found == [("a cat", {"winner": str(tmp_path / "a.png"), "loser": str(tmp_path / "b.png")})]


def test_ties_alone_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"path: .*votes\.jsonl holds no pair that was decided: all its 2 votes are ties"
    ):
        pairs(written(tmp_path, TIE, TIE))
    with pytest.raises(ValueError, match=r"votes\.jsonl holds no pair\."):
        pairs(written(tmp_path))


def test_a_picture_is_not_better_than_itself(tmp_path: Path) -> None:
    file = written(tmp_path, CHOICE, {"winner": "a.png", "loser": "./a.png"})
    with pytest.raises(ValueError, match=r"votes\.jsonl:2: winner and loser are both .*a\.png: name two pictures"):
        pairs(file)
    os.unlink(tmp_path / "b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    with pytest.raises(ValueError, match=r"votes\.jsonl:1: winner and loser are both"):
        pairs(str(tmp_path / "votes.jsonl"))


def test_a_file_that_is_missing_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"votes\.jsonl:1: loser: there is no .*c\.png"):
        pairs(written(tmp_path, {**CHOICE, "loser": "c.png"}))


def test_a_picture_that_was_drawn_anew_is_not_the_one_that_was_voted_on(tmp_path: Path) -> None:
    content = {"a.png": hashlib.sha256(b"x").hexdigest()[:16], "b.png": hashlib.sha256(b"x").hexdigest()[:16]}
    file = written(tmp_path, {**CHOICE, "content": content})
    assert len(pairs(file)) == 1
    (tmp_path / "b.png").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"votes\.jsonl:1: .*b\.png is not the picture any more that was voted on"):
        pairs(file)
