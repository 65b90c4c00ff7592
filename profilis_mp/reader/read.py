"""How does a program get its events back?  ``read_events`` and ``read_lines``, iterators over a log directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Generator, Iterator
from itertools import chain
from typing import Any, Generic, Literal, TypeVar

import orjson

from profilis_mp.reader.selection import Moment, check_options, question
from profilis_mp.reader.sorting import Sorter
from profilis_mp.reader.source import Source
from profilis_mp.reader.walk import Batch

__all__ = ["EventReader", "LineReader", "Order", "read_events", "read_lines"]

Order = Literal["segment", "time"]
T = TypeVar("T")


def read_events(
    dir: str | os.PathLike[str],
    *,
    stream: str | None = None,
    since: Moment | None = None,
    until: Moment | None = None,
    kinds: str | Collection[str] | None = None,
    where: Callable[[Any], object] | None = None,
    order: Order = "segment",
    unflushed: bool = False,
    follow: bool = False,
    poll_interval: float = 0.2,
    stop: Callable[[], bool] | None = None,
    newest_segments: int | None = None,
) -> EventReader:
    """Read the events of a log directory, each once, while others go on writing, compressing and expiring.

        >>> import tempfile, profilis_mp
        >>> logs = tempfile.mkdtemp()
        >>> with profilis_mp.JSONLExporter(logs) as exporter:
        ...     exporter.export([{"kind": "FN", "fn": "work"}, {"kind": "REQ", "route": "/"}])
        >>> for event in read_events(logs, kinds="FN"):
        ...     print(event)
        {'kind': 'FN', 'fn': 'work'}

    Reads with read permission alone, changes nothing, and needs the same little memory for any size of log. Every
    segment is read: the time of an event is whatever its caller wrote, so neither a segment's name nor its mtime say
    which times are not in it.

    Args:
        dir: The log directory.
        stream: One stream, by its name or its template; None reads all, one after the other.
        since, until: Only events with ``since <= ts_ns < until``; a datetime (naive: local time), or nanoseconds since
            the epoch.
        kinds: Only events of this ``kind``, or of one of these.
        where: Only events for which this is true; what it raises comes out of the iterator.
        order: ``"segment"``, as they were written, which is the order within each process; or ``"time"``, sorted by
            ``ts_ns`` over all streams, in temporary files of about the size of what is chosen where that is more than
            64 MiB. An event without a ``ts_ns`` stays behind the one before it.
        unflushed: Also what is in no segment yet, of living and of dead processes: all events acknowledged before this
            call. The spools stay as they are. Needs to read the state directory, as its user may.
        follow: Go on with what comes, across rotations, until :meth:`EventReader.close`.
        poll_interval: How often to look then, seconds.
        stop: Asked at every look; once it is true, what is there is read, and that is the end.
        newest_segments: Only so many of each stream's youngest segments, and what comes after them; None for all.

    Returns:
        An iterator over the events; its ``report`` says what was skipped.

    Raises:
        ConfigError: Naming the argument that was refused.
        LogDirectoryError: There is no such directory, or it may not be read.
        LockTimeout: With ``unflushed``: there was no quiet moment.
        ImportError: There are segments compressed with zstd, which is not installed.
    """
    check_options(order, unflushed, follow, poll_interval, stop, newest_segments)
    passes = question(since, until, kinds, where)
    source = Source(
        dir,
        stream,
        unflushed=unflushed,
        follow=follow,
        poll_interval=poll_interval,
        stop=stop,
        newest_segments=newest_segments,
    )
    return EventReader(source, passes, order)


def read_lines(
    dir: str | os.PathLike[str],
    *,
    stream: str | None = None,
    since: Moment | None = None,
    until: Moment | None = None,
    kinds: str | Collection[str] | None = None,
    where: Callable[[Any], object] | None = None,
    order: Order = "segment",
    unflushed: bool = False,
    follow: bool = False,
    poll_interval: float = 0.2,
    stop: Callable[[], bool] | None = None,
    newest_segments: int | None = None,
) -> LineReader:
    """As :func:`read_events`, but the lines as they were written, newlines included.

    Lines that are no JSON are handed out too, unless something (``since``, ``until``, ``kinds``, ``where``,
    ``order="time"``) asks what is in them; then they are skipped and counted.
    """
    check_options(order, unflushed, follow, poll_interval, stop, newest_segments)
    passes = question(since, until, kinds, where)
    source = Source(
        dir,
        stream,
        unflushed=unflushed,
        follow=follow,
        poll_interval=poll_interval,
        stop=stop,
        newest_segments=newest_segments,
    )
    return LineReader(source, passes, order)


class _Reader(Generic[T]):
    """An iterator with a report, which can be closed.

    Attributes:
        report: What was read and what was skipped so far.
    """

    def __init__(self, source: Source, passes: Callable[[Any], object] | None, order: Order) -> None:
        self.report = source.report
        self._source = source
        self._passes = passes
        self._closed = False
        self._items = self._run(self._by_time if order == "time" else self._as_written)

    def __iter__(self) -> _Reader[T]:
        return self

    def __next__(self) -> T:
        if self._closed:
            raise StopIteration
        return next(self._items)

    def close(self) -> None:
        """End the reading, from any thread; one that waits for more events is woken up."""
        self._closed = True
        self._source.ended.set()
        try:
            self._items.close()
        except ValueError:
            return  # another thread is in it, and will close everything when it finds that this is the end
        self._source.close()

    def __enter__(self) -> _Reader[T]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_items"):
            self.close()

    def _run(self, select: Callable[[], Iterator[T]]) -> Generator[T, None, None]:
        try:
            yield from select()
        finally:
            self._source.close()

    def _as_written(self) -> Iterator[T]:
        raise NotImplementedError

    def _finished(self, line: bytes) -> T:
        raise NotImplementedError

    def _by_time(self) -> Iterator[T]:
        sorter = Sorter()
        moment = -(1 << 63)
        try:
            for event, line in self._chosen():
                if type(event) is dict and type(event.get("ts_ns")) is int:
                    moment = event["ts_ns"]
                sorter.add(moment, line)
            for line in sorter.drain():
                self.report.events += 1
                yield self._finished(line)
        finally:
            sorter.close()

    def _chosen(self) -> Iterator[tuple[Any, bytes]]:
        """Events that pass, with their lines."""
        loads, passes = orjson.loads, self._passes
        for batch in self._source.batches():
            for number, line in enumerate(batch.lines):
                try:
                    event = loads(line)
                except ValueError:
                    self._find_torn(batch, number)
                    continue
                if passes is None or passes(event):
                    yield event, line

    def _find_torn(self, batch: Batch, number: int) -> None:
        offset = batch.offset
        if not self.report.names_enough:  # else nobody is told, and of many torn lines each would take longer
            offset += sum(len(line) + 1 for line in batch.lines[:number])
        self.report.find_torn(batch.label, offset, batch.lines[number])


class EventReader(_Reader[Any]):
    """What :func:`read_events` returns."""

    def _as_written(self) -> Iterator[Any]:
        for event, _ in self._chosen():
            self.report.events += 1
            yield event

    def _finished(self, line: bytes) -> Any:
        return orjson.loads(line)


class LineReader(_Reader[bytes]):
    """What :func:`read_lines` returns."""

    def _as_written(self) -> Iterator[bytes]:
        if self._passes is None:
            lines = chain.from_iterable(batch.lines for batch in self._source.batches())
        else:
            lines = (line for _, line in self._chosen())  # type: ignore[assignment]
        for line in lines:
            self.report.events += 1
            yield line + b"\n"

    def _finished(self, line: bytes) -> bytes:
        return line + b"\n"
