"""Which descriptors does the janitor have open, so that a forked child can close what it inherits of them?

A descriptor is written down after it was opened, and struck off before it is closed; a fork in between would give it to
the child unseen. So both are done under a mutex. A fork that is about to happen says so and then waits, for a moment,
until nobody has the mutex; who has got it looks whether one has said so, and waits for that one.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from profilis_mp.sharedlog.forks import is_about_to_fork

__all__ = ["abandon", "between_forks", "close", "is_opening", "keep"]

_held: set[int] = set()
_mutex = threading.Lock()


def keep(opened: Callable[[], int]) -> int:
    """Open a descriptor by calling ``opened``, and write it down; returns it."""
    with between_forks():
        fd = opened()
        _held.add(fd)
    return fd


@contextmanager
def between_forks() -> Iterator[None]:
    """For whoever opens descriptors and writes them down elsewhere."""
    while True:
        with _mutex:
            if not is_about_to_fork():
                yield
                return
        time.sleep(50e-6)


def close(fd: int, how: Callable[[], object] | None = None) -> None:
    """Close a descriptor, by calling ``how`` if it has an owner of its own."""
    with between_forks():
        _held.discard(fd)  # first: once it is closed, the number may be anybody's
        if how is None:
            os.close(fd)
        else:
            how()


def is_opening() -> bool:
    """Whether a descriptor is being opened or closed just now."""
    return _mutex.locked()


def abandon() -> None:
    """In a forked child: close all. A copy kept open would keep the space of a removed segment."""
    global _mutex
    _mutex = threading.Lock()  # the parent's may be held, by a thread that is not here
    while _held:
        try:
            os.close(_held.pop())
        except OSError:
            pass
