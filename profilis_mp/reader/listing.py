"""Which segments does a stream have, without a gap, while others open, compress and expire them?

One listing is not enough: a directory that changes while it is listed may show a new file and not show a slightly older
one, or, of a segment that is just being compressed, neither form. But a segment is compressed once: that can hide it
from one of two listings, and not from both. So a look is twice two. The first two show, the youngest among them,
whatever was there when the look began; what they show youngest was there, with all its elders, before the third began,
so the other two show all of those. Whatever is younger waits for the next look.
"""

from __future__ import annotations

import os

from profilis_mp.sharedlog.control import BadControl, Control, Position
from profilis_mp.sharedlog.inventory import SegmentFile, segment_files
from profilis_mp.sharedlog.names import SegmentName, SegmentNames
from profilis_mp.sharedlog.stream import StreamPaths

__all__ = ["SegmentListing", "position_of"]


class SegmentListing:
    """What the last look at one stream's segments showed.

    Args:
        log: The log directory.
        names: The stream's.

    Attributes:
        segments: Its segments without a gap, the eldest first.
        forms: The files that each of them, and of younger ones, is in; the plain form first.

    Raises:
        OSError: The directory cannot be listed.
    """

    segments: list[SegmentName]
    forms: dict[str, list[SegmentFile]]

    def __init__(self, log: str, names: SegmentNames) -> None:
        self._log = log
        self._names = names
        self.look()

    def look(self) -> None:
        """Look again.

        Raises:
            OSError: The directory cannot be listed. What the last look showed is still here.
        """
        found = self._list() | self._list()
        youngest = max((one.segment.age() for one in found.values()), default=(0, 0))
        if found:
            found |= self._list() | self._list()
        files = sorted(found.values(), key=lambda one: one.suffix)
        self.forms = {}
        for one in files:
            self.forms.setdefault(one.segment.text, []).append(one)
        segments = {one.segment for one in files if one.segment.age() <= youngest}
        self.segments = sorted(segments, key=SegmentName.age)

    def _list(self) -> dict[str, SegmentFile]:
        return {one.path: one for one in segment_files(self._log, self._names)}

    def open(self, segment: SegmentName) -> tuple[SegmentFile, int] | None:
        """Open a segment that some look showed, in the form that it is in by now; None when it was expired.

        Returns:
            The file and a descriptor on it, with which it can be read whatever becomes of its name.

        Raises:
            OSError: The directory cannot be listed, or the file not be opened.
        """
        # A segment goes from plain to compressed to gone. One that no longer shows is gone: no other look is needed.
        while forms := self.forms.get(segment.text):
            for one in forms:
                try:
                    return one, os.open(one.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue
            self.look()
        return None


def position_of(paths: StreamPaths) -> Position | None:
    """How far the stream has come; None where that cannot be told (nobody wrote yet, or only its user may read it)."""
    try:
        return Control.glance(paths.control).position
    except (OSError, BadControl):
        return None
