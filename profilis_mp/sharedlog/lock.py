"""Who may change a stream's control file and active segment?  Whoever holds this lock.

``filelock.FileLock`` opens, stats and registers at every acquire (80-100 us); ``lock_descriptor`` on a descriptor
kept open costs 0.75 us and contends with a ``FileLock`` on the same path. The lock is flock, not lockf: POSIX record
locks vanish when any descriptor of the file is closed in this process.

flock belongs to the open file description, so two consequences rule the callers:

* a forked child shares its parent's lock: it must close the descriptor and open its own, and never unlock;
* two threads of one process exclude each other only with a descriptor each.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from fcntl import LOCK_UN, flock
from functools import partial

from filelock import lock_descriptor

from profilis_mp.errors import LockTimeout
from profilis_mp.sharedlog.words import open_regular

__all__ = ["KeptLock"]

_FIRST_PAUSE_S = 50e-6
_LONGEST_PAUSE_S = 2e-3


class KeptLock:
    """An exclusive lock on a descriptor that stays open. Not for two threads at once.

    Attributes:
        path: The file.
        fd: The descriptor.
        release: Gives the lock back; does nothing when it is not held.
    """

    def __init__(self, path: str, mode: int) -> None:
        """Open the lock file, creating it if need be; nothing is locked yet.

        Raises:
            OSError: The file cannot be opened or is a symbolic link.
        """
        self.path = path
        self.fd = open_regular(path, os.O_RDWR | os.O_CREAT, mode)
        # The system call itself, not filelock's Python function around it: an exception that a signal handler throws
        # in comes after a call of C code or at the entry of Python code, so in a `finally` this is sure to happen.
        self.release: Callable[[], None] = partial(flock, self.fd, LOCK_UN)
        status = os.fstat(self.fd)
        self._identity = (status.st_dev, status.st_ino)

    def try_acquire(self) -> bool:
        """Take the lock if it is free; returns whether it was."""
        return lock_descriptor(self.fd, blocking=False)

    def acquire(self, timeout_s: float) -> None:
        """Take the lock, waiting at most ``timeout_s`` seconds (0 tries once).

        Raises:
            LockTimeout: Another holder kept it. Nothing changed.
        """
        if lock_descriptor(self.fd, blocking=False):
            return
        started = time.monotonic()
        pause = _FIRST_PAUSE_S
        while (waited := time.monotonic() - started) < timeout_s:
            # Short sleeps, not a blocking flock: a signal must find the thread in Python, and the wait must end.
            time.sleep(min(pause, timeout_s - waited))
            if lock_descriptor(self.fd, blocking=False):
                return
            pause = min(pause * 2, _LONGEST_PAUSE_S)
        raise LockTimeout(self.path, waited)

    def is_in_place(self) -> bool:
        """Is the file that ``path`` names still the one this lock is on?  False after someone removed or moved it."""
        try:
            status = os.lstat(self.path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def close(self) -> None:
        """Close the descriptor. In a forked child this leaves the parent's lock alone."""
        os.close(self.fd)
