"""Signals become one request to stop; a second Ctrl-C ends the process."""

import os
import signal
import threading
from collections.abc import Callable

import pytest

from tastemaker.training.stopping import SIGNALS, Stopping

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class World:
    def __init__(self) -> None:
        self.requests = 0

    def request_stop(self) -> None:
        self.requests += 1


def test_each_signal_asks_the_world_to_stop_and_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    assert set(SIGNALS) == {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
    for number in SIGNALS:
        world = World()
        with Stopping(world) as stopping:
            assert stopping.received is None
            signal.raise_signal(number)
        assert world.requests == 1 and stopping.received == number
        said = capfd.readouterr().err
        assert said.startswith(f"\n{number.name}: saving a checkpoint")
        assert ("Ctrl-C again" in said) == (number == signal.SIGINT)


def test_repeated_requests_are_said_once_and_the_first_signal_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    world = World()
    with Stopping(world) as stopping:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
    assert world.requests == 3 and stopping.received == signal.SIGUSR1
    assert capfd.readouterr().err.count("saving a checkpoint") == 1


def test_the_former_handlers_come_back_also_after_an_exception() -> None:
    heard: list[int] = []
    before = {number: signal.signal(number, lambda n, _: heard.append(n)) for number in SIGNALS}
    try:
        with pytest.raises(RuntimeError), Stopping(World()):
            raise RuntimeError
        for number in SIGNALS:
            signal.raise_signal(number)
        assert heard == list(SIGNALS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_outside_the_main_thread_it_changes_nothing() -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with Stopping(World()):
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


def exit_status(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with Stopping(World()):
            work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_second_ctrl_c_ends_the_process_at_once_and_nothing_else_does() -> None:
    def twice(number: int) -> Callable[[], None]:
        def work() -> None:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(number)

        return work

    assert exit_status(twice(signal.SIGINT)) == 130
    assert exit_status(twice(signal.SIGTERM)) == 0
