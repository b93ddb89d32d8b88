"""Tasks in threads that do not outlive the process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def together(tasks: Sequence[Callable[[], None]], threads: int) -> None:
    """Does tasks in so many threads, and waits; none of them outlives the process. Tasks raise nothing.

    Errors: the first that a task raised all the same.
    """
    waiting, lock, errors = iter(tasks), threading.Lock(), list[BaseException]()

    def work() -> None:
        while not errors:
            with lock:
                task = next(waiting, None)
            if task is None:
                return
            try:
                task()
            except BaseException as error:  # raised again below
                errors.append(error)

    crew = [threading.Thread(target=work, name="judge", daemon=True) for _ in range(min(threads, len(tasks)))]
    for one in crew:
        one.start()
    for one in crew:
        one.join()
    if errors:
        raise errors[0]


def within(seconds: float, task: Callable[[], T]) -> T:
    """What a task gives, in a thread of its own; one that takes longer is left to itself.

    Timeouts of sockets are of each piece, so a server that sends its head letter by letter would hold us for ever.
    Errors: what the task raises; TimeoutError for too long.
    """
    found, errors = list[T](), list[BaseException]()

    def work() -> None:
        try:
            found.append(task())
        except BaseException as error:  # raised again below
            errors.append(error)

    thread = threading.Thread(target=work, name="asking", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not found:
        raise TimeoutError
    return found[0]
