"""A session's page over HTTP, for this machine alone: pictures by their numbers, votes from our own page only."""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from tastemaker.reports import loopback
from tastemaker.reports.loopback import Loopback
from tastemaker.voting.page import page
from tastemaker.voting.pictures import HEAD, LARGEST, kind
from tastemaker.voting.session import Pair, Session, Vote
from tastemaker.voting.votes import VOTES

TOKEN = "X-Tastemaker-Token"  # a page of another address cannot send it
LARGEST_BODY = 4096  # bytes
DRAINED = 2**16  # bytes of a larger one that are read all the same, so that its sender hears the answer
JSON = "application/json"


class Voting(Loopback):
    """Serves one session."""

    def __init__(self, session: Session, port: int = 0) -> None:
        self.session, self.token = session, secrets.token_urlsafe(24)
        self.page, self.policy = page(self.token)
        super().__init__(Answer, port)

    def state(self) -> bytes:
        """All that the page knows. Nothing in it tells a picture's folder: numbers follow the sides."""
        voted = list(self.session.votes)
        pairs = [
            {"number": one.number, "prompt": one.prompt, "left": 2 * one.number, "right": 2 * one.number + 1}
            for one in self.session.pairs
        ]
        votes = [{"pair": one.pair.number, "vote": one.vote, "seconds": _seconds(one)} for one in voted]
        return _json({"pairs": pairs, "votes": votes})

    def picture(self, number: int) -> tuple[str, bytes] | None:
        """Media type and bytes of a picture; None where it is none any more."""
        pairs = self.session.pairs
        if number >= 2 * len(pairs):
            return None
        file = pairs[number // 2].right if number % 2 else pairs[number // 2].left
        try:
            with file.open("rb") as opened:
                body = opened.read(LARGEST + 1)
        except OSError:
            return None
        media = kind(body[:HEAD])
        return (media, body) if media and len(body) <= LARGEST else None


class Answer(loopback.Answer):
    """One request: `/`, `/state`, `/picture/NUMBER`; POST `/vote`, `/undo`."""

    server: Voting

    def get(self, path: str) -> None:
        """The page, what it shows, a picture."""
        if path == "/":
            policy = {"Content-Security-Policy": self.server.policy}
            return self.send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page, policy)
        if path == "/state":
            return self.send(HTTPStatus.OK, JSON, self.server.state())
        number = path.removeprefix("/picture/")
        if path != number and number.isascii() and number.isdecimal() and len(number) < 10:
            if found := self.server.picture(int(number)):
                return self.send(HTTPStatus.OK, *found)
            return self.refuse(HTTPStatus.NOT_FOUND, "there is no such picture")
        return self.refuse(HTTPStatus.NOT_FOUND, "there is only the page of votes here")

    def do_POST(self) -> None:
        """A vote, or the last one taken back; whatever is wrong changes nothing."""
        if not self.meant_for_us():
            return
        told = self._body()
        if told is None:
            return
        acts: dict[str, Callable[[Any], None]] = {"/vote": self._vote, "/undo": self._undo}
        act = acts.get(self.path)
        if act is None:
            return self.refuse(HTTPStatus.NOT_FOUND, "there is only /vote and /undo here")
        try:
            act(told)
        except OSError as error:
            if isinstance(error, ConnectionError | TimeoutError):  # the browser went away; the vote is written
                raise
            self.refuse(HTTPStatus.INSUFFICIENT_STORAGE, f"the file of votes cannot be written: {error.strerror}")

    def _body(self) -> Any:
        """The JSON that our page sent; None where something else came, which is answered."""
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdecimal()):
            return self.refuse(HTTPStatus.LENGTH_REQUIRED, "say how long it is")
        size = min(int(length), DRAINED) if len(length) < 10 else DRAINED
        body = self.rfile.read(size)
        if size > LARGEST_BODY:
            return self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a vote has at most {LARGEST_BODY} bytes")
        if not hmac.compare_digest(self.headers.get(TOKEN, "").encode(), self.server.token.encode()):
            return self.refuse(HTTPStatus.FORBIDDEN, "this page is of an earlier session: reload it")
        if self.headers.get_content_type() != JSON:
            return self.refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "votes are JSON")
        try:
            told = json.loads(body)
        except (ValueError, RecursionError):
            return self.refuse(HTTPStatus.BAD_REQUEST, "that is not JSON")
        if not isinstance(told, dict):
            return self.refuse(HTTPStatus.BAD_REQUEST, "a vote is an object")
        return told

    def _vote(self, told: dict[str, Any]) -> None:
        number, vote, seconds = told.get("pair"), told.get("vote"), told.get("seconds")
        session = self.server.session
        if type(number) is not int or not 0 <= number < len(session.pairs):
            return self.refuse(HTTPStatus.BAD_REQUEST, "there is no such pair")
        if vote not in VOTES or not isinstance(vote, str):
            return self.refuse(HTTPStatus.BAD_REQUEST, f"a vote is one of {', '.join(VOTES)}")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e9:
            return self.refuse(HTTPStatus.BAD_REQUEST, "seconds are a number of 0 or more")
        try:
            session.cast(session.pairs[number], vote, seconds=float(seconds))
        except ValueError as error:
            return self.refuse(HTTPStatus.CONFLICT, str(error))
        return self.send(HTTPStatus.OK, JSON, _json({"votes": len(session.votes)}))

    def _undo(self, told: dict[str, Any]) -> None:
        try:
            pair: Pair | None = self.server.session.undo()
        except ValueError as error:
            return self.refuse(HTTPStatus.CONFLICT, str(error))
        if pair is None:
            return self.refuse(HTTPStatus.CONFLICT, "there is no vote to take back")
        return self.send(HTTPStatus.OK, JSON, _json({"pair": pair.number}))


def bound(session: Session, port: int = 0) -> Voting:
    """A server that listens. Errors: ValueError where the port is taken."""
    return loopback.bound(lambda port: Voting(session, port), port)


def _seconds(vote: Vote) -> float | None:
    return vote.seconds if vote.seconds == vote.seconds else None  # JSON has no NaN


def _json(found: Any) -> bytes:
    return json.dumps(found, allow_nan=False).encode()
