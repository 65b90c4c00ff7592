"""How is an event made exactly once although a soft time limit may be thrown in at any instant?

Celery's soft time limit, and the TERM that a pool's child gets, are exceptions thrown by signal handlers between any
two instructions. Thrown in while an event is being handed over, nobody could say whether it was taken. So these
handlers wait while `unbroken` is entered, a few microseconds, and are called right after it.

    >>> import signal
    >>> def limit(number, frame):
    ...     raise TimeoutError("soft time limit")
    >>> before = signal.signal(signal.SIGUSR1, limit)
    >>> become_patient()
    >>> done = []
    >>> try:
    ...     with unbroken:
    ...         signal.raise_signal(signal.SIGUSR1)
    ...         done.append("the event")
    ... except TimeoutError as error:
    ...     print(done, error)
    ['the event'] soft time limit
    >>> _ = signal.signal(signal.SIGUSR1, before)
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["become_patient", "unbroken"]

# What billiard uses: USR1 for soft time limits; TERM, or QUIT in its place, to end a child.
_NUMBERS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGQUIT)


class _Unbroken:
    """The block that waits. Handlers run in the main thread only, so it does nothing in any other."""

    def __init__(self) -> None:
        self.depth = 0
        self.waiting: list[tuple[Callable[..., Any], int]] = []

    def __enter__(self) -> None:
        if threading.get_ident() == _patient:
            self.depth += 1

    def __exit__(self, *exc: object) -> None:
        if threading.get_ident() == _patient:
            self.depth -= 1
            while not self.depth and self.waiting:
                handler, number = self.waiting.pop(0)
                handler(number, None)


unbroken = _Unbroken()
_patient = 0  # the main thread's identity, once its handlers wait


class _PatientHandler:
    """A signal's handler, called later when it comes at a bad time."""

    def __init__(self, handler: Callable[..., Any]) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if unbroken.depth:
            unbroken.waiting.append((self.handler, number))
        else:
            self.handler(number, frame)


def become_patient() -> None:
    """Have this process's handlers of these signals wait for `unbroken`; once per process, in its main thread."""
    global _patient
    if _patient:
        return
    for number in _NUMBERS:
        handler = signal.getsignal(number)
        if callable(handler) and not isinstance(handler, _PatientHandler):
            signal.signal(number, _PatientHandler(handler))
            _patient = threading.get_ident()
