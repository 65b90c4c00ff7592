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
from collections.abc import Callable

from profilis_mp import diagnostics
from profilis_mp.errors import LockTimeout
from profilis_mp.sharedlog import commit
from profilis_mp.sharedlog.names import SegmentName
from profilis_mp.sharedlog.settings import Settings
from profilis_mp.sharedlog.spool import FRAME_BYTES, BadSpool, Spool
from profilis_mp.sharedlog.stream import Stream, StreamPaths
from profilis_mp.sharedlog.users import why_not
from profilis_mp.threads import is_serving

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


def _age(spool: Spool) -> int:
    return spool.created_ns


class Counters:
    """What happened to this process's records since it started, or was forked.

    Attributes:
        events: Records accepted, less those that the fast path will have counted: negative in a forked child, where
            the fast path has also counted the parent's.
        dropped: Records not written, by reason.
        flush_failures: Flushes that could not be done and were put off, by reason.
        flushes: Flushes done by this process for itself.
        aside: Records that went to a spool aside.
    """

    def __init__(self, events: int = 0) -> None:
        self.events = events
        self.dropped: dict[str, int] = {}
        self.flush_failures: dict[str, int] = {}
        self.flushes = 0
        self.aside = 0


class Outbox:
    """One process's spools.

    Attributes:
        spool: The main spool; None before the first record.
        aside_used: Whether a spool aside may hold records, which must go out before younger lines do.
        elders: Flushes what an earlier outbox of this process could not, and returns False when another process kept
            the directory lock; None when there is no such thing.
    """

    def __init__(self, paths: StreamPaths, settings: Settings, counters: Counters) -> None:
        self.spool: Spool | None = None
        self.aside_used = False
        self.elders: Callable[[float], bool] | None = None
        self._paths = paths
        self._settings = settings
        self._counters = counters
        self._stream = Stream(paths, settings)
        self._aside: list[Spool] = []
        self._made: list[Spool] = []  # all spools aside, those that somebody has off just now among them
        self._takers: set[object] = set()  # who has taken spools off _aside, and will put them back
        self._youngest_used = 0  # of the spools aside that were appended to since all were empty: when it was created
        self._zero_ns = time.time_ns() - time.monotonic_ns()  # ages must not depend on who steps the clock meanwhile
        self._first_ns: dict[None, int] = {}  # when the first spool was made; a dict, for its atomic setdefault
        self._failure = "spool_full"
        self._retry_at = 0.0
        self._backoff = _FIRST_BACKOFF_S
        self._waited_in_vain = False
        self._flushes_alone = False

    def spools(self) -> list[Spool]:
        """All of them, the main one first."""
        return [spool for spool in (self.spool, *self._aside) if spool is not None]

    # Aside.

    def append_aside(self, record: bytes) -> bool:
        """Append to a framed spool that nobody else uses right now; returns whether there was room.

        Needs no mutex: who takes the spools off has them alone, even from within an interrupted append.
        """
        taken: list[Spool] = []
        taker = object()
        fits = False
        try:
            self._takers.add(taker)
            self.aside_used = True
            while not fits and (not taken or self._aside):
                # In one step, which nothing can come between: nobody else has these now. Again, if some have come back
                # meanwhile (from a signal handler that interrupted this): the youngest may be among them.
                back, self._aside = self._aside, []
                taken.extend(back)
                taken.sort(key=_age)
                fits = self._append_behind(taken, record) or (not self._aside and self._append_anew(taken, record))
                if not taken:
                    break  # none could be made
        finally:
            try:
                self._aside.extend(taken)
            finally:
                self._takers.discard(taker)
        self._counters.aside += fits
        return fits

    def _append_behind(self, taken: list[Spool], record: bytes) -> bool:
        """Append to one of these, behind all that is in them, and in one that somebody else has off just now.

        Not into a gap before it: the order of records is the order of spools.
        """
        used = [number for number, spool in enumerate(taken) if spool.unflushed]
        for spool in taken[used[-1] if used else 0 :]:
            if spool.created_ns >= self._youngest_used and spool.append(record):
                self._used(spool)
                return True
        return False

    def _append_anew(self, taken: list[Spool], record: bytes) -> bool:
        """Append to another spool, unless too much waits in these; it is one of them then."""
        if sum(spool.unflushed for spool in taken) >= self._settings.spool_bytes:
            return False
        another = self._create(max(_ASIDE_BYTES, len(record) + FRAME_BYTES), framed=True)
        if another is None:
            return False
        self._made.append(another)
        taken.append(another)
        fits = another.append(record)
        self._used(another)
        return fits

    def _used(self, spool: Spool) -> None:
        if spool.created_ns > self._youngest_used:  # no call in between: another thread may have used a younger one
            self._youngest_used = spool.created_ns

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
        if len(self._aside) > 1:
            self._remove_empty()
        return True

    def _flush_elders(self, timeout_s: float) -> None:
        if self.elders is not None:
            if not self.elders(timeout_s):
                raise LockTimeout(self._paths.lock, timeout_s)
            self.elders = None

    def _remove_empty(self) -> None:
        """Remove the spools aside that are empty, but one: each is two descriptors, and threads that meet make many."""
        taken: list[Spool] = []
        taker = object()
        try:
            self._takers.add(taker)
            taken, self._aside = self._aside, []
            taken.sort(key=_age)
            for spool in taken[:-1]:
                if not spool.unflushed:
                    taken.remove(spool)
                    self._made.remove(spool)
                    spool.unlink()
                    spool.close()
        finally:
            try:
                self._aside.extend(taken)
            finally:
                self._takers.discard(taker)

    def _flush(self, timeout_s: float) -> bool:
        """Flush once; returns False where somebody has spools off, so that not all could be flushed."""
        stream = self._stream
        aside: list[Spool] = []
        try:
            aside, self._aside = self._aside, []
            aside.sort(key=_age)
            # Somebody may have some of them off just now, with elder records in them than there are in the others, but
            # not than in the main spool, which takes none while aside_used. So only that goes now.
            own = [] if self.spool is None else [self.spool]
            spools = own if self._takers else [*own, *aside]
            stream.acquire(timeout_s, [*own, *aside])
            for spool in spools:
                spool.check()
                commit.flush(stream, spool)
                spool.reset()
            # No call, so nobody comes between: who puts something aside meanwhile is, or was, a taker.
            self.aside_used = not (not self._takers and not self._aside and not (aside and spools is own))
            if not self.aside_used:
                self._youngest_used = 0
            return spools is not own or not self.aside_used
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
        dropped, reason = self._counters.dropped, self._failure
        dropped.setdefault(reason, 0)
        dropped[reason] += 1  # without a call in between: threads that cannot get in count here, too
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

    def is_nobody_elses(self) -> bool:
        """Whether no other process could flush a spool: it is in memory, somebody removed its file, or it is another
        user's than the stream, whose helpers may not open it."""
        spools = self.spools()
        return not all(spool.is_in_place() for spool in spools) or (self._flushes_alone and self.unflushed() > 0)

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
        # Off in one step each, as for `append_aside`: nobody appends to what is removed here, nor closes it as well.
        own, self.spool = self.spool, None
        aside, self._aside = self._aside, []
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
        dropped = self._counters.dropped
        dropped.setdefault("no_spool_file", 0)
        dropped["no_spool_file"] += number
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
        self._aside = []
        self._stream.close()

    def _all(self) -> list[Spool]:
        return self._made if self.spool is None else [self.spool, *self._made]

    def _create(self, capacity: int, *, framed: bool) -> Spool | None:
        """A spool on disk, or in memory when there cannot be one; None when there is no memory either."""
        access, troubles = self._settings.access, list[str]()
        now_ns = self._zero_ns + time.monotonic_ns()
        # Whoever flushes goes by age. The main spool comes first, whenever it was made or replaced: it takes nothing
        # while there is anything aside.
        first_ns = self._first_ns.setdefault(None, now_ns)
        created_ns = now_ns if framed else first_ns - 1

        def settle(fd: int, made: bool) -> None:
            trouble = access.settle(fd, access.private_mode, self._paths.state, made=made)
            if trouble:
                troubles.append(trouble)

        def make() -> Spool:
            user = os.stat(self._paths.spools).st_uid
            spool = Spool.create(
                self._paths.spools,
                capacity,
                self._settings.limits,
                framed=framed,
                created_ns=created_ns,
                mode=access.private_mode,
                settle=settle,
            )
            self._flushes_alone = user != os.fstat(spool.fd).st_uid and access.private_mode == 0o600
            return spool

        try:
            return self._paths.create(access, make, troubles)
        except OSError as error:
            self._failure = _REASONS.get(error.errno or 0, "os_error")
            diagnostics.warn(
                "memory_spool",
                f"{self._paths.spools}: no spool can be created, so events are kept in memory, and die with their "
                f"process, until one can: {_explained(error)}",
            )
        finally:
            for trouble in troubles:
                diagnostics.warn("owner", trouble)
        try:
            return Spool.in_memory(capacity, framed=framed, created_ns=created_ns)
        except OSError:
            return None

    def _replace_damaged(self, reason: BadSpool) -> None:
        """Somebody wrote into a spool: set it aside with whatever it holds, and go on with another."""
        for spool in self.spools():
            if spool.is_sound():
                continue
            if spool is not self.spool:
                try:
                    self._aside.remove(spool)
                except ValueError:
                    continue  # another thread has it off just now: the next flush finds it
                self._made.remove(spool)
            if spool.path is not None:
                self._stream.set_aside(spool.path, reason)
            if spool is self.spool:
                self.spool = None
                self.replace(self._settings.spool_bytes)
            spool.close()

    def _put_off(self, error: OSError) -> None:
        self._failure = _REASONS.get(error.errno or 0, "os_error")
        self._count_failure()
        self._retry_at = time.monotonic() + self._backoff
        self._backoff = min(self._backoff * 2, _LONGEST_BACKOFF_S)
        diagnostics.warn(
            f"flush:{self._failure}",
            f"{self._settings.dir}: a flush failed; its events wait in the spool and it is tried again: "
            f"{_explained(error)}",
        )

    def _count_failure(self) -> None:
        failures = self._counters.flush_failures
        failures[self._failure] = failures.get(self._failure, 0) + 1


def _explained(error: OSError) -> str:
    """The error, and of a permission that is missing also whose what is."""
    if isinstance(error, PermissionError) and isinstance(error.filename, str):
        return f"{error}; {why_not(error.filename)}"
    return str(error)
