"""What has become of this process's records?"""

from __future__ import annotations

import errno

__all__ = ["Counters"]

_REASONS = {
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "quota",
    errno.EFBIG: "file_too_big",
    errno.EIO: "io_error",
    errno.EMFILE: "too_many_files",
    errno.ENFILE: "too_many_files",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.EROFS: "read_only",
}


class Counters:
    """What happened to this process's records since it started, or was forked.

    Attributes:
        events: Records accepted, less those that the fast path will have counted: negative in a forked child, where
            the fast path has also counted the parent's.
        dropped: Records not written, by reason.
        flush_failures: Flushes that could not be done and were put off, by reason.
        flushes: Flushes done by this process for itself.
        aside: Records that went to a spool aside.
        reason: Why the last flush failed, or the last spool could not be made: the reason of what is dropped next.
    """

    def __init__(self, events: int = 0) -> None:
        self.events = events
        self.dropped: dict[str, int] = {}
        self.flush_failures: dict[str, int] = {}
        self.flushes = 0
        self.aside = 0
        self.reason = "spool_full"

    def blame(self, error: OSError) -> None:
        """Note the reason that an error is."""
        self.reason = _REASONS.get(error.errno or 0, "os_error")

    def count_failure(self) -> None:
        """Count a flush that failed for the reason noted."""
        self.flush_failures[self.reason] = self.flush_failures.get(self.reason, 0) + 1

    def count_dropped(self, reason: str, records: int = 1) -> None:
        """Count what was dropped. Threads that cannot get in count here, too."""
        self.dropped.setdefault(reason, 0)
        self.dropped[reason] += records  # without a call in between
