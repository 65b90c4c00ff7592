"""How is work given to another thread without taking a lock on the way?

``threading.Thread.start`` takes module-wide locks and waits for the thread; a forked child, or a signal handler, may
find those locks held by someone who will never let go. So threads are started bare, and what they tell each other goes
through a :class:`Flag`, which takes no lock that its own thread could hold. Bare threads end with the process.
"""

from __future__ import annotations

import _thread
import os
import sys
import time
from collections.abc import Callable

__all__ = [
    "Flag",
    "Reply",
    "call_aside",
    "count_threads",
    "is_serving",
    "name_thread",
    "no_thread_ever",
    "serve",
    "start",
]


class _ThisThread(_thread._local):  # that of `threading`, which importing this must not load
    serves = False


_this_thread = _ThisThread()


class Flag:
    """A ``threading.Event`` that a signal handler, a finalizer, or a fork hook that it interrupts, may use as well.

    That one takes a lock that is not re-entrant: who sets it, is interrupted, and sets it again, waits for ever.
    """

    def __init__(self) -> None:
        self._set = False
        self._bell = _thread.allocate_lock()  # locked: nobody has rung, or who waited has heard it
        self._bell.acquire()

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        self._ring()

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is set, or so many seconds; returns whether it is."""
        deadline = time.monotonic() + timeout_s
        while not self._set:
            # It may have rung before a clear().
            if not self._bell.acquire(timeout=max(0.0, deadline - time.monotonic())):
                return self._set
            if self._set:
                self._ring()  # for who else waits
        return True

    def _ring(self) -> None:
        try:
            self._bell.release()
        except RuntimeError:
            pass  # it has rung already


class Reply:
    """Where the answer of another thread arrives."""

    def __init__(self) -> None:
        self._answer = False
        self._given = Flag()

    def give(self, answer: bool) -> None:
        self._answer = answer
        self._given.set()

    def wait(self, deadline: float) -> bool:
        """Return the answer, or False if there is none by the deadline (of the monotonic clock)."""
        return self._given.wait(deadline - time.monotonic()) and self._answer


def start(work: Callable[[], None]) -> bool:
    """Run ``work`` in a thread of its own; return False where there can be none, for now at least."""
    if no_thread_ever() or _forks_workers():
        return False
    try:
        _thread.start_new_thread(work, ())  # looked up here: gevent replaces it
    except RuntimeError:  # no more threads, or the interpreter is shutting down
        return False
    return True


def no_thread_ever() -> bool:
    """Whether no thread can run here, nor in any process forked from here: uWSGI before 2.0.27 needs enable-threads."""
    uwsgi = sys.modules.get("uwsgi")
    return uwsgi is not None and not getattr(uwsgi, "has_threads", False)


def _forks_workers() -> bool:
    """Whether this is the process from which uWSGI forks workers, mules and spoolers.

    A thread in it left one worker in ten waiting for the GIL for ever (uWSGI 2.0.31): it forks without Python's hooks,
    and the thread may want the GIL just then.
    """
    uwsgi = sys.modules.get("uwsgi")
    # masterpid is 0 where there is no master; then the process that loads the application is worker 1 later.
    return uwsgi is not None and not uwsgi.worker_id() and uwsgi.masterpid() in {0, os.getpid()}


def call_aside(work: Callable[[], bool]) -> Reply:
    """Call something that may hang in a thread of its own, or here where there can be none."""
    reply = Reply()

    def run() -> None:
        done = False
        try:
            done = work()
        finally:
            reply.give(done)

    if not start(run):
        run()
    return reply


def count_threads() -> int:
    """Return how many threads the kernel sees in this process; 0 where it does not tell."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 0


def name_thread(name: str) -> None:
    """Name the calling thread for ``ps`` and ``top``; `threading` would take a lock to name it for Python as well."""
    try:
        with open(f"/proc/self/task/{_thread.get_native_id()}/comm", "w") as comm:
            comm.write(name[:15])
    except OSError:
        pass


def serve() -> None:
    """Say that the calling thread takes the directory lock for the good of all."""
    _this_thread.serves = True


def is_serving() -> bool:
    """Whether it does. Who emits from here (a finalizer) may have that lock already, and must wait for nobody."""
    return _this_thread.serves
