"""How are more lines than fit into memory sorted by time?  In runs on disk, merged.

As many lines as the budget allows are sorted and written to a temporary file, a run. Runs are merged when all is
there; before there are too many of them to be open at once, the oldest are merged into a larger one. Lines of equal
time keep the order in which they came, whatever happens in between.
"""

from __future__ import annotations

import heapq
import marshal
import tempfile
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import IO

__all__ = ["MEMORY_BYTES", "Sorter"]

MEMORY_BYTES = 64 * 1024 * 1024
_FAN_IN = 64
_OVERHEAD_BYTES = 150  # of a line in memory: its bytes object, its time, their tuple
_CHUNK_BYTES = 64 * 1024
_time_of = itemgetter(0)


class Sorter:
    """Sorts lines by time.

        >>> sorter = Sorter()
        >>> for moment, line in [(3, b"c"), (1, b"a"), (3, b"d"), (2, b"b")]:
        ...     sorter.add(moment, line)
        >>> b"".join(sorter.drain())
        b'abcd'

    Args:
        memory_bytes: About as much is kept in memory.
        fan_in: So many runs are open at once, for each power of it that the number of runs reaches.
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES, fan_in: int = _FAN_IN) -> None:
        self._budget = memory_bytes
        self._fan_in = fan_in
        self._lines: list[tuple[int, bytes]] = []
        self._used = 0
        self._levels: list[list[IO[bytes]]] = []  # each level's runs are older than those of the level before it

    def add(self, moment: int, line: bytes) -> None:
        """Take one line.

        Raises:
            OSError: No space for temporary files.
        """
        self._lines.append((moment, line))
        self._used += len(line) + _OVERHEAD_BYTES
        if self._used > self._budget:
            self._lines.sort(key=_time_of)
            self._store(self._lines, 0)
            self._lines = []
            self._used = 0

    def drain(self) -> Iterator[bytes]:
        """All lines in order, once."""
        self._lines.sort(key=_time_of)
        runs = [_lines_of(run) for level in reversed(self._levels) for run in level]
        for _, line in heapq.merge(*runs, self._lines, key=_time_of):
            yield line

    def close(self) -> None:
        """Remove the temporary files."""
        for level in self._levels:
            for run in level:
                run.close()
        self._levels.clear()
        self._lines.clear()

    def _store(self, lines: Iterable[tuple[int, bytes]], level: int) -> None:
        run = tempfile.TemporaryFile()  # noqa: SIM115  closed with the sorter
        if level == len(self._levels):
            self._levels.append([])
        try:
            for chunk in _chunks(lines):
                # marshal, not pickle or struct: three times as fast, and nobody else ever sees the file.
                marshal.dump(chunk, run)
            run.seek(0)
        except BaseException:
            run.close()
            raise
        runs = self._levels[level]
        runs.append(run)
        if len(runs) >= self._fan_in:
            self._store(heapq.merge(*map(_lines_of, runs), key=_time_of), level + 1)
            for one in runs:
                one.close()
            runs.clear()


def _lines_of(run: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    while True:
        try:
            chunk = marshal.load(run)
        except EOFError:
            return
        yield from chunk


def _chunks(lines: Iterable[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    """So many lines that each run needs little memory while it is merged."""
    chunk: list[tuple[int, bytes]] = []
    size = 0
    for pair in lines:
        chunk.append(pair)
        size += len(pair[1]) + _OVERHEAD_BYTES
        if size > _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    yield chunk
