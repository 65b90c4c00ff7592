"""How does an application hand over events without waiting for where they go?

An exporter that never waits (`JSONLExporter`) gets the event in the caller's own thread: it is crash-safe when
``enqueue`` returns. Any other has a queue that drops its oldest events when full, and a thread; a slow or failing one
does not hold up the application or the other exporters.

    >>> seen = []
    >>> with AsyncCollector(seen.extend) as collector:
    ...     collector.enqueue({"kind": "FN"})
    ...     collector.flush()
    True
    >>> seen, collector.enqueued, collector.processed
    ([{'kind': 'FN'}], 1, 1)
"""

from __future__ import annotations

import atexit
import math
import sys
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from profilis_mp.core.crew import CollectorStats, Crew
from profilis_mp.core.lane import Limits
from profilis_mp.errors import ConfigError
from profilis_mp.exporters.base import Sink
from profilis_mp.forkmark import ForkMark, fork_mark
from profilis_mp.interrupts import was_thrown_in

if TYPE_CHECKING:
    from profilis_mp.sharedlog.fastpath import Door

__all__ = ["AsyncCollector", "CollectorStats"]

_ELSEWHERE: ForkMark = False


class AsyncCollector:
    """Hands events to one exporter, or to several.

    Used on in a forked child, it starts afresh there: counts from zero, empty queues, threads when needed; what the
    parent had queued stays the parent's.

    Args:
        exporter: An exporter, a callable that takes a list of events, or a list of these; what is expected of them:
            `profilis_mp.exporters.base`.
        queue_size: Events kept for an exporter that may wait; beyond it the oldest are dropped.
        flush_interval: How long an event waits for company, and a failing exporter for the next attempt. Seconds.
        batch_max: Most events per call of an exporter.
        max_consecutive_sink_failures: After that many an exporter gets no more events; one warning says so.
        name: Of the threads.

    Attributes:
        enqueue: Takes one event. An attribute, so that nothing lies between the caller and the exporter.

    Raises:
        ConfigError: Naming the argument that was refused.
    """

    def __init__(
        self,
        exporter: Sink | Sequence[Sink],
        *,
        queue_size: int = 2048,
        flush_interval: float = 0.5,
        batch_max: int = 256,
        max_consecutive_sink_failures: int = 5,
        name: str = "profilis-collector",
    ) -> None:
        inline, queued = _sorted_out(exporter)
        limits = Limits(
            _whole("queue_size", queue_size),
            _seconds("flush_interval", flush_interval),
            _whole("batch_max", batch_max),
            _whole("max_consecutive_sink_failures", max_consecutive_sink_failures),
            _text("name", name),
        )
        door = self._door(inline[0]) if len(inline) == 1 and not queued else None
        self._crew = Crew(fork_mark(), inline, queued, limits, int if door is None else door.passed)
        self._enqueue, self._bind = self._entrance() if door is None else (door.append, _keeper(door))
        self._bind(self._crew)
        if type(self).enqueue is AsyncCollector.enqueue:
            vars(self)["enqueue"] = self._enqueue
        self._at_exit = partial(_close_forgotten, weakref.ref(self))
        atexit.register(self._at_exit)
        self._finalizer: Any = None
        self._arm_multiprocessing()

    def enqueue(self, event: Any) -> None:
        """Take one event; never waits for an exporter that may wait.

        Raises no Exception but one that a signal handler of the application throws in meanwhile.
        Safe from any thread, signal handler and finalizer. After `close` the event is dropped and counted.
        """
        self._enqueue(event)

    def flush(self, timeout: float = 2.0) -> bool:
        """Have everything delivered that was enqueued before, and the exporters flushed.

        Args:
            timeout: Longest wait, seconds.

        Returns:
            Whether that is done. False where an exporter was too slow, failed, or is disabled.
        """
        crew = self._crew_here()
        return crew.closed or crew.flush(timeout)

    def close(self, *, timeout: float = 2.0) -> bool:
        """Deliver what is queued, flush and close the exporters. May be called twice, and runs at exit.

        In a forked child that never used the collector, the exporters are left alone.

        Args:
            timeout: Longest wait, seconds, even for an exporter that hangs. (Python 3.12 cannot start a thread at exit,
                so there an exporter that never waits is closed without this limit.)

        Returns:
            Whether everything was delivered and closed in time.
        """
        crew = self._crew_here()
        crew.closed = True
        self._bind(crew)
        done = crew.close(timeout)
        atexit.unregister(self._at_exit)
        if self._finalizer is not None:
            self._finalizer.cancel()
        return done

    def __enter__(self) -> AsyncCollector:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            atexit.unregister(self._at_exit)
            if self._finalizer is not None:
                self._finalizer.cancel()
            self._crew.closed = True
            self._bind(self._crew)  # the exporter keeps the door, which keeps the mark of the crew, a page
            if self._crew.mark:
                for lane in self._crew.lanes:
                    lane.forget()
        except Exception:  # half built, or the interpreter is going away
            pass

    @property
    def enqueued(self) -> int:
        """Events taken."""
        return self._crew_here().enqueued

    @property
    def processed(self) -> int:
        """Events delivered; see `CollectorStats`."""
        return self.stats()["processed"]

    @property
    def dropped_oldest(self) -> int:
        """Events that made room for younger ones in a full queue."""
        return self.stats()["dropped"]["oldest"]

    @property
    def flush_errors(self) -> int:
        """Calls of an exporter that raised."""
        return self.stats()["flush_errors"]

    @property
    def queue_depth(self) -> int:
        """Events not delivered yet."""
        return self.stats()["queue_depth"]

    def stats(self) -> CollectorStats:
        """What happened in this process; see `CollectorStats`."""
        return self._crew_here().stats()

    def _door(self, exporter: Any) -> Door | None:
        """The exporter's own append, with a count for this collector; None where the exporter has no such thing."""
        make = getattr(exporter, "door", None)
        if make is None:
            return None

        def otherwise(line: bytes) -> None:
            crew = self._crew_here()
            if crew.closed:
                next(crew.refused)
            else:
                crew.take_line(line)
                if crew.inline[0].disabled:
                    self._bind(crew)

        door: Door | None = make(otherwise)
        return door

    def _entrance(self) -> tuple[Callable[[Any], None], Callable[[Crew], None]]:
        """Return ``enqueue``, and what tells it that the crew is another, is closed, or has a disabled exporter."""
        exporter: Any = None
        mark: Any = _ELSEWHERE
        offered: Any = None
        resume, failed = self._resume, self._failed

        def enqueue(event: Any) -> None:
            try:
                if mark:
                    next(offered)
                    try:
                        exporter.emit(event)
                    except Exception as error:
                        failed(error)
                else:
                    resume(event)
            except Exception as error:  # what a signal handler threw in, or no memory or no stack left
                if not isinstance(error, RecursionError | MemoryError) and was_thrown_in(error):
                    raise

        def bind(crew: Crew) -> None:
            nonlocal exporter, mark, offered
            direct = crew.direct
            if direct is None:
                mark = _ELSEWHERE
                return
            # The mark last: other threads use what is here as soon as it says so.
            exporter = direct
            offered = crew.offered
            mark = crew.mark
            if crew.closed:
                mark = _ELSEWHERE

        return enqueue, bind

    def _crew_here(self) -> Crew:
        """This process's crew. Takes no lock: after a fork any of them may be held by nobody for ever."""
        crew = before = self._crew
        while not crew.mark:
            crew = crew.heir(fork_mark())
        if crew is not before:
            self._crew = crew
            self._bind(crew)
            self._arm_multiprocessing()
        return crew

    def _resume(self, event: Any) -> None:
        """Take an event where the short way is not open: several exporters, or closed, or a forked child's first."""
        crew = self._crew_here()
        if crew.closed:
            next(crew.refused)
        else:
            crew.take(event)

    def _failed(self, error: Exception) -> None:
        if was_thrown_in(error):
            raise error
        crew = self._crew_here()
        crew.inline[0].failed(crew.enqueued, error)
        if crew.inline[0].disabled:
            self._bind(crew)

    def _arm_multiprocessing(self) -> None:
        """A child of multiprocessing ends by ``os._exit``: atexit does not run there, finalizers made there do."""
        util = sys.modules.get("multiprocessing.util")
        if util is not None:
            self._finalizer = util.Finalize(None, self._at_exit, exitpriority=10)  # before the exporters' own


def _keeper(door: Door) -> Callable[[Crew], None]:
    """What opens the door in the crew's process, or shuts it where the crew is closed or its exporter disabled."""

    def bind(crew: Crew) -> None:
        if crew.direct is not None:
            door.admit(crew.mark)
        if crew.direct is None:  # meanwhile, or already
            door.admit(_ELSEWHERE)

    return bind


def _close_forgotten(reference: weakref.ref[AsyncCollector]) -> None:
    collector = reference()
    if collector is not None:
        collector.close()


def _sorted_out(exporter: Any) -> tuple[list[Any], list[Any]]:
    """Return the exporters that never wait, and those that may."""
    exporters = list(exporter) if isinstance(exporter, list | tuple) else [exporter]
    if not exporters:
        raise ConfigError("exporter", "an empty list: events would go nowhere")
    inline, queued = [], []
    for one in exporters:
        if isinstance(one, type):
            raise ConfigError("exporter", f"{one.__name__} is a class; give an instance of it")
        if getattr(one, "never_waits", False) and callable(getattr(one, "emit", None)):
            inline.append(one)
        elif callable(getattr(one, "export", one)):
            queued.append(one)
        else:
            raise ConfigError("exporter", f"{type(one).__name__} has no export(events) and cannot be called with them")
    return inline, queued


def _whole(argument: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(argument, f"{value!r} is not a whole number above 0")
    return value


def _seconds(argument: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ConfigError(argument, f"{value!r} is not a number of seconds above 0")
    return float(value)


def _text(argument: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(argument, f"{value!r} is not a string")
    return value
