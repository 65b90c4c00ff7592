"""What is emitted and in no segment yet, and where exactly do the segments end for it?

An event is in a spool or in a segment (I1), and moves from one to the other at a commit. Reading first the one and then
the other would show an event twice, or never, when it moves meanwhile. So all is looked at between two looks at the
control file, and only a look at which nothing moved counts:

* no commit and no rotation: the position in the control file is the same before and after;
* no ``head`` moved, no spool was reset: each head is the same before and after its bytes were copied, and what lies
  between head and tail does not change while head stays;
* a flush in progress, or one whose process died, is either committed already (``committed == expected_end``), then its
  batch ends where ``head`` will be, or is not, then its bytes in the segment lie behind ``committed`` and do not count.

Nothing is locked for that at first. Where many processes flush all the time, no look may ever succeed; then the
directory lock is taken for one look, so that they pause. It is not needed to finish anything: whoever holds it for long
(stopped, say) moves nothing either. Nothing is written, so read permission is enough, and a process that is stopped or
dead, and its spool, stay as they are.

Not seen: a spool in memory, which a process keeps when no file can be had.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES
from typing import IO

from profilis_mp.errors import LockTimeout, LogDirectoryError
from profilis_mp.reader.listing import SegmentListing
from profilis_mp.reader.report import ReadReport
from profilis_mp.sharedlog.control import BadControl, Control, Position
from profilis_mp.sharedlog.lock import try_lock
from profilis_mp.sharedlog.names import SegmentNames
from profilis_mp.sharedlog.spool import BadSpool, Spool, spool_id_of
from profilis_mp.sharedlog.stream import StreamPaths
from profilis_mp.sharedlog.words import open_regular

__all__ = ["Picture", "take_picture"]

_FREE_LOOKS = 20
_LOCKED_LOOKS = 5
_LOCK_TIMEOUT_S = 5.0
_IN_MEMORY_BYTES = 4 * 1024 * 1024  # of copied spools; more goes to a temporary file


class _Moved(Exception):
    """Something moved during the look."""


class Picture:
    """A stream at one moment.

    Attributes:
        listing: Its segments.
        active: The active segment's name; empty when there is none.
        committed: Bytes of it that count.
        unflushed: What was in no segment: records without frames, those of one spool after those of the other.
    """

    def __init__(self, listing: SegmentListing, position: Position | None, unflushed: IO[bytes]) -> None:
        self.listing = listing
        self.active = position.name if position is not None else ""
        self.committed = position.committed if position is not None else 0
        self.unflushed = unflushed


def take_picture(log: str, names: SegmentNames, report: ReadReport) -> Picture:
    """See which events are in the log at this moment, and which are in spools.

    Raises:
        LogDirectoryError: The spools may not be read by this user.
        LockTimeout: Others flush without a pause and do not let go of the directory lock either.
        OSError: The directory cannot be listed; no space for the copy.
    """
    paths = StreamPaths(log, names.stream)
    for _ in range(_FREE_LOOKS):
        try:
            return _look(paths, names, report)
        except _Moved:
            pass
    with _directory_lock(paths.lock):
        for _ in range(_LOCKED_LOOKS):
            try:
                return _look(paths, names, report)
            except _Moved:
                pass
    raise LockTimeout(paths.lock, _LOCK_TIMEOUT_S)


def _look(paths: StreamPaths, names: SegmentNames, report: ReadReport) -> Picture:
    try:
        control = Control(paths.control, readonly=True)
    except FileNotFoundError:
        control = None  # nothing was ever flushed
    except BadControl:
        raise _Moved from None
    except PermissionError as error:
        raise LogDirectoryError(paths.control, EACCES, "unflushed=True needs to read the state directory") from error
    copy: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115  the reader closes it
    try:
        before = _position(paths, control)
        listing = SegmentListing(paths.log, names)
        # The slow part was the listing; commits that came before this one do not matter, rotations do.
        start = _position(paths, control)
        if _segment_of(before) != _segment_of(start) or _is_missing(paths, listing, start):
            raise _Moved
        damaged = _copy_spools(paths, start, copy)
        if _position(paths, control) != start:
            raise _Moved
    except BaseException:
        copy.close()
        raise
    finally:
        if control is not None:
            control.close()
    for text in damaged:
        report.damaged_spools += 1
        report.find(text)
    copy.seek(0)
    return Picture(listing, start, copy)


def _position(paths: StreamPaths, control: Control | None) -> Position | None:
    if control is None:
        if os.path.lexists(paths.control):
            raise _Moved
        return None
    try:
        if not control.is_in_place():
            raise _Moved
        control.check()
        position = control.position
    except (BadControl, UnicodeDecodeError):
        raise _Moved from None
    return position


def _segment_of(position: Position | None) -> tuple[int, str] | None:
    return (position.generation, position.name) if position is not None else None


def _is_missing(paths: StreamPaths, listing: SegmentListing, position: Position | None) -> bool:
    """Whether the active segment, which has its name before its file, was created only in the middle of the listing."""
    if position is None or not position.committed or any(one.text == position.name for one in listing.segments):
        return False
    return os.path.lexists(f"{paths.log}/{position.name}")


def _copy_spools(paths: StreamPaths, position: Position | None, copy: IO[bytes]) -> list[str]:
    """Copy what counts of every spool; returns what is to be said about those that are damaged."""
    damaged: list[str] = []
    spools: list[Spool] = []
    try:
        for name in _listdir(paths.spools):
            path = f"{paths.spools}/{name}"
            if spool_id_of(name) is None:
                continue
            try:
                spools.append(Spool.open(path, readonly=True))
            except FileNotFoundError:
                continue  # drained, so everything in it is in a segment by now
            except PermissionError as error:
                raise LogDirectoryError(path, EACCES, "unflushed=True needs to read the spools") from error
            except BadSpool as reason:
                damaged.append(f"{path}: {reason}")
        # As helpers flush them: what one process wrote into two of its spools keeps its order.
        for spool in sorted(spools, key=lambda one: one.created_ns):
            try:
                _copy_spool(spool, position, copy)
            except BadSpool as reason:
                damaged.append(f"{spool.path}: {reason}")
    finally:
        for spool in spools:
            spool.close()
    return damaged


def _copy_spool(spool: Spool, position: Position | None, copy: IO[bytes]) -> None:
    if not spool.is_in_place():
        raise _Moved
    head = start = spool.head
    if position is not None and position.intent == spool.id and position.committed == spool.expected_end:
        start = spool.flush_to  # committed, only head was not moved yet
    tail = spool.tail
    spool.check()
    try:
        for records in spool.copy(start, tail):
            copy.write(records)
    finally:
        if spool.head != head:
            raise _Moved  # and a frame that looked damaged was only overwritten


def _listdir(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise LogDirectoryError(path, EACCES, "unflushed=True needs to read the spools") from error


@contextmanager
def _directory_lock(path: str) -> Iterator[None]:
    """Hold the directory lock through a descriptor for reading; go on without it when its holder does not let go."""
    fd = open_regular(path, os.O_RDONLY)
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        while not try_lock(fd) and time.monotonic() < deadline:
            time.sleep(0.0005)
        yield
    finally:
        os.close(fd)
