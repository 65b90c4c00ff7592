"""Which stream's turn is it, and is there more to come?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from profilis_mp.reader.follow import Lookout
from profilis_mp.reader.report import ReadReport
from profilis_mp.reader.selection import check_readable_directory, streams_to_read
from profilis_mp.reader.unflushed import Picture, take_picture
from profilis_mp.reader.walk import Batch, StreamReader
from profilis_mp.sharedlog.inventory import streams_of
from profilis_mp.sharedlog.names import SegmentNames
from profilis_mp.sharedlog.stream import STATE_DIRECTORY
from profilis_mp.threads import Flag

__all__ = ["Source"]


class Source:
    """The lines of all streams to be read, batch by batch; arguments as for :func:`~profilis_mp.read_events`.

    Attributes:
        report: What was seen.
        ended: Set, from any thread, to end the reading.
    """

    def __init__(
        self,
        directory: object,
        stream: str | None,
        *,
        unflushed: bool,
        follow: bool,
        poll_interval: float,
        stop: Callable[[], bool] | None,
        newest_segments: int | None,
    ) -> None:
        self.report = ReadReport()
        self.ended = Flag()
        self._log = log = check_readable_directory(directory)
        self._all = stream is None
        self._follow = follow
        self._poll_interval = poll_interval
        self._stop = stop
        self._claimed: set[str] = set()
        self._seen: set[str] = set()
        self._readers: dict[str, StreamReader] = {}
        try:
            for names in streams_to_read(log, stream):
                self._add(names, take_picture(log, names, self.report) if unflushed else None, newest_segments)
        except BaseException:
            self.close()
            raise

    def batches(self) -> Iterator[Batch]:
        """What there is; with ``follow``, what comes, too."""
        if self._follow:
            yield from self._endless()
            return
        for reader in self._readers.values():
            while not self.ended.is_set() and (batch := reader.read()) is not None:
                yield batch

    def _endless(self) -> Iterator[Batch]:
        while not self.ended.is_set():
            # Asked first: what came before it turned true is still read.
            last = self._stop is not None and bool(self._stop())
            if self._all:
                self._add_new_streams()
            idle = False
            while not idle:
                idle = True
                for reader in list(self._readers.values()):  # a piece of each in turn: none waits for a busy one
                    if not self.ended.is_set() and (batch := reader.read()) is not None:
                        idle = False
                        yield batch
            if last:
                return
            self.ended.wait(self._poll_interval)

    def _add_new_streams(self) -> None:
        try:
            there = set(os.listdir(f"{self._log}/{STATE_DIRECTORY}"))
            streams = streams_of(self._log) if there != self._seen else []
        except OSError:
            return  # gone, or not ours to read
        self._seen = there
        for names in streams:
            if names.stream not in self._readers:
                try:
                    self._add(names, None)
                except FileNotFoundError:
                    return

    def _add(self, names: SegmentNames, picture: Picture | None, newest: int | None = None) -> None:
        try:
            lookout = Lookout(self._log, names) if self._follow else None
            reader = StreamReader(
                self._log, names, self.report, self._claimed, picture=picture, lookout=lookout, newest=newest
            )
        except BaseException:
            if picture is not None:
                picture.unflushed.close()
            raise
        self._readers[names.stream] = reader

    def close(self) -> None:
        """Close every file."""
        for reader in self._readers.values():
            reader.close()
