"""`tastemaker vote`: what it takes, what it says, and that it ends politely."""

from __future__ import annotations

import signal
import subprocess
import sys
import webbrowser
from pathlib import Path
from typing import Any

import pytest

from runs import call
from tastemaker.voting.server import Voting
from votables import picture, sampled

TEXTS = ["a cat", "a dog"] * 2


@pytest.fixture
def votes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a person votes before Ctrl-C."""
    cast: list[str] = []

    def serve(server: Voting, *more: Any) -> None:
        for pair, vote in zip(server.session.left(), cast, strict=False):
            server.session.cast(pair, vote, seconds=2.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(Voting, "serve_forever", serve)
    return cast


def test_it_says_where_votes_go_and_what_is_next(
    tmp_path: Path, votes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(webbrowser, "open", shown.append)
    folder = sampled(tmp_path / "my pictures", TEXTS)
    votes += ["left"]
    ran = call("vote", str(folder), "--open", "--seed", "3")
    first, where, blank, summary, *rest = ran.out.splitlines()
    assert ran.code == 0 and first == f"2 pairs of 2 prompts; votes go to {folder / 'votes.jsonl'}"
    assert where == f"{shown[0]}  (Ctrl-C ends it)" and shown[0].startswith("http://127.0.0.1:")
    assert (blank, summary) == ("", "1 vote, 0 ties; 100 % of the choices were on the left; 2.0 seconds each (median)")
    assert f"  tastemaker train-reward preference --data '{folder / 'votes.jsonl'}'" in rest
    assert f"--prompts pairs --prompts.path '{folder / 'votes.jsonl'}' --model MODEL --reward REWARD" in rest[-1]
    votes[:] = ["tie"]
    assert "2 pairs of 2 prompts, 1 of them voted on" in call("vote", str(folder)).out
    ran = call("vote", str(folder))
    assert (
        ran.code == 0
        and ran.out.startswith("All 2 pairs have a vote. For more: a larger --count")
        and "1 tie" in ran.out
    )


def test_two_places_and_every_flag(tmp_path: Path, votes: list[str]) -> None:
    for k, name in enumerate("ab"):
        for shade in range(3):
            picture(tmp_path / name / f"{shade}.png", 10 * k + shade)
    votes += ["tie"]
    words = ("--count=2", "--output", str(tmp_path / "v.jsonl"), "--prompt", "a cat", "--port", "0")
    ran = call("vote", str(tmp_path / "a"), str(tmp_path / "b"), *words)
    assert ran.out.startswith(f"2 pairs of 1 prompt; votes go to {tmp_path / 'v.jsonl'}")
    assert ran.out.endswith("b is preferred to a in 50 % of 1 vote (ties count half)\n")  # and nothing to learn from
    assert (tmp_path / "v.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["vote"], "vote takes one folder, or two that are compared; found none"),
        (["vote", "A", "A"], "is named twice"),
        (["vote", "A", "B", "C"], "found 3"),
        (["vote", "nothing"], "there is no folder nothing"),
        (["vote", "A", "--cuont", "3"], "Did you mean `--count`?"),
        (["vote", "A", "--count", "0"], "--count is 0; it is a whole number of 1 or more"),
        (["vote", "A", "--count", "x"], "--count is 'x'; it is a whole number"),
        (["vote", "A", "--seed", "-1"], "--seed is '-1'; it is a whole number"),
        (["vote", "A", "--port", "70000"], "--port is '70000'; it is a whole number below 65536"),
        (["vote", "A", "--output"], "--output needs a value"),
        (["vote", "--open", "A"], "write it behind the plain words"),
        (["vote", "A", "--prompt", "a cat"], "--prompt has no effect"),
        (["vote", "B"], "has one picture of each prompt, 1 in all"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, argv: list[str], said: str) -> None:
    folders = {"A": sampled(tmp_path / "a", TEXTS), "B": sampled(tmp_path / "b", ["a cat"]), "C": tmp_path}
    ran = call(*(str(folders.get(word, word)) for word in argv))
    assert ran.code == 2 and said in ran.err and ran.out == ""


def test_help() -> None:
    assert call("vote", "--help").out.startswith("tastemaker vote PLACE [PLACE]")


def test_a_polite_end_from_outside_tells_the_summary(tmp_path: Path) -> None:
    folder = sampled(tmp_path / "s", TEXTS)
    command = [sys.executable, "-m", "tastemaker", "vote", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "2 pairs" in process.stdout.readline() and "http://127.0.0.1:" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "\nno votes\n", "") and not (folder / "votes.jsonl").exists()


def test_it_needs_no_torch(tmp_path: Path) -> None:
    folder = sampled(tmp_path / "s", TEXTS)
    code = (
        "import sys\nfrom tastemaker.voting import server, summary\nfrom tastemaker.voting.session import Session\n"
        f"with Session.open([{str(folder)!r}]) as s, server.bound(s):\n    s.cast(s.pairs[0], 'tie')\n"
        "    print(*summary.told(s), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith(" False\n")
