"""What has this process emitted that is in no segment yet, and how does it get there?

An outbox owns a process's spools: the main one for lines, and framed ones aside (opaque records, and records that
interrupted another's append). It flushes them, keeps count of why a flush failed and when to try again, and replaces
a spool that is too small, damaged, or has lost its file. Everything but ``append_aside`` is for the holder of the
session's mutex only: the directory lock belongs to a descriptor, and two flushes through one would not exclude
each other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial

from profilis_mp import diagnostics
from profilis_mp.errors import LockTimeout
from profilis_mp.sharedlog import commit
from profilis_mp.sharedlog.aside import Aside, age
from profilis_mp.sharedlog.counters import Counters
from profilis_mp.sharedlog.names import SegmentName
from profilis_mp.sharedlog.settings import Settings
from profilis_mp.sharedlog.spool import BadSpool, Spool
from profilis_mp.sharedlog.stream import Stream, StreamPaths
from profilis_mp.sharedlog.supply import Supply, explained
from profilis_mp.threads import is_serving

__all__ = ["Outbox"]

_FIRST_BACKOFF_S = 0.05
_LONGEST_BACKOFF_S = 1.0


class Outbox:
    """One process's spools.

    Attributes:
        spool: The main spool; None before the first record.
        aside: The others.
        elders: Flushes what an earlier outbox of this process could not, and returns False when another process kept
            the directory lock; None when there is no such thing.
    """

    def __init__(self, paths: StreamPaths, settings: Settings, counters: Counters) -> None:
        self._supply = Supply(paths, settings, counters)
        self.spool: Spool | None = None
        self.aside = Aside(partial(self._supply.create, framed=True), settings.spool_bytes)
        self.elders: Callable[[float], bool] | None = None
        self._paths = paths
        self._settings = settings
        self._counters = counters
        self._stream = Stream(paths, settings)
        self._retry_at = 0.0
        self._backoff = _FIRST_BACKOFF_S
        self._waited_in_vain = False

    def spools(self) -> list[Spool]:
        """All of them, the main one first."""
        return [spool for spool in (self.spool, *self.aside.ready) if spool is not None]

    def append_line(self, record: bytes) -> bool:
        """Append to the main spool; returns whether there was room."""
        return self.spool is not None and self.spool.append(record)

    def unflushed(self) -> int:
        """Bytes in all spools."""
        return sum(spool.unflushed for spool in self.spools())

    def append_aside(self, record: bytes) -> bool:
        """Append to a spool aside; returns whether there was room. Needs no mutex: see `Aside`."""
        fits = self.aside.append(record)
        self._counters.aside += fits
        return fits

    # Flushing.

    def flush(self, timeout_s: float) -> bool:
        """Flush all spools and start them again at the front; returns whether all are empty now. Raises nothing.

        A flush that fails leaves every record where it is. With ``timeout_s`` 0 a busy lock is no failure.
        """
        stream = self._stream
        deadline = time.monotonic() + timeout_s
        try:
            self._flush_elders(timeout_s)
            while True:
                try:
                    complete = self._flush(timeout_s)
                except FileNotFoundError:
                    # Somebody removed the directory in the middle of it: once more, in a new one.
                    stream.close()
                    complete = self._flush(timeout_s)
                if complete:
                    break
                if time.monotonic() >= deadline:
                    return False
                time.sleep(50e-6)
        except LockTimeout:
            self._counters.reason = "lock_timeout"
            if timeout_s:
                self._waited_in_vain = True
                self._counters.count_failure()
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
        if len(self.aside.ready) > 1:
            self.aside.remove_empty()
        return True

    def _flush_elders(self, timeout_s: float) -> None:
        if self.elders is not None:
            if not self.elders(timeout_s):
                raise LockTimeout(self._paths.lock, timeout_s)
            self.elders = None

    def _flush(self, timeout_s: float) -> bool:
        """Flush once; returns False where somebody has spools off, so that not all could be flushed."""
        stream, aside = self._stream, self.aside
        taken: list[Spool] = []
        try:
            taken, aside.ready = aside.ready, []
            taken.sort(key=age)
            # Somebody may have some of them off just now, with elder records in them than there are in the others, but
            # not than in the main spool, which takes none while aside.used. So only that goes now.
            own = [] if self.spool is None else [self.spool]
            spools = own if aside.takers else [*own, *taken]
            stream.acquire(timeout_s, [*own, *taken])
            for spool in spools:
                spool.check()
                commit.flush(stream, spool)
                spool.reset()
            # No call, so nobody comes between: who puts something aside meanwhile is, or was, a taker.
            aside.used = not (not aside.takers and not aside.ready and not (taken and spools is own))
            if not aside.used:
                aside.youngest_used = 0
            return spools is not own or not aside.used
        finally:
            # C calls only, one each: a second exception, thrown in here, comes after them.
            try:
                stream.give_back()
            finally:
                aside.ready.extend(taken)

    def may_retry(self) -> bool:
        """Whether a flush is worth trying: always, but for a while after the file system refused one."""
        return not self._retry_at or time.monotonic() >= self._retry_at

    @property
    def patience_s(self) -> float:
        """How long a caller may wait for the lock: lock_timeout, but only once until a flush succeeds again."""
        if self._waited_in_vain or is_serving():
            return 0.0
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
        reason = self._counters.reason
        self._counters.count_dropped(reason)
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
        self._flush_elders(timeout_s)
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
        spool = self._supply.create(max(capacity, self._settings.spool_bytes), framed=False)
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

    def is_nobody_elses(self) -> bool:
        """Whether no other process could flush a spool: it is in memory, somebody removed its file, or it is another
        user's than the stream, whose helpers may not open it."""
        spools = self.spools()
        return not all(spool.is_in_place() for spool in spools) or (self._supply.flushes_alone and self.unflushed() > 0)

    def mind_its_file(self) -> None:
        """Replace the main spool if it is empty and has lost its file, or never had one."""
        spool = self.spool
        if spool is not None and not spool.unflushed and not spool.is_in_place():
            self.replace(self._settings.spool_bytes)

    def keeps_a_removed_segment(self) -> bool:
        """Whether it keeps a segment open, and its space taken, that is gone."""
        return self._stream.keeps_a_removed_segment()

    def let_go(self) -> None:
        """Close that."""
        self._stream.let_go()

    def close(self) -> None:
        """Close everything. A spool that is empty is removed; one that is not stays for others to flush.

        Who has spools aside off meanwhile calls this again, once they are back.
        """
        # Off in one step each, as `Aside` says: nobody appends to what is removed here, nor closes it as well.
        own, self.spool = self.spool, None
        others = self.aside
        aside, others.ready = others.ready, []
        for spool in aside if own is None else [own, *aside]:
            if not spool.unflushed:
                spool.unlink()
            elif not spool.outlives_its_process():
                self._give_up(spool)
            spool.close()
        self._stream.close()

    def _give_up(self, spool: Spool) -> None:
        """Count the records of a spool that has no file, or lost it: nobody can flush them later."""
        try:
            records = list(spool.copy(spool.head, spool.tail))
        except BadSpool:
            records = []
        number = len(records) if spool.framed else sum(record.count(b"\n") for record in records)
        self._counters.count_dropped("no_spool_file", number)
        self._counters.events -= number
        diagnostics.warn(
            "dropped:no_spool_file",
            f"{self._settings.dir}: {number} events were dropped at close: not flushed, and in no file",
        )

    def descriptors(self) -> list[int]:
        """All that is open here."""
        return [*self._stream.descriptors(), *(spool.fd for spool in self._all() if spool.fd >= 0)]

    def abandon(self) -> None:
        """Close everything and touch no file: in a forked child they are the parent's."""
        # Those too that a thread of the parent's had off, or a frame has to which this process will return: it would
        # write into its parent's spool.
        for spool in self._all():
            spool.close()
        self.spool = None
        self.aside.ready = []
        self._stream.close()

    def _all(self) -> list[Spool]:
        return self.aside.made if self.spool is None else [self.spool, *self.aside.made]

    def _replace_damaged(self, reason: BadSpool) -> None:
        """Somebody wrote into a spool: set it aside with whatever it holds, and go on with another."""
        for spool in self.spools():
            if spool.is_sound():
                continue
            if spool is not self.spool:
                try:
                    self.aside.ready.remove(spool)
                except ValueError:
                    continue  # another thread has it off just now: the next flush finds it
                self.aside.made.remove(spool)
            if spool.path is not None:
                self._stream.set_aside(spool.path, reason)
            if spool is self.spool:
                self.spool = None
                self.replace(self._settings.spool_bytes)
            spool.close()

    def _put_off(self, error: OSError) -> None:
        self._counters.blame(error)
        self._counters.count_failure()
        self._retry_at = time.monotonic() + self._backoff
        self._backoff = min(self._backoff * 2, _LONGEST_BACKOFF_S)
        diagnostics.warn(
            f"flush:{self._counters.reason}",
            f"{self._settings.dir}: a flush failed; its events wait in the spool and it is tried again: "
            f"{explained(error)}",
        )
