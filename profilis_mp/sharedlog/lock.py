"""Who may change a stream's control file and active segment?  Whoever holds this lock.

``filelock.FileLock`` opens, stats and registers at every acquire (80-100 us); ``lock_descriptor`` on a descriptor
kept open costs 0.75 us and contends with a ``FileLock`` on the same path. The lock is flock, not lockf: POSIX record
locks vanish when any descriptor of the file is closed in this process.

On Python 3.12 and later filelock is not imported, and the system call below it is made here: there it installs an audit
hook (filelock 3.30 to 4.3.1) that has ``os.fork`` raise RuntimeError in one thread while another thread forks, and for
ever after an exception was thrown into its fork hooks. An application must not meet that because it logs.

flock belongs to the open file description, so two consequences rule the callers:

* a forked child shares its parent's lock: it must close the descriptor and open its own, and never unlock;
* two threads of one process exclude each other only with a descriptor each.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from functools import partial

from profilis_mp.errors import LockTimeout
from profilis_mp.sharedlog.ownership import Settle, create_settled
from profilis_mp.sharedlog.words import open_regular

if sys.version_info < (3, 12):
    from filelock import lock_descriptor

__all__ = ["KeptLock", "try_lock"]

_FIRST_PAUSE_S = 50e-6
_LONGEST_PAUSE_S = 2e-3


def try_lock(fd: int) -> bool:
    """Take the lock of an open file if it is free; returns whether it was.

    Raises:
        OSError: The file system has no locks.
    """
    if sys.version_info < (3, 12):
        return lock_descriptor(fd, blocking=False)
    try:
        flock(fd, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    return True


class KeptLock:
    """An exclusive lock on a descriptor that stays open. Not for two threads at once.

    Attributes:
        path: The file.
        fd: The descriptor.
        release: Gives the lock back; does nothing when it is not held.
    """

    def __init__(self, path: str, mode: int, settle: Settle | None = None) -> None:
        """Open the lock file, creating it if need be; nothing is locked yet.

        Args:
            path: The file.
            mode: Its permissions, if it is created.
            settle: Gives it its owner and mode.

        Raises:
            OSError: The file cannot be opened or is a symbolic link.
        """
        self.path = path
        while True:
            try:
                self.fd = open_regular(path, os.O_RDWR)
                if settle is not None:
                    settle(self.fd, False)
                break
            except FileNotFoundError:
                try:
                    self.fd = create_settled(path, os.O_RDWR, mode, settle, os.path.dirname(path))
                    break
                except FileExistsError:
                    pass  # somebody was quicker
        # The system call itself, not filelock's Python function around it: an exception that a signal handler throws
        # in comes after a call of C code or at the entry of Python code, so in a `finally` this is sure to happen.
        self.release: Callable[[], None] = partial(flock, self.fd, LOCK_UN)
        status = os.fstat(self.fd)
        self._identity = (status.st_dev, status.st_ino)

    def try_acquire(self) -> bool:
        """Take the lock if it is free; returns whether it was."""
        return try_lock(self.fd)

    def acquire(self, timeout_s: float) -> None:
        """Take the lock, waiting at most ``timeout_s`` seconds (0 tries once).

        Raises:
            LockTimeout: Another holder kept it. Nothing changed.
        """
        if try_lock(self.fd):
            return
        started = time.monotonic()
        pause = _FIRST_PAUSE_S
        while (waited := time.monotonic() - started) < timeout_s:
            # Short sleeps, not a blocking flock: a signal must find the thread in Python, and the wait must end.
            time.sleep(min(pause, timeout_s - waited))
            if try_lock(self.fd):
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
        """Close the descriptor. In a forked child this leaves the parent's lock alone.

        Who is waiting in `acquire`, further up the stack or in another greenlet, gets a ValueError: by then the number
        may be somebody else's.
        """
        fd, self.fd = self.fd, -1
        os.close(fd)
