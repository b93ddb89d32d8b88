"""Scoring while the next pictures are drawn: one worker thread behind a bounded queue."""

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch import Tensor

from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards.reward import adapt, score

Result = tuple[float, dict[str, float]]  # a picture's score (NaN: none) and its parts

_LOOK = 0.2  # seconds between two looks at `poll` while waiting
_FAREWELL = 5.0  # seconds a stop waits for the reward call under way


def _nothing() -> None:
    """Polls nothing."""


class Scoring:
    """A context in which parts of a rollout are scored while the caller goes on.

    `submit` waits once `parts` parts wait, so memory stays bounded. Results go by the prompts' ids, never by order. The
    worker enters no-grad itself, because grad mode and autocast belong to a thread. A reward on an accelerator runs in
    the caller's thread: it would share the device with the sampling anyway.
    Errors: what `score` does not turn into NaN is raised again by the next `submit` or `results`. Left by an exception,
    parts that wait are dropped. `poll` is called while waiting, so a stop request does not wait for a slow judge.
    """

    def __init__(self, reward: Any, *, parts: int = 2, poll: Callable[[], None] = _nothing) -> None:
        if parts < 1:
            raise ValueError(f"scoring needs room for 1 part or more, found {parts}.")
        self.reward = adapt(reward)
        self.poll = poll
        self.parts = parts
        self.notes: dict[int, str] = {}
        device = self.reward.device
        self.inline = device is not None and device.type != "cpu"
        self._turn = threading.Condition()
        self._waiting: deque[tuple[Prompts, Tensor]] = deque()
        self._scored: dict[int, Result] = {}
        self._pictures = 0  # submitted and not yet scored
        self._error: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="scoring", daemon=True)

    def __enter__(self) -> "Scoring":
        if not self.inline:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._turn:
            self._closed = True
            self._turn.notify_all()
        if self._thread.is_alive():
            self._thread.join(_FAREWELL)

    @property
    def waiting(self) -> int:
        """Pictures submitted and not yet scored."""
        return self._pictures

    def submit(self, prompts: Prompts, images: Tensor) -> None:
        """Hands pictures [B,3,H,W] over to be scored; waits while the queue is full."""
        if self.inline:
            self._keep(prompts, images)
            return
        self._wait(lambda: len(self._waiting) < self.parts)
        with self._turn:
            self._waiting.append((prompts, images))
            self._pictures += len(images)
            self._turn.notify_all()

    def results(self) -> dict[int, Result]:
        """Waits for all that was submitted: id -> (score, parts). Why a score is missing stands in `notes`, by id."""
        self._wait(lambda: self._pictures == 0)
        return dict(self._scored)

    def _wait(self, ready: Callable[[], bool]) -> None:
        while True:
            with self._turn:
                if self._error is not None:
                    raise self._error
                if ready():
                    return
                self._turn.wait(_LOOK)
            self.poll()

    def _work(self) -> None:
        while True:
            with self._turn:
                while not self._waiting and not self._closed:
                    self._turn.wait()
                if self._closed:
                    return
                prompts, images = self._waiting.popleft()
                self._turn.notify_all()
            try:
                self._keep(prompts, images)
            except BaseException as error:  # raised again in the caller's thread
                with self._turn:
                    self._error = error
                    self._turn.notify_all()
                return
            with self._turn:
                self._pictures -= len(images)
                self._turn.notify_all()

    def _keep(self, prompts: Prompts, images: Tensor) -> None:
        value, parts, notes = score(self.reward, images, prompts)
        for row, name in enumerate(prompts.ids):
            self._scored[name] = (float(value[row]), {part: float(numbers[row]) for part, numbers in parts.items()})
            if notes and (note := notes[row]) is not None:
                self.notes[name] = note
