"""Which segments came since the last look, and how many came and went unseen?

By listing the directory when it has changed. That is enough to miss nothing: names move forward, and a listing has no
gap. What was expired before any listing showed it is counted with the generation in the control file, where that may be
read: from one segment whose generation is known to the next there must be so many.
"""

from __future__ import annotations

import os
import time

from profilis_mp.reader.listing import SegmentListing, position_of
from profilis_mp.reader.report import ReadReport
from profilis_mp.sharedlog.control import Position
from profilis_mp.sharedlog.names import SegmentName, SegmentNames
from profilis_mp.sharedlog.stream import StreamPaths

__all__ = ["Lookout"]

# Directories are stamped with a clock that ticks every few milliseconds, so a recent stamp may stand for two changes.
_RECENT_NS = 10**9


class Lookout:
    """Looks for new segments of one stream.

    Attributes:
        listing: What the last look showed.

    Raises:
        OSError: The directory cannot be listed.
    """

    def __init__(self, log: str, names: SegmentNames) -> None:
        self._log = log
        self._paths = StreamPaths(log, names.stream)
        self._directory: tuple[int, int] | None = None
        self._unchanged_since = 0
        # The youngest segment whose generation is known, its control file, and the segments seen since then.
        self._generation: int | None = None
        self._control: tuple[int, int] | None = None
        self._stamp()
        nothing_yet = not os.path.lexists(self._paths.control)
        position = position_of(self._paths)
        self.listing = SegmentListing(log, names)
        self._since = list(self.listing.segments)
        if nothing_yet and not self.listing.segments:
            self._generation = 0
        self._youngest = self.listing.segments[-1].age() if self.listing.segments else None
        self._count(position)

    def look(self, report: ReadReport) -> list[SegmentName]:
        """The segments that are new, the eldest first.

        Raises:
            OSError: The directory cannot be listed. One that is gone is no error: its writers will make a new one.
        """
        try:
            if not self._stamp():
                return []
            position = position_of(self._paths)
            self.listing.look()
        except FileNotFoundError:
            self._directory = None
            return []
        new = [one for one in self.listing.segments if self._youngest is None or one.age() > self._youngest]
        if new:
            self._youngest = new[-1].age()
            self._since += new
        missed = self._count(position)
        if missed:
            report.expired_segments += missed
            report.find(f"{self._log}: {missed} segments came and were expired without being seen")
        return new

    def _stamp(self) -> bool:
        """Whether the directory may have changed since the last call."""
        now_ns = time.time_ns()
        status = os.stat(self._log)
        identity = (status.st_dev, status.st_ino)
        if identity != self._directory:
            # Another directory: everything in it is new.
            self._directory, self._youngest, self._generation, self._control = identity, None, None, None
        elif status.st_mtime_ns == self._unchanged_since:
            return False
        self._unchanged_since = status.st_mtime_ns if now_ns - status.st_mtime_ns > _RECENT_NS else 0
        return True

    def _count(self, position: Position | None) -> int:
        """How many segments there must have been that no look showed.

        Args:
            position: Read before the listing, which therefore shows its segment, unless that is not created yet.
        """
        active = next((one for one in self.listing.segments if position and one.text == position.name), None)
        if position is None or active is None:
            return 0  # a later look counts
        seen = sum(one.age() <= active.age() for one in self._since)
        known = self._generation is not None and self._control in (None, position.identity)
        missed = position.generation - (self._generation or 0) - seen if known else 0
        self._generation, self._control = position.generation, position.identity
        self._since = [one for one in self._since if one.age() > active.age()]
        return max(0, missed)
