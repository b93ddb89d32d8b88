"""`Batcher`: one thread that scores waiting requests, in the order in which they came."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import NamedTuple

import torch
from torch import Tensor

from tastemaker.prompts.prompts import Prompts
from tastemaker.rewards.reward import NamedReward, Scores, score
from tastemaker.rewards.wire import floats


class _Waiting(NamedTuple):
    images: Tensor
    prompts: Prompts
    done: Future[Scores]

    @property
    def kind(self) -> tuple[object, ...]:
        return self.images.dtype, *self.images.shape[1:]


class Batcher:
    """Puts requests to a reward one after the other; several in one call where `rows` allows.

    A network's scores of a call of other rows differ in their last bits, so by default a request is a call of its own.
    device: where the pictures go.
    """

    def __init__(self, reward: NamedReward, device: str = "cpu", rows: int = 0) -> None:
        self.reward, self.device, self.rows = reward, device, rows
        self._turn = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="scoring", daemon=True)
        self._thread.start()

    def submit(self, images: Tensor, prompts: Prompts) -> Future[Scores]:
        """The scores to come of pictures as they travelled."""
        made = _Waiting(images, prompts, Future())
        with self._turn:
            if self._closed:
                raise RuntimeError("the server is ending")
            self._waiting.append(made)
            self._turn.notify()
        return made.done

    def withdraw(self, done: Future[Scores]) -> None:
        """Lets go of a request that nobody waits for any more, unless it is under way."""
        with self._turn:
            self._waiting = deque(one for one in self._waiting if one.done is not done)

    def close(self) -> None:
        """Scores what waits and ends; waits a moment for it."""
        with self._turn:
            self._closed = True
            self._turn.notify()
        self._thread.join(5.0)

    def _work(self) -> None:
        while batch := self._next():
            some = [one for one in batch if one.done.set_running_or_notify_cancel()]
            if some:
                self._score(some)
            del batch, some  # pictures are let go before the thread waits

    def _next(self) -> list[_Waiting]:
        """The next request and those behind it that go with it; none once there are none and will be none."""
        with self._turn:
            while not self._waiting and not self._closed:
                self._turn.wait()
            if not self._waiting:
                return []
            batch = [self._waiting.popleft()]
            rows = len(batch[0].images)
            while self._waiting and self._waiting[0].kind == batch[0].kind:
                rows += len(self._waiting[0].images)
                if rows > self.rows:
                    break
                batch.append(self._waiting.popleft())
            return batch

    def _score(self, batch: list[_Waiting]) -> None:
        if len(batch) > 1 and (together := self._together(batch)) is not None:
            for one, scores in zip(batch, together, strict=True):
                one.done.set_result(scores)
            return
        for one in batch:  # alone, so that what is wrong with one request costs the others nothing
            try:
                one.done.set_result(_brief(score(self.reward, floats(one.images).to(self.device), one.prompts)))
            except Exception as error:  # raised again where the request waits
                one.done.set_exception(error)
            except BaseException as error:  # one that would end the server there
                one.done.set_exception(RuntimeError(f"the reward ended with {type(error).__name__}"))

    def _together(self, batch: list[_Waiting]) -> list[Scores] | None:
        """One call for all; None where anything of it raises."""
        try:
            return self._parted(batch)
        except BaseException:  # each is tried alone then
            return None

    @torch.no_grad()
    def _parted(self, batch: list[_Waiting]) -> list[Scores]:
        images = floats(torch.cat([one.images for one in batch])).to(self.device)
        texts = tuple(text for one in batch for text in one.prompts.texts)
        metadata = tuple(said for one in batch for said in one.prompts.metadata)
        all_ = self.reward(images, Prompts.of(texts, metadata))
        found, first = [], 0
        for one in batch:
            rows = slice(first, first := first + len(one.images))
            value = all_.value[rows].detach().cpu()
            parts = {name: part[rows].detach().cpu() for name, part in all_.parts.items()}
            value = torch.where(value.isfinite(), value, torch.nan)
            found.append(_brief(Scores(value, parts, all_.notes[rows])))
        return found


def _brief(scores: Scores) -> Scores:
    """Without tracebacks, which name files of this machine: of each the last line."""
    brief = (
        note and note.strip().rpartition("\n")[2] if note and "Traceback" in note else note for note in scores.notes
    )
    return scores._replace(notes=tuple(brief))
