"""How is work given to another thread without taking a lock on the way?

``threading.Thread.start`` takes module-wide locks and waits for the thread; a forked child, or a signal handler, may
find those locks held by someone who will never let go. So threads are started bare, and all that passes between them
goes through ``SimpleQueue``, whose ``put`` is documented as re-entrant. Bare threads end with the process.
"""

from __future__ import annotations

import _thread
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from queue import SimpleQueue

__all__ = ["Reply", "call_aside", "name_thread", "start"]


class Reply:
    """Where the answer of another thread arrives."""

    def __init__(self) -> None:
        import queue  # here, not above: gevent replaces the class, and most processes never need it

        self._answer: SimpleQueue[bool] = queue.SimpleQueue()

    def give(self, answer: bool) -> None:
        self._answer.put(answer)

    def wait(self, deadline: float) -> bool:
        """Return the answer, or False if there is none by the deadline (of the monotonic clock)."""
        import queue

        try:
            return self._answer.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return False


def start(work: Callable[[], None]) -> bool:
    """Run ``work`` in a thread of its own; return False where there can be none, for now at least."""
    uwsgi = sys.modules.get("uwsgi")
    # Without its enable-threads, uWSGI before 2.0.27 lets no thread but its own run. And a thread in the process that
    # is about to fork the workers (it is worker 0) left one worker in ten waiting for the GIL for ever (uWSGI 2.0.31):
    # it forks without Python's hooks, and the thread may want the GIL just then.
    if uwsgi is not None and not (getattr(uwsgi, "has_threads", False) and uwsgi.worker_id()):
        return False
    try:
        _thread.start_new_thread(work, ())  # looked up here: gevent replaces it
    except RuntimeError:  # no more threads, or the interpreter is shutting down
        return False
    return True


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


def name_thread(name: str) -> None:
    """Name the calling thread for ``ps`` and ``top``; `threading` would take a lock to name it for Python as well."""
    try:
        with open(f"/proc/self/task/{_thread.get_native_id()}/comm", "w") as comm:
            comm.write(name[:15])
    except OSError:
        pass
