"""Who holds a file lock, asked without disturbing anybody?"""

from __future__ import annotations

import os
from fcntl import LOCK_NB, LOCK_SH, LOCK_UN, flock
from typing import NamedTuple

from profilis_mp.sharedlog.words import open_regular

__all__ = ["Holder", "Holders", "pids_of"]


class Holder(NamedTuple):
    """Somebody has the lock.

    Attributes:
        pid: The process that took it, as seen from here; None where that cannot be told.
    """

    pid: int | None


class Holders:
    """The flocks of this machine at one moment, from ``/proc/locks``.

    That shows no lock of a process in another pid namespace, nor one whose taker is dead while a child goes on holding
    it. So where it shows none, the lock itself is tried: shared, and for an instant. The worst that follows is that a
    helper who wants the same lock in that instant takes a dead spool for a living one's (and flushes it all the same),
    or a candidate does not become leader: both try again at their next tick, and nothing else hangs on these locks.
    A spool that is being created (``.new``), where it would matter, is never looked at here.
    """

    def __init__(self) -> None:
        self._pids: dict[tuple[int, int], int] = {}
        try:
            with open("/proc/locks", encoding="ascii", errors="replace") as locks:
                lines = locks.read().splitlines()
        except OSError:
            return
        for line in lines:
            # 1: FLOCK  ADVISORY  WRITE 4242 fd:00:131090 0 EOF; somebody who waits for it has "->" in the second place.
            fields = line.split()
            try:
                if fields[1] == "FLOCK":
                    major, minor, inode = fields[5].split(":")
                    self._pids[os.makedev(int(major, 16), int(minor, 16)), int(inode)] = int(fields[4])
            except (IndexError, ValueError):
                continue  # a line of another kernel's

    def seen(self, path: str) -> Holder | None:
        """Who is seen to have the lock on a file, which is not tried; None when nobody is."""
        try:
            status = os.lstat(path)
        except OSError:
            return None
        pid = self._pids.get((status.st_dev, status.st_ino))
        return None if pid is None else Holder(pid)

    def of(self, path: str) -> Holder | None:
        """Who has the lock on a file; None when it is free.

        Raises:
            OSError: The file is gone, or not ours to read.
        """
        seen = self.seen(path)
        if seen is not None:
            return seen
        fd = open_regular(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            try:
                flock(fd, LOCK_SH | LOCK_NB)
            except BlockingIOError:
                return Holder(None)
            flock(fd, LOCK_UN)
            return None
        finally:
            os.close(fd)


def pids_of(pid: int) -> list[int]:
    """What a process is called, in this pid namespace and in those below; empty where that cannot be told."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
            for line in status:
                if line.startswith("NSpid:"):
                    return [int(one) for one in line.split()[1:]]
    except (OSError, ValueError):
        pass
    return []
