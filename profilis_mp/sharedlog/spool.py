"""Where is an event between ``emit`` and its segment?  In its process's spool, which ``kill -9`` leaves behind.

A spool is one mapped, preallocated file that one process writes and anybody may flush::

    word 0     magic and version            word 8      tail          (only the owner stores it)
    word 1     framing: 0 lines, 1 framed   word 16     head          (only under the directory lock)
    word 2     owner's pid, for people      word 17     flush_to      (only under the directory lock)
    word 3     creation time, ns            word 18     expected_end  (only under the directory lock)
    words 4-7  the owner's limits
    byte 4096  data: what is not flushed yet lies in the file from head to tail; tail < head means empty

tail, head and flush_to are offsets in the file; an empty spool starts again with all of them at 4096.

The owner holds a lock on the file for its whole life, so "is it dead?" is one try of that lock: pids are reused, and
mean nothing in another container. A spool gets its name only once it is locked and complete.

Lines may be cut apart at any newline. Opaque records (anything that is not exactly one newline-terminated line) have
no such boundary: they go to a framed spool, where each is preceded by its length, one native u64.

tail and head sit on cache lines of their own: the owner's core would otherwise lose the line at every helper's look.
"""

from __future__ import annotations

import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from profilis_mp.sharedlog.lock import try_lock
from profilis_mp.sharedlog.ownership import Settle
from profilis_mp.sharedlog.words import OrderedWords, WordMap, open_regular, preallocate, store_fence

__all__ = ["FRAME_BYTES", "HEADER_BYTES", "TAIL", "UNFINISHED", "BadSpool", "Limits", "Spool", "spool_id_of"]

HEADER_BYTES = 4096
FRAME_BYTES = 8
UNFINISHED = ".new"
_MAGIC = int.from_bytes(b"pmpspl\x00\x01", sys.byteorder)
_FRAMED, _PID, _CREATED, _LIMITS = 1, 2, 3, 4
TAIL, _HEAD, _FLUSH_TO, _EXPECTED_END = 8, 16, 17, 18


class BadSpool(Exception):
    """The file is no spool: garbage, cut short, or of another version. It is set aside, never trusted."""


class Limits(NamedTuple):
    """What recovery must know of a dead writer's settings: ``local_time`` is 0 or 1, the rest as in Settings."""

    rotate_bytes: int
    rotate_ns: int
    file_mode: int
    local_time: int


class Spool:
    """One spool, its owner's or a helper's view of it.

    Attributes:
        id: Non-zero u64; the file is named by its 16 hexadecimal digits.
        path: The file; None for a spool in memory, which nobody else can flush.
        words: The header's words.
        ordered: The same, for the owner to store ``ordered[TAIL]``, which makes a record visible.
        bytes: The map, for the owner to copy records into.
        size: Its length, and the file's.
        fd: The descriptor that the lifetime lock is on; -1 for a spool in memory.
        created_ns: When it was created; spools of one process are flushed in this order.
        framed: Whether each record is preceded by its length.
    """

    def __init__(self, fd: int, size: int, spool_id: int, path: str | None, *, readonly: bool = False) -> None:
        self.fd = fd
        self._map = WordMap(fd, size, HEADER_BYTES, readonly=readonly)
        self.words = self._map.words
        self.ordered = self.words if store_fence is None else OrderedWords(self.words, store_fence)
        self.bytes = self._map.bytes
        self.size = size
        self.id = spool_id
        self.path = path
        status = os.fstat(fd) if fd >= 0 else None
        self._identity = (status.st_dev, status.st_ino) if status is not None else None
        self.framed = bool(self.words[_FRAMED])
        self.created_ns: int = self.words[_CREATED]

    @classmethod
    def create(
        cls,
        directory: str,
        capacity: int,
        limits: Limits,
        *,
        framed: bool,
        created_ns: int | None = None,
        mode: int = 0o600,
        settle: Settle | None = None,
    ) -> Spool:
        """Create, lock and preallocate this process's spool; it has its owner and mode before it has its name.

        Raises:
            OSError: No space, no permission, no descriptor. Nothing is left behind but perhaps an unlocked ``.new``.
        """
        spool_id = _new_id()
        path = f"{directory}/{spool_id:016x}"
        unfinished = f"{path}{UNFINISHED}"
        fd = open_regular(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        try:
            if not try_lock(fd):
                raise FileNotFoundError(unfinished)  # somebody takes it for a dead process's and is removing it
            if settle is not None:
                settle(fd, True)
            preallocate(fd, HEADER_BYTES + capacity)
            spool = cls(fd, HEADER_BYTES + capacity, spool_id, path)
            spool._initialise(framed, created_ns)
            for offset, value in enumerate(limits):
                spool.words[_LIMITS + offset] = value
            os.rename(unfinished, path)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, FileNotFoundError):
                # It was taken for a dead process's.
                return cls.create(
                    directory, capacity, limits, framed=framed, created_ns=created_ns, mode=mode, settle=settle
                )
            try:
                os.unlink(unfinished)
            except OSError:
                pass
            raise
        return spool

    @classmethod
    def in_memory(cls, capacity: int, *, framed: bool, created_ns: int | None = None) -> Spool:
        """A spool without a file, for when none can be created: it dies with its process."""
        spool = cls(-1, HEADER_BYTES + capacity, _new_id(), None)
        spool._initialise(framed, created_ns)
        return spool

    @classmethod
    def open(cls, path: str, *, readonly: bool = False) -> Spool:
        """Open another's spool.

        Args:
            path: The file.
            readonly: Only to look at it; a store then raises TypeError.

        Raises:
            OSError: It is gone, or not ours to read.
            BadSpool: It cannot be trusted. The file is as it was.
        """
        fd = open_regular(path, os.O_RDONLY if readonly else os.O_RDWR)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size <= HEADER_BYTES:
                raise BadSpool(f"{status.st_size} bytes")
            spool = cls(fd, status.st_size, spool_id_of(path) or 0, path, readonly=readonly)
            try:
                spool.check()
                spool._check_limits()
            except BadSpool:
                spool._map.close()
                raise
        except BaseException:
            os.close(fd)
            raise
        return spool

    @classmethod
    def glance(cls, path: str) -> Spool:
        """A copy of another's header, for whoever only looks: its words and what derives from them, no data, no map.

        Raises:
            OSError: It is gone, or not ours to read.
            BadSpool: It cannot be trusted.
        """
        fd = open_regular(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status, header = os.fstat(fd), os.pread(fd, HEADER_BYTES, 0)
        finally:
            os.close(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size <= HEADER_BYTES:
            raise BadSpool(f"{status.st_size} bytes")
        spool = cls.__new__(cls)
        spool.words = memoryview(header).cast("Q")
        spool.fd, spool.size, spool.id, spool.path = -1, status.st_size, spool_id_of(path) or 0, path
        spool.framed, spool.created_ns = bool(spool.words[_FRAMED]), spool.words[_CREATED]
        spool.check()
        spool._check_limits()
        return spool

    def _initialise(self, framed: bool, created_ns: int | None) -> None:
        words = self.words
        words[_FRAMED] = self.framed = framed
        words[_PID] = os.getpid()
        words[_CREATED] = self.created_ns = time.time_ns() if created_ns is None else created_ns
        words[TAIL] = words[_HEAD] = words[_FLUSH_TO] = HEADER_BYTES
        words[0] = _MAGIC

    def check(self) -> None:
        """Refuse what no spool of this version can hold.

        Raises:
            BadSpool: Somebody wrote into it.
        """
        words = self.words
        if words[0] != _MAGIC or words[_FRAMED] > 1:
            raise BadSpool("not a spool of this version")
        positions = (words[TAIL], words[_HEAD], words[_FLUSH_TO])
        if min(positions) < HEADER_BYTES or max(positions) > self.size or words[_EXPECTED_END] >= 1 << 62:
            raise BadSpool(f"positions {positions} in a file of {self.size} bytes")

    def is_sound(self) -> bool:
        """Whether what is in it can be flushed: positions within the file, each frame within tail."""
        try:
            self.check()
            end = self.head
            while self.framed and end < self.tail:
                end = self._frame_end(end)
        except BadSpool:
            return False
        return True

    def _frame_end(self, start: int) -> int:
        end = start + FRAME_BYTES + int.from_bytes(self._map.view[start : start + FRAME_BYTES], sys.byteorder)
        if end > self.tail:
            raise BadSpool(f"a record from {start} to {end}, beyond the tail {self.tail}")
        return end

    def _check_limits(self) -> None:
        """As Settings checks them: recovery would otherwise trip over what it adopts."""
        rotate_bytes, rotate_ns, file_mode, local_time = self.limits
        if not (0 < rotate_bytes < 1 << 62 and rotate_ns > 0 and 0o600 <= file_mode <= 0o777 and local_time <= 1):
            raise BadSpool(f"{self.limits}")
        if file_mode & 0o600 != 0o600:
            raise BadSpool(f"{self.limits}")

    @property
    def limits(self) -> Limits:
        """The owner's limits, as it left them for whoever flushes the spool after its death."""
        return Limits(*self.words[_LIMITS : _LIMITS + 4])

    @property
    def pid(self) -> int:
        """The owner's, for people: it means something only where the owner ran."""
        return self.words[_PID]

    # What is in it.

    @property
    def tail(self) -> int:
        """End of the last complete record."""
        return self.words[TAIL]

    @property
    def used(self) -> int:
        """Bytes that the owner gets back by flushing and starting at the front again, flushed ones included."""
        return self.words[TAIL] - HEADER_BYTES

    @property
    def unflushed(self) -> int:
        """Bytes waiting to be flushed, frames included."""
        return max(0, self.words[TAIL] - self.words[_HEAD])

    @property
    def head(self) -> int:
        """Start of the first record that is not flushed. Caller holds the directory lock to change it."""
        return self.words[_HEAD]

    @head.setter
    def head(self, value: int) -> None:
        self.words[_HEAD] = value

    def takes(self, size: int) -> bool:
        """Whether a record of ``size`` bytes fits into the spool when it is empty."""
        return HEADER_BYTES + self.frame_bytes + size <= self.size

    @property
    def flush_to(self) -> int:
        """Where the batch of the flush in progress ends. Caller holds the directory lock."""
        return self.words[_FLUSH_TO]

    @flush_to.setter
    def flush_to(self, value: int) -> None:
        self.words[_FLUSH_TO] = value

    @property
    def expected_end(self) -> int:
        """The segment's length once the flush in progress is committed. Caller holds the directory lock."""
        return self.words[_EXPECTED_END]

    @expected_end.setter
    def expected_end(self, value: int) -> None:
        self.words[_EXPECTED_END] = value

    @property
    def frame_bytes(self) -> int:
        """What precedes a batch in the spool and not in the segment."""
        return FRAME_BYTES if self.framed else 0

    @property
    def batch(self) -> memoryview:
        """The bytes of the flush in progress: data[head:flush_to], without the frame of a framed record."""
        return self._map.view[self.head + self.frame_bytes : self.flush_to]

    def copy(self, start: int, end: int) -> Iterator[bytes]:
        """The records from ``start`` to ``end`` without their frames; for looking at what is not flushed.

        Raises:
            BadSpool: A frame goes beyond the tail.
        """
        if store_fence is not None:
            store_fence()  # as in next_batch_end
        while self.framed and start < end:
            following = self._frame_end(start)
            yield bytes(self._map.view[start + FRAME_BYTES : following])
            start = following
        if start < end:
            yield bytes(self._map.view[start:end])

    def next_batch_end(self, room: int) -> int:
        """Where to cut the next batch so that it has at most ``room`` bytes, or one record if that alone has more.

        Caller holds the directory lock and has seen that the spool is not empty.
        """
        head, tail = self.head, self.tail
        if store_fence is not None:
            store_fence()  # the record's bytes must not be read before the tail that covers them
        if self.framed:
            return self._frame_end(head)
        if tail - head <= room:
            return tail
        # The last newline within the room; if there is none, the first one beyond it.
        within = bytes(self._map.view[head : head + max(room, 0)]).rfind(b"\n")
        if within >= 0:
            return head + within + 1
        step = 1 << 16
        for start in range(head + max(room, 0), tail, step):
            found = bytes(self._map.view[start : min(start + step, tail)]).find(b"\n")
            if found >= 0:
                return start + found + 1
        return tail

    # What the owner does.

    def append(self, record: bytes) -> bool:
        """Copy one record behind the tail; returns whether it fitted. Caller is the owner's one writing thread."""
        tail = self.words[TAIL]
        start = tail + self.frame_bytes
        end = start + len(record)
        if end > self.size:
            return False
        if self.framed:
            self.bytes[tail:start] = len(record).to_bytes(FRAME_BYTES, sys.byteorder)
        self.bytes[start:end] = record
        # I3: data before tail. A helper that sees the new tail must find the record complete.
        self.ordered[TAIL] = end
        return True

    def reset(self) -> None:
        """Start again at the front. Caller is the owner, holds the directory lock, and the spool is empty."""
        # I6: tail first. Between the two stores tail < head, which means empty; the other way round,
        # everything before tail would for a moment be unflushed once more.
        self.words[TAIL] = HEADER_BYTES
        self.words[_HEAD] = HEADER_BYTES

    # Its life.

    @staticmethod
    def remove_unfinished(path: str) -> None:
        """Remove a spool whose owner died while creating it; it never held a record."""
        try:
            fd = open_regular(path, os.O_RDWR)
        except OSError:
            return
        try:
            if try_lock(fd):
                os.unlink(path)
        except OSError:
            pass
        finally:
            os.close(fd)

    def outlives_its_process(self) -> bool:
        """Whether there is a file, under whatever name, for others to flush."""
        return self.path is not None and os.fstat(self.fd).st_nlink > 0

    def is_in_place(self) -> bool:
        """Does the file still have its name and its length?  A store beyond its end would be a SIGBUS."""
        if self.path is None:
            return False
        try:
            status = os.lstat(self.path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity and status.st_size >= self.size

    def owner_is_dead(self) -> bool:
        """Whether the lifetime lock was free; from then on this view holds it, so that one process drains."""
        return try_lock(self.fd)

    def close(self) -> None:
        """Unmap and close; the file stays. Twice is once: by then the descriptor's number may be somebody else's."""
        fd, self.fd = self.fd, -1
        self._map.close()
        if fd >= 0:
            os.close(fd)

    def unlink(self) -> bool:
        """Remove the file, if that can be done; returns whether. Caller holds the lifetime lock; the spool is empty."""
        if self.path is not None:
            try:
                os.unlink(self.path)
            except OSError:
                return False  # gone already, or not ours to remove; an empty one does no harm
        return True


def _new_id() -> int:
    # urandom, not random: a fork that ran no hooks would repeat its parent's numbers.
    return int.from_bytes(os.urandom(8), "big") | 1


def spool_id_of(path: str) -> int | None:
    """The id in a spool's file name; None for a name that is not a spool's."""
    name = path.rpartition("/")[2]
    return int(name, 16) or None if re.fullmatch(r"[0-9a-f]{16}", name) else None
