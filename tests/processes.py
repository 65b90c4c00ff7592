"""Processes for tests: forked, numbered, acknowledged from memory that outlives them, and never left behind."""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Acknowledgements", "fork", "reap", "running", "wait_until"]


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
