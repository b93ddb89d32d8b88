"""Signals that ask a run to stop: it drops what is half made, saves, and ends; a second Ctrl-C ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Protocol

# SIGTERM: the machine is taken away. SIGUSR1: Slurm's warning before the time limit (Windows has none).
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))


class Stoppable(Protocol):
    def request_stop(self) -> None:
        """Note the request and return: this is called in the middle of anything."""


class Stopping:
    """Inside the block, signals become `world.request_stop()`; afterwards the former handlers are back.

    `received` is the first signal's number, for the exit status: 128 + it is what a shell reports for one that killed.
    Does nothing outside the main thread, where Python delivers no signals.
    """

    def __init__(self, world: Stoppable) -> None:
        self.received: int | None = None
        self._world = world
        self._interrupts = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            # no cleaning up, which is what may be hanging; a checkpoint that is being written is just left behind
            os._exit(128 + signal.SIGINT)
        if self.received is None:
            self.received = number
            how = " Ctrl-C again ends it now, without a checkpoint." if number == signal.SIGINT else ""
            # a print could meet itself: the signal may have come in the middle of one
            os.write(2, f"\n{signal.Signals(number).name}: saving a checkpoint, then stopping.{how}\n".encode())
        self._world.request_stop()
