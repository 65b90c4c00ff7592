"""In which order is one stream read, so that each byte of it comes once, while others write, compress and expire it?

Segment by segment, the eldest first. A descriptor keeps a segment whatever becomes of its name, so it matters only
which one is opened next, and when the last one is done:

* a segment is done at its end if a younger one was there *before* that end was reached, for then it was sealed;
* the next one is always the next of a listing without a gap (``listing``); if it is gone in every form, it was expired.
"""

from __future__ import annotations

import os
from collections import deque
from functools import partial
from typing import NamedTuple

from profilis_mp.compression import Damaged, decompressor
from profilis_mp.reader.follow import Lookout
from profilis_mp.reader.lines import LONGEST_LINE_BYTES, LineSplitter
from profilis_mp.reader.listing import SegmentListing, position_of
from profilis_mp.reader.opened import Content, own_format
from profilis_mp.reader.report import ReadReport
from profilis_mp.reader.unflushed import Picture
from profilis_mp.sharedlog.names import SegmentName, SegmentNames
from profilis_mp.sharedlog.stream import StreamPaths

__all__ = ["Batch", "StreamReader"]


class Batch(NamedTuple):
    """Consecutive lines of one file, without their newlines."""

    label: str
    offset: int
    lines: list[bytes]


class StreamReader:
    """Reads one stream.

    Args:
        log: The log directory.
        names: The stream's.
        report: Counts what is seen.
        claimed: Disputed segments that another stream's reader has claimed; this one's are added.
        picture: What to read, and what was in no segment then; None for all there is, without that.
        lookout: Finds what comes later; None reads what is there now.
        newest: So many of the segments that are there, the youngest; None for all.
        longest: Longer lines are left out.

    Raises:
        ImportError: A segment needs zstd, which is not installed.
        OSError: The directory cannot be listed.
    """

    def __init__(
        self,
        log: str,
        names: SegmentNames,
        report: ReadReport,
        claimed: set[str],
        *,
        picture: Picture | None = None,
        lookout: Lookout | None = None,
        newest: int | None = None,
        longest: int = LONGEST_LINE_BYTES,
    ) -> None:
        self._report = report
        self._claimed = claimed
        self._picture = picture
        self._lookout = lookout
        self._longest = longest
        self._spools = StreamPaths(log, names.stream).spools
        self._content: Content | None = None
        self._splitter = LineSplitter(longest)
        self._sealed = False
        self._queue: deque[SegmentName] = deque()
        self._label = ""
        if lookout is not None:
            self._listing = lookout.listing
            self._last_is_sealed = False
        else:
            self._listing = picture.listing if picture is not None else SegmentListing(log, names)
            self._last_is_sealed = self._is_sealed(StreamPaths(log, names.stream))
        self._enqueue(self._listing.segments[-newest if newest is not None else 0 :])
        for suffix in {one.suffix for forms in self._listing.forms.values() for one in forms} - {""}:
            decompressor(suffix)  # refused now, not in the middle

    def read(self) -> Batch | None:
        """The next lines; None when there are no more, for now or at all.

        Raises:
            ImportError: A segment needs zstd, which is not installed.
            OSError: A segment, or the directory, cannot be read.
        """
        while True:
            content = self._content
            if content is None:
                if not self._open_next():
                    return None
                continue
            try:
                piece = content.read()
            except (Damaged, OSError) as error:
                self._damaged(f"cannot be read from there on: {error}")
                self._finish(torn=False)
                continue
            if piece:
                self._report.size += len(piece)
                offset, lines = self._splitter.feed(piece)
                if self._splitter.oversize:
                    self._report_oversize()
                if lines:
                    return Batch(content.label, offset, lines)
            elif self._sealed:
                if not content.complete:
                    self._damaged("ends in the middle of what was compressed")
                self._finish(torn=content.complete)
            elif self._lookout is None:
                self._close()  # the splitter stays: what is in the spools comes right behind
            elif self._look_out():
                self._sealed = True  # and what came between its end and the look is read now
            else:
                return None

    def close(self) -> None:
        """Close what is open."""
        self._queue.clear()
        self._close()
        if self._picture is not None:
            self._picture.unflushed.close()
            self._picture = None

    def _open_next(self) -> bool:
        if not self._queue and not (self._lookout is not None and self._look_out()):
            return self._open_unflushed()
        segment = self._queue.popleft()
        found = self._listing.open(segment)
        if found is None:
            self._report.expired_segments += 1
            self._report.find(f"{segment.text}: expired before it was read")
            return True
        file, fd = found
        # What was active when the picture was taken is so for this reader, whatever it is by now.
        limit = self._picture.committed if self._picture is not None and self._picture.active == segment.text else None
        try:
            self._content = Content(
                file.path,
                partial(os.read, fd),
                partial(os.close, fd),
                packed=file.suffix,
                own=own_format(segment.text),
                limit=limit,
            )
        except ImportError:
            os.close(fd)
            raise
        self._splitter = LineSplitter(self._longest)
        self._sealed = limit is None and (bool(self._queue) or bool(file.suffix) or self._last_is_sealed)
        self._report.segments += 1
        return True

    def _open_unflushed(self) -> bool:
        picture, self._picture = self._picture, None
        if picture is None:
            return False
        copy = picture.unflushed
        own = own_format(picture.active)
        if own:
            self._splitter = LineSplitter(self._longest)  # records are members of their own
        self._content = Content(f"{self._spools} (unflushed)", copy.read, copy.close, own=own)
        self._sealed = False
        return True

    def _enqueue(self, segments: list[SegmentName]) -> None:
        for segment in segments:
            if any(one.disputed for one in self._listing.forms.get(segment.text, ())):
                if segment.text in self._claimed:
                    continue
                self._claimed.add(segment.text)
            self._queue.append(segment)

    def _look_out(self) -> bool:
        """Whether there are younger segments than the one that is being read, or than all that were."""
        if self._lookout is not None and not self._queue:
            self._enqueue(self._lookout.look(self._report))
        return bool(self._queue)

    def _is_sealed(self, paths: StreamPaths) -> bool:
        """Whether the youngest segment takes no more bytes."""
        position = position_of(paths)
        segments = self._listing.segments
        return position is not None and bool(segments) and position.name != segments[-1].text

    def _finish(self, *, torn: bool) -> None:
        rest = self._splitter.rest()
        if torn and rest is not None and self._content is not None:
            self._report.find_torn(self._content.label, self._splitter.offset, rest)
        self._splitter = LineSplitter(self._longest)
        self._close()

    def _damaged(self, what: str) -> None:
        assert self._content is not None, "only what is open can be damaged"
        self._report.damaged_segments += 1
        self._report.find(f"{self._content.label}: from byte {self._splitter.offset} of its content on: {what}")

    def _report_oversize(self) -> None:
        label = self._content.label if self._content is not None else ""
        for offset in self._splitter.oversize:
            self._report.oversize += 1
            self._report.find(f"{label}: the line at byte {offset} is longer than {self._longest} bytes")
        self._splitter.oversize.clear()

    def _close(self) -> None:
        content, self._content = self._content, None
        if content is not None:
            content.close()
