"""What has this process emitted that is in no segment yet, and how does it get there?

An outbox owns a process's spools: the main one for lines, and framed ones aside (opaque records, and records that
interrupted another's append). It flushes them, keeps count of why a flush failed and when to try again, and replaces
a spool that is too small, damaged, or has lost its file. Everything but ``append_aside`` is for the holder of the
session's mutex only: the directory lock belongs to a descriptor, and two flushes through one would not exclude
each other.
"""

from __future__ import annotations

import errno
import os
import time

from profilis_mp import diagnostics
from profilis_mp.errors import LockTimeout
from profilis_mp.sharedlog import commit
from profilis_mp.sharedlog.helping import in_helper_thread
from profilis_mp.sharedlog.names import SegmentName
from profilis_mp.sharedlog.settings import Settings
from profilis_mp.sharedlog.spool import FRAME_BYTES, BadSpool, Spool
from profilis_mp.sharedlog.stream import Stream, StreamPaths

__all__ = ["Counters", "Outbox"]

_ASIDE_BYTES = 64 * 1024
_FIRST_BACKOFF_S = 0.05
_LONGEST_BACKOFF_S = 1.0
_REASONS = {
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "quota",
    errno.EFBIG: "file_too_big",
    errno.EIO: "io_error",
    errno.EMFILE: "too_many_files",
    errno.ENFILE: "too_many_files",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.EROFS: "read_only",
}


class Counters:
    """What happened to this process's records since it started, or was forked.

    Attributes:
        events: Records accepted, but for those that the session's fast path counts by itself.
        dropped: Records not written, by reason.
        flush_failures: Flushes that could not be done and were put off, by reason.
        flushes: Flushes done by this process for itself.
        aside: Records that went to a spool aside.
    """

    def __init__(self) -> None:
        self.events = 0
        self.dropped: dict[str, int] = {}
        self.flush_failures: dict[str, int] = {}
        self.flushes = 0
        self.aside = 0


class Outbox:
    """One process's spools.

    Attributes:
        spool: The main spool; None before the first record.
        aside_used: Whether a spool aside may hold records, which must go out before younger lines do.
    """

    def __init__(self, paths: StreamPaths, settings: Settings, counters: Counters) -> None:
        self.spool: Spool | None = None
        self.aside_used = False
        self._paths = paths
        self._settings = settings
        self._counters = counters
        self._stream = Stream(paths, settings)
        self._aside: list[Spool] = []
        self._failure = "spool_full"
        self._retry_at = 0.0
        self._backoff = _FIRST_BACKOFF_S
        self._waited_in_vain = False

    def spools(self) -> list[Spool]:
        """All of them, the main one first."""
        return [spool for spool in (self.spool, *self._aside) if spool is not None]

    # Aside.

    def append_aside(self, record: bytes) -> bool:
        """Append to a framed spool that nobody else uses right now; returns whether there was room.

        Needs no mutex: who takes the spools off has them alone, even from within an interrupted append.
        """
        taken: list[Spool] = []
        fits = False
        self.aside_used = True
        try:
            # In one step, which nothing can come between: nobody else has these now.
            taken, self._aside = self._aside, []
            # Behind what is there already, not into a gap before it: the order of records is the order of spools.
            used = [number for number, spool in enumerate(taken) if spool.unflushed]
            for spool in taken[used[-1] if used else 0 :]:
                if spool.append(record):
                    fits = True
                    break
            else:
                if sum(spool.size for spool in taken if spool.unflushed) < self._settings.spool_bytes:
                    another = self._create(max(_ASIDE_BYTES, len(record) + FRAME_BYTES), framed=True)
                    if another is not None:
                        taken.append(another)
                        fits = another.append(record)
        finally:
            self._aside.extend(taken)
        self._counters.aside += fits
        return fits

    def append_line(self, record: bytes) -> bool:
        """Append to the main spool; returns whether there was room."""
        return self.spool is not None and self.spool.append(record)

    def unflushed(self) -> int:
        """Bytes in all spools."""
        return sum(spool.unflushed for spool in self.spools())

    # Flushing.

    def flush(self, timeout_s: float) -> bool:
        """Flush all spools and start them again at the front; returns whether all are empty now. Raises nothing.

        A flush that fails leaves every record where it is. With ``timeout_s`` 0 a busy lock is no failure.
        """
        stream = self._stream
        try:
            try:
                self._flush(timeout_s)
            except FileNotFoundError:
                # Somebody removed the directory in the middle of it: once more, in a new one.
                stream.close()
                self._flush(timeout_s)
        except LockTimeout:
            self._failure = "lock_timeout"
            if timeout_s:
                self._waited_in_vain = True
                self._count_failure()
            return False
        except BadSpool as reason:
            self._replace_damaged(reason)
            return False
        except OSError as error:
            self._put_off(error)
            return False
        finally:
            for key, text in stream.notices:
                diagnostics.warn(key, text)
            stream.notices.clear()
        self._counters.flushes += 1
        diagnostics.debug("flushed the spools of %s", self._paths.state)
        self._retry_at = 0.0
        self._backoff = _FIRST_BACKOFF_S
        self._waited_in_vain = False
        return True

    def _flush(self, timeout_s: float) -> None:
        stream = self._stream
        aside: list[Spool] = []
        try:
            aside, self._aside = self._aside, []
            spools = [*aside] if self.spool is None else [self.spool, *aside]
            stream.acquire(timeout_s, spools)
            for spool in spools:
                spool.check()
                commit.flush(stream, spool)
                spool.reset()
            self.aside_used = False
        finally:
            # C calls only, one each: a second exception, thrown in here, comes after them.
            try:
                stream.give_back()
            finally:
                self._aside.extend(aside)

    def may_retry(self) -> bool:
        """Whether a flush is worth trying: always, but for a while after the file system refused one."""
        return not self._retry_at or time.monotonic() >= self._retry_at

    @property
    def patience_s(self) -> float:
        """How long a caller may wait for the lock: lock_timeout, but only once until a flush succeeds again."""
        if self._waited_in_vain or in_helper_thread():
            return 0.0  # a finalizer can emit from the helper's thread, which may have the lock that it would wait for
        return self._settings.lock_timeout

    def make_room(self, size: int) -> bool:
        """Flush until there is room, in the main spool for a line of ``size`` bytes; returns whether there is.

        Waits ``patience_s`` at most, or with ``on_full="block"`` retries for ``lock_timeout``.
        """
        started = time.monotonic()
        block = self._settings.on_full == "block"
        while True:
            if (block or self.may_retry()) and self.flush(self.patience_s):
                return (self.spool is not None and self.spool.takes(size)) or self.replace(size)
            left = started + self._settings.lock_timeout - time.monotonic()
            if not block or left <= 0:
                return False
            time.sleep(min(0.01, left))

    def drop(self) -> None:
        """Count a record that nothing has room for, by the reason why the last flush failed."""
        dropped, reason = self._counters.dropped, self._failure
        dropped[reason] = dropped.get(reason, 0) + 1
        diagnostics.warn(
            f"dropped:{reason}", f"{self._settings.dir}: an event was dropped because the spool is full: {reason}"
        )

    def rotate(self, timeout_s: float) -> SegmentName | None:
        """Flush, then seal the active segment; returns its name, None when nothing was in it.

        Raises:
            LockTimeout: Another process held the lock. Nothing was sealed.
            OSError: The flush failed. Nothing was sealed.
        """
        stream, spools = self._stream, self.spools()
        if not spools and not os.path.isdir(self._paths.state):
            return None  # nobody has written anything, and nothing is created
        try:
            stream.acquire(timeout_s, spools)
            for spool in spools:
                spool.check()
                commit.flush(stream, spool)
            return stream.seal()
        except BadSpool as reason:
            self._replace_damaged(reason)
            return self.rotate(timeout_s)
        finally:
            stream.give_back()

    # The main spool.

    def replace(self, capacity: int) -> bool:
        """Put a spool of that capacity in the place of the empty main one; returns whether there is one now."""
        elder = self.spool
        spool = self._create(max(capacity, self._settings.spool_bytes), framed=False)
        if spool is None:
            return False
        if spool.path is None and elder is not None and elder.path is None and elder.takes(capacity):
            spool.close()  # still no file to be had: the one in memory will do
            return True
        diagnostics.debug("new spool %s", spool.path or "in memory")
        self.spool = spool
        if elder is not None:
            elder.unlink()
            elder.close()
        return True

    def has_lost_a_file(self) -> bool:
        """Whether a spool has no file by which another process could find it: in memory, or somebody removed it."""
        return not all(spool.is_in_place() for spool in self.spools())

    def mind_its_file(self) -> None:
        """Replace the main spool if it is empty and has lost its file, or never had one."""
        spool = self.spool
        if spool is not None and not spool.unflushed and not spool.is_in_place():
            self.replace(self._settings.spool_bytes)

    def close(self) -> None:
        """Close everything. A spool that is empty is removed; one that is not stays for others to flush."""
        for spool in self.spools():
            if not spool.unflushed:
                spool.unlink()
        self.abandon()

    def descriptors(self) -> list[int]:
        """All that is open here."""
        return [*self._stream.descriptors(), *(spool.fd for spool in self.spools() if spool.fd >= 0)]

    def abandon(self) -> None:
        """Close everything and touch no file: in a forked child they are the parent's."""
        for spool in self.spools():
            spool.close()
        self.spool = None
        self._aside = []
        self._stream.close()

    def _create(self, capacity: int, *, framed: bool) -> Spool | None:
        """A spool on disk, or in memory when there cannot be one; None when there is no memory either."""
        try:
            self._paths.create()
            return Spool.create(self._paths.spools, capacity, self._settings.limits, framed=framed)
        except OSError as error:
            self._failure = _REASONS.get(error.errno or 0, "os_error")
            diagnostics.warn(
                "memory_spool",
                f"{self._paths.spools}: no spool can be created, so events are kept in memory, and die with their "
                f"process, until one can: {error}",
            )
        try:
            return Spool.in_memory(capacity, framed=framed)
        except OSError:
            return None

    def _replace_damaged(self, reason: BadSpool) -> None:
        """Somebody wrote into a spool: set it aside with whatever it holds, and go on with another."""
        for spool in self.spools():
            if spool.is_sound():
                continue
            if spool.path is not None:
                self._stream.set_aside(spool.path, reason)
            if spool is self.spool:
                self.spool = None
                self.replace(self._settings.spool_bytes)
            else:
                self._aside.remove(spool)
            spool.close()

    def _put_off(self, error: OSError) -> None:
        self._failure = _REASONS.get(error.errno or 0, "os_error")
        self._count_failure()
        self._retry_at = time.monotonic() + self._backoff
        self._backoff = min(self._backoff * 2, _LONGEST_BACKOFF_S)
        diagnostics.warn(
            f"flush:{self._failure}",
            f"{self._settings.dir}: a flush failed; its events wait in the spool and it is tried again: {error}",
        )

    def _count_failure(self) -> None:
        failures = self._counters.flush_failures
        failures[self._failure] = failures.get(self._failure, 0) + 1
