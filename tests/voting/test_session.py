"""Votes on disk: whole after each, taken back, gone on with, held by one process, refused where broken."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tastemaker.prompts.pairs import pairs as read_pairs
from tastemaker.voting import votes as votes_file
from tastemaker.voting.places import places, titles
from tastemaker.voting.session import Session
from tastemaker.voting.summary import second, summary, told
from votables import picture, sampled

CATS = ["a cat", "a dog"] * 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sampled(tmp_path / "s", CATS)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "votes.jsonl").read_text().splitlines()]


def vote(folder: Path, *votes: str, **more: Any) -> list[str]:
    """Casts these on the pairs that are left; what is left then, as names."""
    with Session.open([folder], **more) as session:
        for pair, one in zip(session.left(), votes, strict=False):
            session.cast(pair, one, seconds=1.5)
        return [f"{pair.left.name} {pair.right.name}" for pair in session.left()]


def test_a_vote_is_a_line(folder: Path) -> None:
    with Session.open([folder], seed=7) as session:
        assert len(session.pairs) == len(session.left()) == 6
        for pair, one in zip(session.left(), ("left", "tie", "right"), strict=False):
            session.cast(pair, one, seconds=0.12345)
            assert (folder / "votes.jsonl").read_bytes().endswith(b"\n")
        first, tie, right = rows(folder)
        pair = session.pairs[0]
        assert {**first, "time": ""} == {
            "prompt": pair.prompt,
            "left": pair.left.name,
            "right": pair.right.name,
            "vote": "left",
            "winner": pair.left.name,
            "loser": pair.right.name,
            "seconds": 0.123,
            "seed": 7,
            "pair": 0,
            "content": {
                file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in (pair.left, pair.right)
            },
            "time": "",
        }
        assert not {"winner", "loser"} & set(tie) and (right["winner"], right["loser"]) == (
            right["right"],
            right["left"],
        )
    found = read_pairs(str(folder / "votes.jsonl"))
    assert found[0] == (pair.prompt, {"winner": str(folder / first["left"]), "loser": str(folder / first["right"])})
    assert len(found) == 2


def test_a_session_goes_on_where_it_was_left(folder: Path) -> None:
    whole = vote(folder)
    assert not (folder / "votes.jsonl").exists()  # nobody voted
    assert vote(folder, "left", "tie") == whole[2:] == vote(folder)
    with Session.open([folder]) as session:
        assert [one.vote for one in session.votes] == ["left", "tie"] and session.votes[0].seconds == 1.5
        assert [pair.number for pair in session.left()] == [2, 3, 4, 5]
    assert vote(folder, count=3) == whole[2:3] and vote(folder, count=2) == []
    other = {frozenset(one.split()) for one in vote(folder, seed=5)}
    assert other == {frozenset(one.split()) for one in whole[2:]}  # whatever the seed


def test_votes_are_choices_to_learn_a_reward_from(folder: Path) -> None:
    from tastemaker.reward_training import choices
    from tastemaker.reward_training.settings import Columns

    vote(folder, "left", "tie", "right")
    found = choices.read(str(folder / "votes.jsonl"), columns=Columns()).labels
    wanted = [(row["prompt"], row["left"], row["right"]) for row in rows(folder)]
    assert [(one.prompt, one.first.name, one.second.name) for one in found] == wanted
    assert [one.share for one in found] == [1.0, 0.5, 0.0]


def test_a_picture_that_was_drawn_anew_has_no_vote(folder: Path) -> None:
    vote(folder, "left")
    picture(folder / rows(folder)[0]["left"], shade=200)
    with pytest.raises(ValueError, match=r"is not the picture any more that was voted on"):
        Session.open([folder])


def test_more_pictures_make_more_pairs(folder: Path) -> None:
    vote(folder, *["left"] * 6)
    sampled(folder, [*CATS, "a cat"])
    with Session.open([folder]) as session:
        assert len(session.votes) == 6 and len(session.left()) == 3
        assert all("6.png" in (pair.left.name, pair.right.name) for pair in session.left())


def test_it_moves_with_its_folder_and_other_folders_votes_stay_out(folder: Path, tmp_path: Path) -> None:
    rest = vote(folder, "left")
    moved = tmp_path / "moved"
    shutil.move(folder, moved)
    assert vote(moved) == rest
    link = tmp_path / "link"
    link.symlink_to(moved)
    assert vote(link) == rest
    other = sampled(tmp_path / "other", CATS, first=50)
    assert len(vote(other, "left", output=moved / "votes.jsonl")) == 5
    assert rows(moved)[1]["left"].startswith(str(other.resolve()))  # not below the file's folder
    with Session.open([moved]) as session:
        assert len(session.votes) == 1
        assert session.undo() is None  # the last vote is the other folder's
    assert len(rows(moved)) == 2


def test_undo_takes_the_last_line_back(folder: Path) -> None:
    with Session.open([folder]) as session:
        assert session.undo() is None
        one, two = session.pairs[:2]
        session.cast(one, "left")
        before = (folder / "votes.jsonl").read_bytes()
        session.cast(two, "right")
        assert session.undo() == two and (folder / "votes.jsonl").read_bytes() == before
        assert session.left()[0] == two
        session.cast(two, "tie")
    with Session.open([folder]) as session:  # also a vote of an earlier session
        assert session.undo() is not None and session.undo() is not None and session.undo() is None
        assert len(session.left()) == 6 and (folder / "votes.jsonl").read_bytes() == b""


def test_what_is_no_vote_changes_nothing(folder: Path) -> None:
    with Session.open([folder]) as session:
        pair = session.pairs[0]
        for args, said in {
            ("up",): "'up' is no vote: say left, right or tie",
            ("left", math.nan): "does not take nan seconds",
            ("left", -1.0): "does not take -1.0 seconds",
        }.items():
            with pytest.raises(ValueError, match=said):
                session.cast(pair, args[0], seconds=float(args[-1]) if len(args) > 1 else 0.0)
        with pytest.raises(ValueError, match="is not one of this session"):
            session.cast(pair._replace(number=-1), "left")
        with pytest.raises(ValueError, match="is not one of this session"):
            session.cast(pair._replace(prompt="other"), "left")
        assert (folder / "votes.jsonl").read_bytes() == b""
        session.cast(pair, "left")
        with pytest.raises(ValueError, match="has its vote already: undo it first"):
            session.cast(pair, "right")
    for act in (lambda: session.cast(session.pairs[1], "left"), session.undo):
        with pytest.raises(ValueError, match="the session is closed"):
            act()
    session.close()  # twice is no harm
    assert len(rows(folder)) == 1


def test_what_a_killed_process_left_half_written_is_cut_off(folder: Path) -> None:
    rest = vote(folder, "left", "right")
    whole = (folder / "votes.jsonl").read_bytes()
    second_line = whole.splitlines()[1]
    for tail in (b"{", b'{"pro', second_line[:30], second_line[:-1]):
        (folder / "votes.jsonl").write_bytes(whole + tail)
        assert vote(folder) == rest and (folder / "votes.jsonl").read_bytes() == whole
    (folder / "votes.jsonl").write_bytes(whole[:-1])  # a whole vote without its newline is one
    assert len(vote(folder, "tie")) == 3 and len(rows(folder)) == 3


LINES = [
    ("no", r"votes\.jsonl:2: not JSON"),
    ("[]", r"votes\.jsonl:2: found \[\], but an object"),
    ('{"prompt": "a cat", "winner": "0.png", "loser": "2.png"}', r":2: not a vote, for it has no left and no right"),
    ('{"prompt": "a cat", "left": "0.png", "right": "2.png", "vote": "up"}', r":2: `vote` is 'up'; it is one of"),
    ('{"prompt": "a cat", "left": "0.png", "right": "2.png", "vote": "left", "winner": "2.png", "loser": "0.png"}',
     ":2: `vote` is left, but winner and loser say something else"),
    ('{"prompt": "a cat", "left": "\udcff"', r"votes\.jsonl:2: .*utf-8"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "said"), LINES)
def test_a_broken_line_is_named_and_the_file_stays(folder: Path, line: str, said: str) -> None:
    vote(folder, "left")
    path = folder / "votes.jsonl"
    lines = path.read_bytes() + line.encode("utf-8", "surrogateescape") + b"\n\n"
    path.write_bytes(lines)
    with pytest.raises(ValueError, match=said):
        Session.open([folder])
    assert path.read_bytes() == lines


def test_somebodys_other_file_is_not_cut(folder: Path) -> None:
    for data in (b"\x89PNG\r\n\x1a\n", b'{"prompt" :3', b"my notes"):
        (folder / "votes.jsonl").write_bytes(data)
        with pytest.raises(ValueError, match=r"votes\.jsonl:1: "):
            Session.open([folder])
        assert (folder / "votes.jsonl").read_bytes() == data


def test_blank_lines_pass_and_undo_still_finds_the_line(folder: Path) -> None:
    rest = vote(folder, "left")
    line = (folder / "votes.jsonl").read_bytes()
    (folder / "votes.jsonl").write_bytes(b"\n" + line + b"\n")
    assert len(vote(folder, "right")) == len(rest) - 1
    with Session.open([folder]) as session:
        session.undo()
    assert (folder / "votes.jsonl").read_bytes() == b"\n" + line + b"\n"


def test_one_file_is_written_by_one_session(folder: Path) -> None:
    with Session.open([folder]) as session:
        with pytest.raises(ValueError, match=r"votes\.jsonl is written by another `tastemaker vote`"):
            Session.open([folder])
        session.cast(session.pairs[0], "left")
        code = f"from tastemaker.voting.session import Session; Session.open([{str(folder)!r}])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert "is written by another" in done.stderr
    assert len(vote(folder)) == 5


def test_a_session_that_was_killed_loses_no_vote_and_no_lock(folder: Path) -> None:
    code = (
        f"import os, signal\nfrom tastemaker.voting.session import Session\ns = Session.open([{str(folder)!r}])\n"
        "s.cast(s.pairs[0], 'left')\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -signal.SIGKILL
    assert len(rows(folder)) == 1 and len(vote(folder)) == 5


def test_a_full_disk_leaves_the_file_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Session.open([folder]) as session:
        session.cast(session.pairs[0], "left")
        before = (folder / "votes.jsonl").read_bytes()
        true = os.pwrite

        def full(file: int, data: bytes, at: int) -> int:
            if len(data) < 20:
                raise OSError(28, "No space left on device")
            return true(file, data[:20], at)

        monkeypatch.setattr(votes_file.os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            session.cast(session.pairs[1], "left")
        assert (folder / "votes.jsonl").read_bytes() == before and len(session.votes) == 1
        monkeypatch.setattr(votes_file.os, "pwrite", lambda file, data, at: true(file, data[:7], at))
        session.cast(session.pairs[1], "left")  # in small parts
    assert len(rows(folder)) == 2


def test_threads_cast_each_pair_once(folder: Path) -> None:
    refused: list[ValueError] = []
    with Session.open([folder]) as session:

        def all_pairs() -> None:
            for pair in session.pairs:
                try:
                    session.cast(pair, "left")
                except ValueError as error:
                    refused.append(error)

        threads = [threading.Thread(target=all_pairs) for _ in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert len(session.votes) == 6 and len(refused) == 18
    assert sorted(row["pair"] for row in rows(folder)) == list(range(6))


def test_where_there_is_no_pair_it_says_why(tmp_path: Path) -> None:
    def says(said: str, *folders: Path, **more: Any) -> None:
        with pytest.raises(ValueError, match=said):
            Session.open(folders, **more)
        assert not list(tmp_path.rglob("votes.jsonl"))

    one, two = sampled(tmp_path / "one", ["a cat", "a dog"]), sampled(tmp_path / "two", ["a cow", "a fox"])
    says("has one picture of each prompt, 2 in all, so there is no pair to choose from: draw several", one)
    says("have no prompt in common", one, two)
    says("are the same, byte by byte", one, sampled(tmp_path / "copy", ["a cat", "a dog"]))
    alike = sampled(tmp_path / "alike", ["a cat"] * 2)
    picture(alike / "1.png", 0)
    says("pictures of the same prompt in .*alike are all the same, byte by byte", alike)
    says("takes one folder, or two that are compared; found none")
    says("takes one folder, or two that are compared; found 3", one, two, one)
    says("is named twice", one, tmp_path / "two" / ".." / "one")
    says("--count is 0; it is a whole number of 1 or more", one, count=0)
    good = sampled(tmp_path / "good", CATS)
    says(r"--output .*no/v\.jsonl cannot be written: No such file or directory", good, output=tmp_path / "no/v.jsonl")
    says("--output .*good cannot be written: Is a directory", good, output=good)
    os.mkfifo(tmp_path / "pipe")
    says("--output .*pipe is no plain file", good, output=tmp_path / "pipe")


# ---- two places


def cast_for(session: Session, place: int, count: int, other: str = "tie") -> None:
    for k, pair in enumerate(session.left()):
        session.cast(pair, ("left", "right")[pair.places.index(place)] if k < count else other, seconds=float(k))


def test_two_places_are_compared_over_prompts(tmp_path: Path) -> None:
    texts = [f"prompt {k}" for k in range(30)]
    a, b = sampled(tmp_path / "a", texts), sampled(tmp_path / "b", texts, first=100)
    with Session.open([a, b], seed=1) as session:
        assert len(session.pairs) == 30 and session.output == a / "votes.jsonl"
        cast_for(session, 1, 24)
        share = second(session)
        assert share.mean == pytest.approx(27 / 30) and 0.8 < share.low < share.mean < share.high <= 1
        assert session.pairs[0].left.parent.name in ("a", "b")
        found = summary(session.votes)
        assert (found.votes, found.ties, found.seconds) == (30, 6, 14.5) and 0.2 < found.left < 0.8
        line = list(told(session))[-1]
        assert line.startswith("b is preferred to a in 90 % [") and line.endswith("] of 30 votes (ties count half)")
    with Session.open([a, b], seed=1) as session:
        assert second(session) == share and session.left() == []
    with Session.open([a, b], seed=1, output=tmp_path / "other.jsonl") as session:
        cast_for(session, 0, 30)
        assert second(session).mean == 0
    assert {one.vote for one in session.votes} == {"left", "right"}


def test_of_few_votes_it_says_so(tmp_path: Path, folder: Path) -> None:
    with Session.open([folder]) as session:
        assert list(told(session)) == ["no votes"]
        session.cast(session.pairs[0], "tie", seconds=2)
        assert list(told(session)) == ["1 vote, 1 tie; 2.0 seconds each (median)"]
        with pytest.raises(ValueError, match="one folder alone was voted on"):
            second(session)
    a, b = sampled(tmp_path / "x" / "run", CATS), sampled(tmp_path / "y" / "run", CATS, first=50)
    with Session.open([a, b]) as session:
        session.cast(session.pairs[0], ("left", "right")[session.pairs[0].places.index(1)])
        assert list(told(session))[-1] == "y/run is preferred to x/run in 100 % of 1 vote (ties count half)"
        cast_for(session, 1, 9)
        assert list(told(session))[-1].endswith("(ties count half; with 2 prompts the interval is too narrow)")


def test_an_evaluations_folder_is_its_two_models(tmp_path: Path) -> None:
    for name, first in (("a-run", 0), ("shapes", 50)):
        sampled(tmp_path / "images" / name, CATS, first=first)
    table = {"rows": [{"name": "shapes", "base": "shapes"}, {"name": "a run", "base": "shapes"}]}
    (tmp_path / "evaluation.json").write_text(json.dumps(table))
    assert [one.name for one in places([tmp_path])] == ["shapes", "a-run"]  # the base is first
    with Session.open([tmp_path]) as session:
        assert len(session.pairs) == 6 and session.output == tmp_path / "votes.jsonl"
        session.cast(session.pairs[0], "left")
    assert rows(tmp_path)[0]["left"].startswith("images/")
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(ValueError, match=r"evaluation\.json is not what `tastemaker evaluate` writes"):
        places([tmp_path])
    sampled(tmp_path / "images" / "third", CATS)
    with pytest.raises(ValueError, match=r"holds the pictures of 3 models\. Name two folders of its images/"):
        places([tmp_path])


def test_folders_are_called_by_as_much_as_tells_them_apart() -> None:
    assert titles([Path("/x/a"), Path("/x/b")]) == ["a", "b"]
    assert titles([Path("/x/a/run"), Path("/x/b/run")]) == ["a/run", "b/run"]
