"""`tastemaker vote PLACE [PLACE]`: people say which of two pictures is better; a reward or a model learns from it."""

from __future__ import annotations

import shlex
import signal
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tastemaker import flags
from tastemaker.layers import Switch
from tastemaker.reports.loopback import port_of

if TYPE_CHECKING:
    from tastemaker.voting.session import Session

USAGE = """tastemaker vote PLACE [PLACE] [--count 200] [--seed 0] [--output FILE] [--prompt TEXT] [--port 8765] [--open]

  PLACE     a folder of pictures: a run's, or one that `sample` or `evaluate --output` left; pictures with
            metadata.jsonl or metadata.csv; NAME.png with NAME.txt beside it; a folder a prompt, with prompt.txt in it
            One place: pairs of the same prompt within it. Two: the page shows one picture of each and does not say
            whose it is; at the end the terminal says which place is preferred. An evaluation's folder is its two models
  --count   pairs at most, those with a vote included (default 200); a session goes on where it was left
  --seed    of pairs, order and sides (default 0)
  --output  the file of votes, a line each (default: votes.jsonl in the first place)
  --prompt  what pictures show that have no prompt of their own
  --port    of this machine's own address, 127.0.0.1 (default: any that is free)
  --open    show it in the browser

  Keys: left and right arrow or A and D, down arrow or T for a tie, U or backspace to undo. Ctrl-C ends it; every vote
  is in the file at once. Nobody but this machine can reach the page; from elsewhere:
  ssh -L 8765:127.0.0.1:8765 MACHINE.
"""


def main(argv: Sequence[str]) -> int:
    """Serve the page until somebody ends it, then say what the votes say."""
    words, tree, wanted = flags.parse(argv)
    if wanted:
        print(USAGE, end="")
        return 0
    flags.refuse("vote", tree, values=("count", "seed", "output", "prompt", "port"), switches=("open",))
    from tastemaker.voting.session import COUNT, Session

    port = port_of(tree.get("port", "0"))
    with Session.open(
        words,
        count=_whole(tree, "count", COUNT),
        seed=_whole(tree, "seed", 0),
        output=tree.get("output"),
        prompt=tree.get("prompt"),
    ) as session:
        if session.left():
            _serve(session, port, tree.get("open") is Switch.ON)
        else:
            print(f"All {len(session.pairs)} pairs have a vote. For more: a larger --count, or more pictures.")
        _tell(session)
    return 0


def _serve(session: Session, port: int, show: bool) -> None:
    from tastemaker.voting import server
    from tastemaker.voting.summary import many

    asked = f"{many(len(session.pairs), 'pair')} of {many(len({pair.prompt for pair in session.pairs}), 'prompt')}"
    there = f", {len(session.votes)} of them voted on" if session.votes else ""
    with server.bound(session, port) as running, _ended_by_signals():
        try:
            print(f"{asked}{there}; votes go to {session.output}")
            print(f"{running.address}  (Ctrl-C ends it)", flush=True)
            if show:
                webbrowser.open(running.address)
            running.serve_forever()
        except KeyboardInterrupt:
            print()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A polite end from outside is like Ctrl-C: the summary is still told."""

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(session: Session) -> None:
    """The votes in numbers, and what can be done with them."""
    from tastemaker.voting.summary import told

    for line in told(session):
        print(line)
    if any(one.vote != "tie" for one in session.votes):
        file = shlex.quote(str(session.output))
        print(
            f"\nNext, a reward that scores as you do, or a model that learns from the pairs themselves:\n"
            f"  tastemaker train-reward preference --data {file}\n"
            f"  tastemaker train diffusion_dpo --algorithm.pairs given --algorithm.per_prompt 1 "
            f"--prompts pairs --prompts.path {file} --model MODEL --reward REWARD"
        )


def _whole(tree: dict[str, Any], name: str, default: int) -> int:
    text = str(tree.get(name, default))
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"--{name} is {text!r}; it is a whole number.")
    return int(text)
