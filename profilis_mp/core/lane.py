"""How do events reach an exporter that may wait?  Through a bounded queue and a thread of the exporter's own.

`Lane.put` is called by the application: from any thread, in signal handlers, in finalizers, and so possibly in the
middle of another ``put`` of the same thread. What keeps it from ever waiting:

- L1: nothing here is a lock. Each step is one call of a deque, a count or a ``SimpleQueue``. Who may do what only one
  may do at a time has taken the one element out of a deque.
- L2: a lane belongs to the process that made it. A forked child makes new ones and never touches its parent's.
- L3: each event leaves the queue once, taken by whoever delivers it or by a ``put`` that needs its room; so the counts
  add up whatever happens at the same time.
- L4: the thread says that it sleeps and looks at the queue then; ``put`` appends and looks whether it sleeps then.
  Whatever the order between the two, one of them sees the other.
"""

from __future__ import annotations

import _thread
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from profilis_mp.core.scalars import scalar
from profilis_mp.core.tally import steps
from profilis_mp.diagnostics import warn
from profilis_mp.exporters.base import describe, settle
from profilis_mp.interrupts import was_thrown_in
from profilis_mp.threads import Reply, name_thread, start

if TYPE_CHECKING:
    from queue import SimpleQueue

__all__ = ["Lane", "Limits"]

_serials = count()


class Limits(NamedTuple):
    """What a collector was configured with.

    Attributes:
        queue_size: Events that a lane keeps before it drops the oldest.
        flush_interval: How long an event waits for company, and a failing exporter for its next attempt. Seconds.
        batch_max: Most events per call of an exporter.
        max_failures: Consecutive failures after which an exporter gets no more events.
        name: Of the threads.
    """

    queue_size: int
    flush_interval: float
    batch_max: int
    max_failures: int
    name: str


class _Request(NamedTuple):
    deadline: float
    last: bool
    reply: Reply | None  # None: nobody waits, the lane is forgotten, and the exporter is not ours to close


class Lane:
    """The way to one exporter that may wait.

    Attributes:
        exporter: Whatever has ``export``, or is called itself.
        processed: Events delivered.
        flush_errors: Calls that raised.
        disabled: It failed too often, and its events are dropped.
        lost: Events given up when that happened, or when the time to close was over.
    """

    def __init__(self, exporter: Any, limits: Limits, name: str) -> None:
        # Here already: a first import in `_start` might find the import lock held, after a fork, for ever.
        import queue  # noqa: F401

        self.exporter = exporter
        self.processed = 0
        self.flush_errors = 0
        self.disabled = False
        self.lost = 0
        self._limits = limits
        self._name = name
        self._serial = next(_serials)
        self._deliver: Callable[[list[Any]], object] = getattr(exporter, "export", exporter)
        self._queue: deque[Any] = deque()
        self._oldest = count()  # dropped for want of room
        self._refused = count()  # dropped because disabled
        self._batch: list[Any] = []  # taken out of the queue and not delivered yet
        self._failures = 0  # consecutive
        self._start_right: deque[None] = deque([None])
        self._turn: deque[None] = deque([None])  # to take events out
        self._inbox: SimpleQueue[_Request | None] | None = None  # None in it: look at the queue
        self._asleep = True
        self._nudged = False
        self._thread: int | None = None
        self._looked = float("-inf")  # without a thread: when the queue was last emptied, on the monotonic clock

    @property
    def queue_depth(self) -> int:
        """Events not delivered yet."""
        return len(self._queue) + len(self._batch)

    @property
    def dropped_oldest(self) -> int:
        """Events that made room for younger ones."""
        return steps(self._oldest)

    @property
    def dropped_disabled(self) -> int:
        """Events that came when the exporter was disabled already."""
        return steps(self._refused)

    def put(self, event: Any) -> None:
        """Queue one event. Never waits."""
        if self.disabled:
            next(self._refused)
            return
        limits = self._limits
        queue = self._queue
        while len(queue) >= limits.queue_size:
            try:
                queue.popleft()
            except IndexError:
                break
            next(self._oldest)
        queue.append(event)
        inbox = self._inbox
        if inbox is None:
            self._put_without_thread(len(queue) >= limits.batch_max)
        elif self._asleep:  # L4
            self._asleep = False
            inbox.put(None)
        elif len(queue) >= limits.batch_max and not self._nudged:
            self._nudged = True
            inbox.put(None)

    def ask(self, deadline: float, *, last: bool) -> Reply:
        """Have the queue delivered and the exporter flushed (``last``: and closed), whoever can do it.

        Args:
            deadline: When to give up, on the monotonic clock.
            last: No events come after this.
        """
        reply = Reply()
        self._start()
        if self._inbox is None:  # there can be no thread
            reply.give(self._settle(deadline, last=last))
        else:
            self._inbox.put(_Request(deadline, last, reply))
            if self._thread == _thread.get_ident():  # the exporter asks: it would wait for itself
                reply.give(False)
        return reply

    def forget(self) -> None:
        """Let the thread deliver what is queued and end; for a collector that nobody refers to any more."""
        if self._inbox is not None:
            self._inbox.put(_Request(0.0, True, None))

    def _put_without_thread(self, full: bool) -> None:
        """Start the thread. Where there can be none, deliver here: full batches, and others once in an interval."""
        now = time.monotonic()
        if (full or now - self._looked >= self._limits.flush_interval) and not self._start():
            self._looked = now
            self._drain()

    def _start(self) -> bool:
        """Start the thread unless that has been done, or is being done; return False where there can be none."""
        try:
            self._start_right.pop()
        except IndexError:
            return True
        import queue

        inbox: SimpleQueue[_Request | None] = queue.SimpleQueue()
        # Before the thread: it may have emptied the queue and fallen asleep before this thread gets to run again.
        self._inbox = inbox
        if start(lambda: self._run(inbox)):
            return True
        self._inbox = None
        self._start_right.append(None)  # later perhaps: uWSGI's first process has no threads until it is a worker
        return False

    def _run(self, inbox: SimpleQueue[_Request | None]) -> None:
        self._thread = _thread.get_ident()
        name_thread(self._name)
        while True:
            self._asleep = True  # L4
            request = None if self._queue or self._batch else inbox.get()
            self._asleep = False
            if request is None:
                request = self._gather(inbox)
            self._nudged = False
            if request is None:
                self._drain()
                continue
            if request.reply is None:
                self._drain()
                return
            answer = False
            try:
                answer = self._settle(request.deadline, last=request.last)
            except BaseException:  # an exporter's flush or close called sys.exit, perhaps
                pass
            request.reply.give(answer)
            if request.last:
                return

    def _gather(self, inbox: SimpleQueue[_Request | None]) -> _Request | None:
        """Wait until a batch is complete, ``flush_interval`` is over, or somebody asks."""
        import queue

        until = time.monotonic() + self._limits.flush_interval
        while self._batch or len(self._queue) < self._limits.batch_max:  # a batch in hand has failed: not at once again
            try:
                request = inbox.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return None
            if request is not None:
                return request
            self._nudged = False
        return None

    def _settle(self, deadline: float, *, last: bool) -> bool:
        delivered = self._drain()
        while not (delivered or self.disabled) and time.monotonic() < deadline:
            time.sleep(max(0.0, min(self._limits.flush_interval, deadline - time.monotonic())))
            delivered = self._drain()
        if last and not delivered:
            lost = self._give_up()
            if lost:
                warn(f"unsent {self._serial}", f"{lost} events were not exported to {describe(self.exporter)} in time")
        return settle(self.exporter, last=last) and delivered

    def _drain(self) -> bool:
        """Deliver what is in the queue now and nothing that comes meanwhile; return whether that worked.

        An exporter may itself enqueue an event for each that it gets: this ends all the same.
        """
        if self.disabled:
            return False
        try:
            self._turn.pop()
        except IndexError:
            return False
        try:
            left = len(self._queue)
            while self._batch or left > 0:
                if not self._batch:
                    most = min(left, self._limits.batch_max)
                    left -= most
                    self._fill(most)
                if self._batch and not self._attempt():
                    return False
            return True
        finally:
            self._turn.append(None)

    def _fill(self, most: int) -> None:
        batch = self._batch
        try:
            while len(batch) < most:
                batch.append(self._queue.popleft())
        except IndexError:  # dropped for younger ones meanwhile
            pass

    def _attempt(self) -> bool:
        try:
            self._deliver(self._batch.copy())  # a copy: what it takes out of the list is still here if it raises
        except BaseException as error:
            if self._thread != _thread.get_ident() and (not isinstance(error, Exception) or was_thrown_in(error)):
                raise  # in the application's own thread an interrupt is the application's
            self.flush_errors += 1
            self._failures += 1
            if self._failures >= self._limits.max_failures:
                self.disabled = True
                self._give_up()
                text = f"failed {self._failures} times in a row and gets no more events: {scalar(error)[0]}"
                warn(f"disabled {self._serial}", f"{describe(self.exporter)} {text}")
            return False
        self.processed += len(self._batch)
        self._batch = []
        self._failures = 0
        return True

    def _give_up(self) -> int:
        lost = len(self._batch)
        self._batch = []
        try:
            while True:
                self._queue.popleft()
                lost += 1
        except IndexError:
            self.lost += lost
            return lost
