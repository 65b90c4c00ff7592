"""Which segment is active, how much of it counts, and is a flush under way?  The control file answers.

One 4 KiB map per stream, changed only by the holder of the directory lock (the heartbeat excepted)::

    word 0        magic and version
    word 1        selector: which of the two slots is current, 0 or 1
    word 2        intent: id of the spool whose flush is in progress, 0 for none
    word 3        heartbeat: CLOCK_MONOTONIC of the last tick, nanoseconds; written without the lock
    byte 512      slot 0      byte 1024      slot 1

    slot: word 0 generation, 1 opened_ns, 2 committed, 3 stamp_ns, 4 index, 5 name length, then the name (UTF-8)

A slot with an empty name is a generation whose segment is not open yet: its elder is sealed, and the next flush will
name it. Rotation fills the spare slot and then flips ``selector`` with one store, so there is no moment in between.
"""

from __future__ import annotations

import os
import stat
import sys
from typing import NamedTuple

from profilis_mp.sharedlog.names import SegmentName
from profilis_mp.sharedlog.ownership import Settle
from profilis_mp.sharedlog.words import WordMap, open_regular

__all__ = ["CONTROL_BYTES", "BadControl", "Control", "Position"]

CONTROL_BYTES = 4096
_MAGIC = int.from_bytes(b"pmpctl\x00\x01", sys.byteorder)
_SELECTOR, _INTENT, _HEARTBEAT = 1, 2, 3
_SLOT_WORDS = (512 // 8, 1024 // 8)
_GENERATION, _OPENED, _COMMITTED, _STAMP, _INDEX, _LENGTH, _NAME = range(7)
_NAME_BYTES = 512 - _NAME * 8
_LARGEST = 1 << 62


class Position(NamedTuple):
    """How far a log has come, as one look at its control file shows it.

    Attributes:
        identity: Device and inode of the control file.
        generation, name, committed, intent: As in :class:`Control`.
    """

    identity: tuple[int, int]
    generation: int
    name: str
    committed: int
    intent: int


class BadControl(Exception):
    """The control file is not one: garbage, cut short, or of another version. It is set aside, never trusted."""


class Control:
    """One process's map of the control file. Caller holds the directory lock, except for ``heartbeat_ns``."""

    _sound_name: bytes | None = None  # the last that was found to be one

    def __init__(self, path: str, *, readonly: bool = False) -> None:
        """Map an existing control file.

        Args:
            path: The file.
            readonly: Only to look at it, with no more than read permission; a store then raises TypeError.

        Raises:
            FileNotFoundError: There is none.
            BadControl: It cannot be trusted. The file is as it was.
        """
        self.path = path
        fd = open_regular(path, os.O_RDONLY if readonly else os.O_RDWR)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size < CONTROL_BYTES:
                raise BadControl(f"{status.st_size} bytes, expected {CONTROL_BYTES}")
            self._identity = (status.st_dev, status.st_ino)
            self._map = WordMap(fd, CONTROL_BYTES, CONTROL_BYTES, readonly=readonly)
        finally:
            os.close(fd)
        self._words = self._map.words
        self._bytes = self._map.view
        try:
            self.check()
        except BadControl:
            self.close()
            raise

    @classmethod
    def glance(cls, path: str) -> Control:
        """A copy of the control file as it was a moment ago, for whoever only looks: no lock, no map, nothing to close.

        Raises:
            OSError: There is none, or it is not ours to read.
            BadControl: It cannot be trusted.
        """
        fd = open_regular(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            while True:
                page, again = os.pread(fd, CONTROL_BYTES, 0), os.pread(fd, CONTROL_BYTES, 0)
                if len(page) < CONTROL_BYTES or len(again) < CONTROL_BYTES:
                    raise BadControl(f"{len(page)} bytes, expected {CONTROL_BYTES}")
                control, later = cls.__new__(cls), cls.__new__(cls)
                for one, copied in ((control, page), (later, again)):
                    one.path, one._bytes = path, memoryview(copied)
                    one._identity = (status.st_dev, status.st_ino)
                    one._words = one._bytes.cast("Q")
                # I5: a slot is filled while the other one is current, its generation first. If neither has changed
                # since, what was read in between is of one moment.
                if control._words[_SELECTOR] == later._words[_SELECTOR] and control.generation == later.generation:
                    break
        finally:
            os.close(fd)
        control.check()
        return control

    @staticmethod
    def create(path: str, mode: int, generation: int, elder: SegmentName | None, settle: Settle | None = None) -> None:
        """Write a fresh control file whose next segment is ``generation`` and named after ``elder``.

        Caller holds the directory lock. Complete, and ``settle`` done, before it has its name: a crash leaves none or a
        whole one.
        """
        page = memoryview(bytearray(CONTROL_BYTES))
        words = page.cast("Q")
        slot = _SLOT_WORDS[0]
        words[0] = _MAGIC
        words[slot + _GENERATION] = generation
        if elder is not None:
            words[slot + _STAMP] = elder.stamp_ns
            words[slot + _INDEX] = elder.number
        unfinished = f"{path}.new"
        try:
            os.unlink(unfinished)  # of somebody who was killed: root's could be removed, but not opened
        except FileNotFoundError:
            pass
        fd = open_regular(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            if settle is not None:
                settle(fd, True)
            rest = page
            while rest:
                rest = rest[os.write(fd, rest) :]
        finally:
            os.close(fd)
        os.rename(unfinished, path)

    def is_in_place(self) -> bool:
        """Is the file at ``path`` still this one, whole?  A map beyond the end of its file would be a SIGBUS."""
        try:
            status = os.lstat(self.path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity and status.st_size >= CONTROL_BYTES

    def close(self) -> None:
        self._map.close()

    # The slot that counts.

    @property
    def _slot(self) -> int:
        return _SLOT_WORDS[self._words[_SELECTOR] & 1]

    @property
    def generation(self) -> int:
        """The current segment's generation."""
        return self._words[self._slot + _GENERATION]

    @property
    def position(self) -> Position:
        """How far the log has come; each commit and each rotation changes it."""
        return Position(self._identity, self.generation, self.name, self.committed, self.intent)

    @property
    def opened_ns(self) -> int:
        """When the current segment was opened, nanoseconds since the epoch."""
        return self._words[self._slot + _OPENED]

    @property
    def committed(self) -> int:
        """Bytes of the current segment that count."""
        return self._words[self._slot + _COMMITTED]

    @committed.setter
    def committed(self, value: int) -> None:
        self._words[self._slot + _COMMITTED] = value

    @property
    def is_named(self) -> bool:
        """Whether the current generation's segment has a name, which it has from its opening on."""
        return self._words[self._slot + _LENGTH] != 0

    @property
    def name(self) -> str:
        """The current segment's file name; empty when it is not open yet."""
        start = (self._slot + _NAME) * 8
        return bytes(self._bytes[start : start + self._words[self._slot + _LENGTH]]).decode()

    @property
    def youngest(self) -> SegmentName | None:
        """What the next name must come after; None in a stream that never had a segment."""
        slot = self._slot
        stamp_ns, index = self._words[slot + _STAMP], self._words[slot + _INDEX]
        if not stamp_ns and not index and not self._words[slot + _LENGTH]:
            return None
        return SegmentName(stamp_ns, index, self.name)

    def advance(self, generation: int, opened_ns: int, name: SegmentName, *, sealed: bool = False) -> None:
        """Make ``generation`` the current one with one store.

        Args:
            generation: The new generation.
            opened_ns: When it was opened.
            name: Its segment's name, or with ``sealed`` the name that its own must come after.
            sealed: Only seal the elder; the new generation's segment is not open yet.
        """
        encoded = b"" if sealed else name.text.encode()
        words = self._words
        spare = 1 - (words[_SELECTOR] & 1)
        slot = _SLOT_WORDS[spare]
        words[slot + _GENERATION] = generation
        words[slot + _OPENED] = opened_ns
        words[slot + _COMMITTED] = 0
        words[slot + _STAMP] = name.stamp_ns
        words[slot + _INDEX] = name.number
        words[slot + _LENGTH] = len(encoded)
        start = (slot + _NAME) * 8
        self._bytes[start : start + len(encoded)] = encoded
        # I5: the spare slot is complete before the one store that makes it current.
        words[_SELECTOR] = spare

    # The flush in progress.

    @property
    def intent(self) -> int:
        """Id of the spool whose flush is in progress, 0 for none."""
        return self._words[_INTENT]

    @intent.setter
    def intent(self, spool_id: int) -> None:
        self._words[_INTENT] = spool_id

    # Advice.

    @property
    def heartbeat_ns(self) -> int:
        """When somebody last ticked, CLOCK_MONOTONIC nanoseconds. Advice: read and written without the lock."""
        return self._words[_HEARTBEAT]

    @heartbeat_ns.setter
    def heartbeat_ns(self, now_ns: int) -> None:
        self._words[_HEARTBEAT] = now_ns

    def check(self) -> None:
        """Refuse what no writer of this version leaves. Cheap: done at every acquire, for somebody may write into it.

        Raises:
            BadControl: Somebody has.
        """
        words = self._words
        slot = self._slot
        generation, _, committed, stamp_ns, number, length = words[slot : slot + _NAME]
        if words[0] != _MAGIC or words[_SELECTOR] > 1:
            raise BadControl("not a control file of this version")
        if not 0 < generation < _LARGEST or max(committed, stamp_ns, number) >= _LARGEST or length > _NAME_BYTES:
            raise BadControl(f"generation {generation}, committed {committed}, a name of {length} bytes")
        start = (slot + _NAME) * 8
        name = bytes(self._bytes[start : start + length])
        if name == self._sound_name:
            return
        if b"/" in name or b"\0" in name or name.startswith(b"."):
            raise BadControl(f"the name {name!r}")
        try:
            name.decode()
        except UnicodeDecodeError:
            raise BadControl(f"the name {name!r}") from None
        self._sound_name = name
