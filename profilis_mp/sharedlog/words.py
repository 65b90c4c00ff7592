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

__all__ = ["WordMap", "open_regular", "store_fence"]


class WordMap:
    """One shared map: ``words`` (u64, native order) over the first ``header_bytes``, ``data`` (bytes) after them.

    Owns the map, not the descriptor. The map keeps a duplicate of the descriptor, so a lock taken on the
    descriptor lives until both are closed.
    """

    __slots__ = ("_map", "data", "words")

    def __init__(self, fd: int, size: int, header_bytes: int) -> None:
        # fd -1: private to this process and its forks, the fallback when no file can be had.
        self._map = mmap.mmap(fd, size)
        view = memoryview(self._map)
        self.words = view[:header_bytes].cast("Q")
        self.data = view[header_bytes:]

    def close(self) -> None:
        """Unmap. Views taken from ``data`` must be released first; otherwise the map goes with the last of them."""
        self.words.release()
        self.data.release()
        try:
            self._map.close()
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


def open_regular(path: str, flags: int, mode: int = 0o600) -> int:
    """Open without following a symbolic link and without leaking over ``exec``; returns the descriptor.

    Raises:
        OSError: As ``os.open``; ELOOP when the path is a symbolic link. Nothing was created.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
