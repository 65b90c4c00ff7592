"""Who delivers events in this process?

A `Crew` belongs to the process that made it: its lanes, their threads and all counts. A forked child finds, by the
fork mark and before anything else, that the crew is its parent's, and goes on with an heir: the same exporters, empty
queues, no threads yet, counts from zero. The parent's crew is kept but never touched: even to free its queue would run
the finalizers of its events a second time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any, TypedDict

from profilis_mp.core.lane import Lane, Limits
from profilis_mp.core.scalars import scalar
from profilis_mp.core.tally import steps
from profilis_mp.diagnostics import warn
from profilis_mp.exporters.base import describe, settle
from profilis_mp.interrupts import was_thrown_in
from profilis_mp.threads import call_aside

__all__ = ["CollectorStats", "Crew", "Inline"]

_serials = count()


class CollectorStats(TypedDict):
    """What happened in this process.

    Where there are several exporters, each delivery counts: an event for two exporters makes two. When all is quiet,
    ``enqueued`` times the number of exporters is ``processed`` plus ``queue_depth`` plus all of ``dropped`` but
    ``closed``.

    Keys:
        enqueued: Events taken.
        processed: Delivered.
        queue_depth: Not delivered yet.
        flush_errors: Calls of an exporter that raised.
        dropped: Given up, by reason: ``oldest``: the queue was full; ``lost``: an exporter that never waits raised, or
            the event was queued when its exporter was disabled or the time to close was over; ``disabled``: it came
            after that; ``closed``: it came after ``close`` and is not in ``enqueued``.
        disabled: Exporters that failed too often.
    """

    enqueued: int
    processed: int
    queue_depth: int
    flush_errors: int
    dropped: dict[str, int]
    disabled: int


class Inline:
    """An exporter that never waits, and what went wrong with it all the same."""

    def __init__(self, exporter: Any, max_failures: int) -> None:
        self.exporter = exporter
        self.disabled = False
        self.errors = count()
        self.refused = count()  # because disabled
        self._max_failures = max_failures
        self._failures = 0  # consecutive
        self._failed_at = -1

    def failed(self, number: int, error: Exception) -> None:
        """Note that ``emit`` raised for the collector's event of this number."""
        next(self.errors)
        # By number, so that an event that goes well has nothing to reset.
        self._failures = self._failures + 1 if number == self._failed_at + 1 else 1
        self._failed_at = number
        if self._failures >= self._max_failures and not self.disabled:
            self.disabled = True
            text = f"failed {self._failures} times in a row and gets no more events: {scalar(error)[0]}"
            warn(f"disabled inline {next(_serials)}", f"{describe(self.exporter)} {text}")


class Crew:
    """All that one process has of a collector.

    Attributes:
        mark: The process's fork mark.
        offered: Counts events taken, but for those that its door counts.
        refused: Counts events that came after `close`.
        closed: No more events are taken.
    """

    def __init__(
        self,
        mark: Any,
        inline: list[Any],
        queued: list[Any],
        limits: Limits,
        passed: Callable[[], int] = int,
        parent: Crew | None = None,
    ) -> None:
        self.mark = mark
        # What the collector's door counts is not reset by a fork.
        self._passed = passed
        self._passed_before = passed()
        self.offered = count()
        self.refused = count()
        self.closed: bool = parent is not None and parent.closed
        self.inline = [Inline(exporter, limits.max_failures) for exporter in inline]
        self.lanes = [
            Lane(exporter, limits, f"{limits.name}-{number}" if number else limits.name)
            for number, exporter in enumerate(queued)
        ]
        self._parent = parent
        self._limits = limits
        self._heirs: dict[None, Crew] = {}
        self._close_right: deque[None] = deque([None])

    @property
    def direct(self) -> Any:
        """The one exporter where there is no other and it never waits, else None."""
        if self.closed or self.lanes or len(self.inline) != 1 or self.inline[0].disabled:
            return None
        return self.inline[0].exporter

    @property
    def enqueued(self) -> int:
        """Events taken."""
        return steps(self.offered) + self._passed() - self._passed_before

    def heir(self, mark: Any) -> Crew:
        """Return the crew of a forked child; the same one for all of its threads and signal handlers."""
        inline = [one.exporter for one in self.inline]
        queued = [lane.exporter for lane in self.lanes]
        return self._heirs.setdefault(None, Crew(mark, inline, queued, self._limits, self._passed, self))

    def take(self, event: Any) -> None:
        """Hand an event to every exporter. Waits for none of those that may wait."""
        number = next(self.offered) + 1
        for one in self.inline:
            if one.disabled:
                next(one.refused)
                continue
            try:
                one.exporter.emit(event)
            except Exception as error:
                if was_thrown_in(error):
                    raise
                one.failed(number, error)
        for lane in self.lanes:
            # A copy: the application may use its dict again, and an exporter may add keys to its own.
            lane.put(event.copy() if type(event) is dict else event)

    def take_line(self, line: bytes) -> None:
        """Append an event, encoded already, that could not go through the door."""
        next(self.offered)
        one = self.inline[0]
        if one.disabled:
            next(one.refused)
            return
        try:
            one.exporter.append_line(line)
        except Exception as error:
            if was_thrown_in(error):
                raise
            one.failed(self.enqueued, error)

    def flush(self, timeout: float) -> bool:
        """Have everything delivered that was taken before; return whether it was."""
        return self._settle(time.monotonic() + timeout, last=False)

    def close(self, timeout: float) -> bool:
        """Take no more events, deliver those taken, close the exporters; the second time do nothing."""
        self.closed = True
        try:
            self._close_right.pop()
        except IndexError:
            return True
        if self._parent is not None and self.enqueued == 0:
            return True  # a child that never used them: whatever the exporters hold is the parent's
        return self._settle(time.monotonic() + timeout, last=True)

    def _settle(self, deadline: float, *, last: bool) -> bool:
        # All at once: one that hangs must not take the others' time.
        replies = [lane.ask(deadline, last=last) for lane in self.lanes]
        replies += [call_aside(_settling(one.exporter, last=last)) for one in self.inline]
        return all([reply.wait(deadline) for reply in replies])  # noqa: C419  # waits for the rest after a False, too

    def stats(self) -> CollectorStats:
        """Return what happened so far."""
        lanes, inline = self.lanes, self.inline
        enqueued = self.enqueued
        failed = sum(steps(one.errors) for one in inline)
        refused = sum(steps(one.refused) for one in inline)
        return {
            "enqueued": enqueued,
            "processed": sum(lane.processed for lane in lanes) + enqueued * len(inline) - failed - refused,
            "queue_depth": sum(lane.queue_depth for lane in lanes),
            "flush_errors": sum(lane.flush_errors for lane in lanes) + failed,
            "dropped": {
                "oldest": sum(lane.dropped_oldest for lane in lanes),
                "lost": sum(lane.lost for lane in lanes) + failed,
                "disabled": sum(lane.dropped_disabled for lane in lanes) + refused,
                "closed": steps(self.refused),
            },
            "disabled": sum(lane.disabled for lane in lanes) + sum(one.disabled for one in inline),
        }


def _settling(exporter: Any, *, last: bool) -> Callable[[], bool]:
    return lambda: settle(exporter, last=last)
