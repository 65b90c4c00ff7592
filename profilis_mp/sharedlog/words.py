"""How do several processes share a few integers that ``kill -9`` cannot tear?

A mapped file seen as native u64 words. Each word is written by one aligned 8-byte store: a ``memoryview`` cast to
``'Q'`` compiles to a single move, whereas ``struct.pack_into('<Q', …)`` writes byte by byte and can be caught
half-way. Everything in the commit protocol that must be atomic is therefore one word.
"""

from __future__ import annotations

import mmap
import os
import platform
import threading
from collections.abc import Callable
from errno import EINVAL, ENOSYS, EOPNOTSUPP

__all__ = ["OrderedWords", "WordMap", "open_regular", "preallocate", "store_fence"]


class WordMap:
    """One shared map: ``words`` (u64, native order) over its header, ``view`` and ``bytes`` over all of it.

    Owns the map, not the descriptor. The map keeps a duplicate of the descriptor, so a lock taken on the
    descriptor lives until both are closed.

    Attributes:
        words: The header's words.
        view: All of it, for reading without a copy.
        bytes: The map itself; assigning a slice of it is the fastest copy there is.
    """

    __slots__ = ("bytes", "view", "words")

    def __init__(self, fd: int, size: int, header_bytes: int, *, readonly: bool = False) -> None:
        # fd -1: private to this process and its forks, the fallback when no file can be had.
        self.bytes = mmap.mmap(fd, size, prot=mmap.PROT_READ if readonly else mmap.PROT_READ | mmap.PROT_WRITE)
        self.view = memoryview(self.bytes)
        self.words = self.view[:header_bytes].cast("Q")

    def close(self) -> None:
        """Unmap. Views taken from ``view`` must be released first; otherwise the map goes with the last of them."""
        self.words.release()
        self.view.release()
        try:
            self.bytes.close()
        except BufferError:
            # A view is still exported (a thread of the parent was copying at the fork): the collector unmaps later.
            pass


def _lock_fence() -> Callable[[], None]:
    """A full fence out of what Python has: releasing then taking a mutex orders everything before and after it."""
    mutex = threading.Lock()

    def fence() -> None:
        with mutex:
            pass
        with mutex:
            pass

    return fence


# I3 needs "data before tail" as other processors see it. Untested: no machine with a weaker memory order was at hand.
store_fence: Callable[[], None] | None = (
    None if platform.machine().lower() in {"x86_64", "amd64", "i686", "i386"} else _lock_fence()
)


class OrderedWords:
    """Words whose stores become visible after every earlier store, for processors that do not promise it."""

    def __init__(self, words: memoryview, fence: Callable[[], None]) -> None:
        self._words = words
        self._fence = fence

    def __getitem__(self, index: int) -> int:
        value: int = self._words[index]
        return value

    def __setitem__(self, index: int, value: int) -> None:
        self._fence()
        self._words[index] = value


def open_regular(path: str, flags: int, mode: int = 0o600) -> int:
    """Open without following a symbolic link and without leaking over ``exec``; returns the descriptor.

    Raises:
        OSError: As ``os.open``; ELOOP when the path is a symbolic link. Nothing was created.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


def preallocate(fd: int, size: int) -> None:
    """Give a new file ``size`` bytes that the file system really has.

    A store into a page of a sparse map on a full disk is a SIGBUS, not an error.

    Raises:
        OSError: ENOSPC and the like. The file may be any length up to ``size``.
    """
    try:
        os.posix_fallocate(fd, 0, size)
    except (AttributeError, OSError) as error:
        # macOS has no such call, and not every C library writes zeros where the file system has none.
        if isinstance(error, OSError) and error.errno not in {EINVAL, ENOSYS, EOPNOTSUPP}:
            raise
        zeros = memoryview(bytes(size))
        while zeros:
            zeros = zeros[os.write(fd, zeros) :]
