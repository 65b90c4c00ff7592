"""Processes for tests: forked, numbered, acknowledged from memory that outlives them, and never left behind."""

from __future__ import annotations

import functools
import mmap
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Acknowledgements", "Signal", "alarms", "alone", "fork", "reap", "run_unprivileged", "running", "wait_until"]


class Acknowledgements:
    """One counter per worker in shared memory: how many of its events' ``emit`` calls have returned."""

    def __init__(self, workers: int) -> None:
        self._words = memoryview(mmap.mmap(-1, 8 * workers)).cast("Q")

    def __setitem__(self, worker: int, count: int) -> None:
        self._words[worker] = count

    def __getitem__(self, worker: int) -> int:
        return self._words[worker]

    def by_worker(self) -> dict[int, int]:
        return {worker: count for worker, count in enumerate(self._words) if count}

    def total(self) -> int:
        return sum(self._words)


def fork(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked child that ends without any exit hook; returns its pid."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    sys.unraisablehook = sys.__unraisablehook__  # pytest's keeps what it gets for a report that is the parent's
    try:
        work()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def reap(pid: int, timeout_s: float = 60.0) -> int:
    """Wait for a child; returns its exit code, negative for a signal. Kills it and fails when it does not end."""
    deadline = time.monotonic() + timeout_s
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"process {pid} did not end within {timeout_s} s")
        time.sleep(0.002)


@contextmanager
def running(*works: Callable[[], object]) -> Iterator[list[int]]:
    """Forked children for the length of a block; whatever of them is left then is killed."""
    pids = [fork(work) for work in works]
    try:
        yield pids
    finally:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass


def wait_until(condition: Callable[[], object], timeout_s: float = 30.0, what: str = "") -> None:
    """Poll until ``condition`` holds; a deadline against hangs, not a measurement."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what or condition}")
        time.sleep(0.005)


class Signal:
    """One byte through a pipe: another process has got somewhere."""

    def __init__(self) -> None:
        self._out, self._into = os.pipe()

    def send(self, times: int = 1) -> None:
        os.write(self._into, b"." * times)

    def wait(self, timeout_s: float = 30.0) -> None:
        assert select.select([self._out], [], [], timeout_s)[0], "the other process never got there"
        assert os.read(self._out, 1) == b"."


@contextmanager
def alarms(period_s: float, handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Call a signal handler again and again, wherever the main thread is."""
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, period_s, period_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        # One may still be on its way, by another thread: nobody's death, now that there is no handler any more.
        signal.signal(signal.SIGALRM, signal.SIG_IGN if before is signal.SIG_DFL else before)


def run_unprivileged(work: Callable[[], None]) -> None:
    """Run ``work`` in a child that is nobody's; where this process is not root's, as its own user."""

    def unprivileged() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        work()

    assert reap(fork(unprivileged)) == 0


def alone(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a process without any other threads: pytest's plugins may have some.

    A thread that waits for the interpreter while C code forks leaves the child with a lock that nobody gives back.
    """

    @functools.wraps(test)
    def in_a_process_of_its_own(**arguments: Any) -> None:
        assert reap(fork(functools.partial(test, **arguments)), 180) == 0

    return in_a_process_of_its_own
