"""Which sealed segments have to go?

By number, by total size, and by age; never the active one, never a disputed one. Number and size take the eldest
first, by the names' order: the clock has no say in it. Age has to trust the clock, and a clock that is wrong must not
wipe the directory: see :class:`Clock`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import groupby

from profilis_mp.janitor.upkeep import Upkeep
from profilis_mp.sharedlog.inventory import SegmentFile

__all__ = ["Clock", "expired"]

_STEP_NS = 60 * 10**9
_LONGEST_GRACE_S = 3600.0


class Clock:
    """Whether the clock can be trusted to say how old a file is.

    It is not trusted for a while, at most an hour, after it was stepped forward by more than a minute; nor when, at the
    first look, it makes more than half of several sealed segments too old at once, which a clock that is wrong since
    the machine started, or was stepped under the leader before, would do. Stepped back, it is trusted again: what was
    written meanwhile comes from the future, and the future is not old.

    Args:
        max_age_secs: The limit that it is asked about.
        clock: Nanoseconds since the epoch.
        monotonic: Nanoseconds that nobody steps.
    """

    def __init__(
        self,
        max_age_secs: float,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._max_age_secs = max_age_secs
        self._clock = clock
        self._monotonic = monotonic
        self._offset: int | None = None
        self._doubted_until: int | None = None

    def too_old_before(self, sealed: Sequence[SegmentFile]) -> int:
        """Sealed segments last written before this (nanoseconds since the epoch) are too old; 0 when nobody knows."""
        now, monotonic = self._clock(), self._monotonic()
        limit = now - int(self._max_age_secs * 1e9)
        offset, before = now - monotonic, self._offset
        self._offset = offset
        grace = int(min(self._max_age_secs, _LONGEST_GRACE_S) * 1e9)
        if before is None:
            # Not all: those sealed since the clock was stepped, under a leader that knew of it, are young.
            if len(sealed) > 1 and 2 * sum(one.mtime_ns < limit for one in sealed) > len(sealed):
                self._doubted_until = monotonic + grace
        elif offset - before > _STEP_NS:
            self._doubted_until = monotonic + grace
        elif before - offset > _STEP_NS:
            self._doubted_until = None
        if self._doubted_until is not None and monotonic < self._doubted_until:
            return 0
        self._doubted_until = None
        return limit


def expired(
    sealed: Sequence[SegmentFile], rest: Sequence[SegmentFile], upkeep: Upkeep, too_old_before: int
) -> list[SegmentFile]:
    """Return the files that have to go, the eldest first.

    Args:
        sealed: The stream's sealed segments, the eldest first, those being compressed in both forms.
        rest: Its other segments: they count, and stay.
        upkeep: The rules.
        too_old_before: What :class:`Clock` says; 0 for nothing.
    """
    ours = [one for one in sealed if not one.disputed]
    segments = [list(files) for _, files in groupby(ours, key=lambda one: one.segment.age())]
    left = len(segments) + len({one.segment.age() for one in rest if not one.disputed})
    total = sum(one.size for one in [*ours, *rest] if not one.disputed)
    gone: list[SegmentFile] = []
    for files in segments:
        too_many = upkeep.max_files is not None and left > upkeep.max_files
        too_large = upkeep.max_total_bytes is not None and total > upkeep.max_total_bytes
        too_old = max(one.mtime_ns for one in files) < too_old_before
        if too_many or too_large or too_old:
            gone += files
            left -= 1
            total -= sum(one.size for one in files)
    return gone
