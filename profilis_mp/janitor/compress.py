"""How does a segment become its compressed copy, so that at every instant one of the two is there and whole?

    1  write the copy under a name of its own that ends in .tmp
    2  read it back: its length and checksum must be those of what was read from the segment
    3  give it the segment's owner, mode and time of last write; bring it to the device
    4  give it its name, unless a file of that name is there already
    5  remove the .tmp name; bring the directory to the device
    6  remove the segment

Killed in 1 to 3, a .tmp is left that nobody reads; from 4 on both are there, and the next sweep does what is left:
:func:`settle` removes the segment once the copy is proven. Two at it at the same time do no harm: each has its own
.tmp, and only one gets to give it the name.
"""

from __future__ import annotations

import os
import re
import time
import zlib
from collections.abc import Callable
from errno import EMLINK, ENOTSUP, EPERM

from profilis_mp.compression import Damaged, compressor, open_compressed
from profilis_mp.janitor import held
from profilis_mp.sharedlog.inventory import SegmentFile, remove_file
from profilis_mp.sharedlog.segment import sync_directory
from profilis_mp.sharedlog.words import open_regular

__all__ = ["NotCompressed", "Stopped", "compress", "is_leftover", "settle"]

_PIECE_BYTES = 64 * 1024  # of the segment: a larger one would be compressed in one stall
_LEFTOVER = re.compile(r"(?P<segment>.+)\.(?:gz|zst)\.[0-9a-f]{8}\.tmp", re.DOTALL)


class NotCompressed(Exception):
    """The segment stays as it is; says why."""


class Stopped(Exception):
    """The caller was asked to stop; the segment is as it was."""


def is_leftover(file: str) -> str | None:
    """The plain segment's name that an unfinished copy is of; None for a file that is none."""
    match = _LEFTOVER.fullmatch(file)
    return match["segment"] if match is not None else None


class _Sum:
    """Length and checksum of what was read."""

    def __init__(self) -> None:
        self.length = 0
        self.checksum = 0

    def add(self, data: bytes) -> None:
        self.length += len(data)
        self.checksum = zlib.crc32(data, self.checksum)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Sum) and (self.length, self.checksum) == (other.length, other.checksum)

    __hash__ = None  # type: ignore[assignment]  # it changes


def compress(segment: SegmentFile, suffix: str, level: int, is_stopped: Callable[[], bool]) -> int:
    """Replace a sealed segment by its compressed copy.

    Args:
        segment: A plain one.
        suffix: ``.gz`` or ``.zst``.
        level: The format's own.
        is_stopped: Asked between pieces.

    Returns:
        The copy's length, bytes.

    Raises:
        NotCompressed: The segment changed, or something else has the copy's name. The segment is as it was.
        Stopped: It was asked to. The segment is as it was.
        OSError: No space, not readable, gone. The segment is as it was; no .tmp is left, but by a kill.
    """
    final = f"{segment.path}{suffix}"
    if os.path.lexists(final):
        return settle(segment, suffix, is_stopped)
    unfinished = f"{final}.{os.urandom(4).hex()}.tmp"
    source = held.keep(lambda: open_regular(segment.path, os.O_RDONLY))
    try:
        before = os.fstat(source)
        if (before.st_dev, before.st_ino) != segment.identity:
            raise NotCompressed("it was replaced")
        target = held.keep(lambda: open_regular(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        try:
            written = _copy(source, target, suffix, level, is_stopped)
            os.lseek(target, 0, os.SEEK_SET)
            if _sum_of_copy(held.keep(lambda: os.dup(target)), suffix, is_stopped) != written:
                raise NotCompressed("its copy does not decompress to the same bytes")
            _take_after(target, before)
            os.fsync(target)
            after = os.fstat(source)
            if (after.st_size, after.st_mtime_ns) != (written.length, before.st_mtime_ns):
                raise NotCompressed("somebody wrote to it, though it is sealed")
            size = os.fstat(target).st_size
            _give_name(unfinished, final)
        finally:
            held.close(target)
            _unlink(unfinished)
        sync_directory(os.path.dirname(final))
        # I10: the copy has its name and is on the device before the segment goes.
        remove_file(segment)
        return size
    finally:
        held.close(source)


def settle(segment: SegmentFile, suffix: str, is_stopped: Callable[[], bool]) -> int:
    """Remove a segment of which a compressed copy has its name already, once the copy is proven.

    Raises:
        As for :func:`compress`; NotCompressed when it is no copy of this segment, or not yet.
    """
    final = f"{segment.path}{suffix}"
    source = held.keep(lambda: open_regular(segment.path, os.O_RDONLY))
    try:
        expected = _Sum()
        while data := os.read(source, _PIECE_BYTES):
            expected.add(data)
            _look(is_stopped)
        # O_NONBLOCK: of a FIFO, opening would wait for ever.
        copy = held.keep(lambda: open_regular(final, os.O_RDONLY | os.O_NONBLOCK))
        try:
            size = os.fstat(copy).st_size
            os.fsync(copy)  # whoever made it: I10
        except BaseException:
            held.close(copy)
            raise
        if _sum_of_copy(copy, suffix, is_stopped) != expected:
            raise NotCompressed(f"{final} is there already, and is not its copy")
        if os.fstat(source).st_size != expected.length:
            raise NotCompressed("somebody writes to it, though it is sealed")
    finally:
        held.close(source)
    sync_directory(os.path.dirname(final))
    remove_file(segment)
    return size


def _copy(source: int, target: int, suffix: str, level: int, is_stopped: Callable[[], bool]) -> _Sum:
    read = _Sum()
    packer = compressor(suffix, level)
    while data := os.read(source, _PIECE_BYTES):
        read.add(data)
        _write(target, packer.compress(data))
        _look(is_stopped)
    _write(target, packer.flush())
    return read


def _sum_of_copy(fd: int, suffix: str, is_stopped: Callable[[], bool]) -> _Sum:
    """Length and checksum of what the copy decompresses to; closes the descriptor."""
    found = _Sum()
    try:
        file = open_compressed(fd, suffix)
    except BaseException:
        held.close(fd)
        raise
    try:
        while data := file.read():
            found.add(data)
            _look(is_stopped)
        if not file.complete:
            raise NotCompressed("its copy ends too early")
    except Damaged as error:
        raise NotCompressed(f"its copy is damaged: {error}") from None
    finally:
        held.close(fd, file.close)
    return found


def _look(is_stopped: Callable[[], bool]) -> None:
    if is_stopped():
        raise Stopped
    time.sleep(0)  # where threads are greenlets, nobody else would run meanwhile


def _write(target: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(target, rest) :]


def _take_after(target: int, status: os.stat_result) -> None:
    os.fchmod(target, status.st_mode & 0o777)
    own = os.fstat(target)
    if (own.st_uid, own.st_gid) != (status.st_uid, status.st_gid):
        for uid in (status.st_uid, -1):  # only root may give files away; the group alone, a member may as well
            try:
                os.fchown(target, uid, status.st_gid)
                break
            except PermissionError:
                pass
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _give_name(unfinished: str, final: str) -> None:
    """Unlike a rename, a link replaces nothing that came there meanwhile."""
    try:
        os.link(unfinished, final, follow_symlinks=False)
    except FileExistsError:
        raise NotCompressed(f"{final} was put there meanwhile") from None
    except OSError as error:
        if error.errno not in {EPERM, ENOTSUP, EMLINK}:
            raise
        if os.path.lexists(final):  # a file system without hard links
            raise NotCompressed(f"{final} was put there meanwhile") from None
        os.rename(unfinished, final)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # it has its name, or the next sweep removes it
